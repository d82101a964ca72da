"""A policy's model card: what it is, what it was made from and how, how near it is to its teacher, and how to run it."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template
from typing import TYPE_CHECKING

from jaxreflow.evaluate.report import figures, table
from jaxreflow.evaluate.report.report import Report
from jaxreflow.evaluate.report.table import Table, markdown
from jaxreflow.policy.config import PolicyConfig
from jaxreflow.policy.public_names import PolicyName
from jaxreflow.run.config import ReflowConfig, RunConfig, StudentConfig
from jaxreflow.support.option import labelled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TAGS = ("robotics", "lerobot", "smolvla")
REFLOW_TAGS = ("reflow", "rectified-flow", "distillation")


@dataclasses.dataclass(frozen=True)
class CardSource:
    """All that a card says something about; names are public ones."""

    repo: str
    """USER/NAME on the hub."""
    policy: PolicyConfig
    own_vlm: bool
    """Whether the VLM's config and tokenizer lie in the policy's `vlm/` folder."""
    settings: RunConfig | None
    """Those of the run that made it, None if another program did."""
    update: int | None
    """The update after which it was saved, where that is known."""
    start: PolicyName | None
    """The policy that the run started from: of a student, its teacher."""
    start_sha256: str | None
    """Of that policy's weights."""
    report: Report | None
    license: str | None
    """As the hub names it; None: what the policy's config.json says."""


def model_card(source: CardSource) -> str:
    """The README.md of the policy's repository: YAML for the hub, then Markdown for people."""
    sections = [
        f"# {source.repo.split('/')[1]}",
        _introduction(source),
        _usage(source),
        _origin(source),
        _recipe(source),
        _fidelity(source),
        _latency(source.report) if source.report else "",
    ]
    return f"---\n{_metadata(source)}\n---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def pictures(report: Report) -> dict[str, bytes]:
    """The card's pictures as PNG, by their path beside it."""
    drawn = {
        "errors": figures.plot_errors(report.measures),
        "positions": figures.plot_positions(report.measures),
        **({"latency": figures.plot_latency(report.measures)} if report.measures.latency else {}),
    }
    return {f"images/{name}.png": _png(figure) for name, figure in drawn.items()}


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    # Without the version of Matplotlib, so that the same report makes the same bytes.
    figure.savefig(file, format="png", dpi=130, facecolor="white", metadata={"Software": None})
    return file.getvalue()


def _metadata(source: CardSource) -> str:
    from huggingface_hub import ModelCardData

    settings = source.settings
    tags = [*TAGS, *(REFLOW_TAGS if settings and settings.distils else ()), *(["jaxreflow"] if settings else [])]
    dataset = settings.dataset.repo_id if settings else None
    return ModelCardData(
        license=source.license or source.policy.carried.get("license"),
        library_name="lerobot",
        pipeline_tag="robotics",
        tags=tags,
        base_model=source.start.name if source.start and source.start.on_hub else None,
        datasets=[dataset] if dataset else None,
    ).to_yaml()


def _introduction(source: CardSource) -> str:
    steps = _steps(source.policy.num_steps)
    acts = f"A SmolVLA policy that takes {steps} for a chunk of {source.policy.chunk_size} actions"
    form = "It is a SmolVLA checkpoint in LeRobot's layout, and unmodified LeRobot runs it."
    if source.settings is not None and (reflow := source.settings.distillation):
        return (
            f"{acts}. jaxreflow distilled it by reflow from {_named(source.start)}, whose paths from noise to action took "
            f"{_steps(reflow.teacher_steps, reflow.teacher_solver)}: the student learned to go straight to "
            f"where they end. {form} {_network(reflow.student)} and all weights that were not trained are the teacher's."
        )
    if source.settings is not None:
        start = "from a new policy" if source.settings.starts_new else f"from {_named(source.start)}"
        return f"{acts}. jaxreflow trained it {start} by flow matching on recorded actions. {form}"
    return f"{acts}. {form}"


def _network(student: StudentConfig) -> str:
    layers = f"has {student.vlm_layers} of its teacher's VLM layers" if student.vlm_layers else ""
    images = f"sees images of {student.image_size} x {student.image_size} pixels" if student.image_size else ""
    own = " and ".join(filter(None, (layers, images)))
    return f"It {own}; statistics, tokenizer" if own else "Architecture, statistics, tokenizer"


# LeRobot's commands have no flag for the place of the tokenizer.
_EDIT = """. DIR is a download in
whose `config.json` and `policy_preprocessor.json` `vlm_model_name` and `tokenizer_name` are the path of its `vlm` folder"""


def _usage(source: CardSource) -> str:
    return _filled(
        "card_usage.md",
        load=_filled("card_load_with_vlm.txt" if source.own_vlm else "card_load.txt", repo=source.repo),
        path="DIR" if source.own_vlm else source.repo,
        edit=_EDIT if source.own_vlm else "",
        repo=source.repo,
        num_steps=source.policy.num_steps,
        n_action_steps=source.policy.n_action_steps,
    )


def _filled(name: str, **values: object) -> str:
    """The text of a template beside this module."""
    template = Template((resources.files(__package__) / name).read_text(encoding="utf-8"))
    return template.substitute(values).rstrip("\n")


def _origin(source: CardSource) -> str:
    settings, start = source.settings, source.start
    if settings is None:
        return ""
    rows = []
    if start is not None:
        role = "teacher" if settings.distils else "policy that it started from"
        rows.append((role, _named(start) + ("" if start.on_hub else ", a local folder")))
        rows.append(("its revision", f"`{start.commit}`" if start.commit else ""))
        rows.append(("its weights", f"sha256 `{source.start_sha256}`" if source.start_sha256 else ""))
    data = settings.dataset
    where = f", revision `{data.revision}`" if data.revision else "" if data.repo_id else ", a local folder"
    rows.append(("dataset", f"`{data.repo_id or data.root}`{where}"))
    rows.append(("held out of training", f"{data.holdout:.0%} of the episodes" if data.holdout else ""))
    known = tuple((name, value) for name, value in rows if value)
    return f"## What it was made from\n\n{markdown(Table(('what', 'which'), known))}"


def _recipe(source: CardSource) -> str:
    settings = source.settings
    if settings is None:
        return ""
    optimizer = settings.optimizer.resolve(source.policy)
    update = settings.steps if source.update is None else source.update
    rows = [
        ("updates", f"{update:,}" + (f" of {settings.steps:,}" if update != settings.steps else "")),
        *labelled(settings),
        *(_reflow_rows(settings.distillation) if settings.distillation else ()),
        *([("trained", f"adapters of rank {settings.lora.rank} (LoRA), merged")] if settings.lora.rank else []),
        *([("images", "changed at random")] if settings.dataset.image_transforms.enable else []),
        ("optimizer", f"{optimizer.name}, peak learning rate {optimizer.lr:g}, gradients clipped to {optimizer.clip_norm:g}"),
        ("weights", _weights(settings)),
    ]  # fmt: skip
    return (
        f"## Recipe\n\n{markdown(Table(('setting', 'value'), tuple(rows)))}\n\n"
        "`train_config.json` holds all settings; paths in it are shortened to names."
    )


def _trained(settings: ReflowConfig) -> str:
    if settings.trained_parts is None:
        return "what the policy's config says"
    return " and ".join(["expert and projections", *(part for part in settings.trained_parts if part != "expert")])


def _reflow_rows(settings: ReflowConfig) -> Sequence[tuple[str, str]]:
    dims = "all padded action dims" if settings.loss_dims == "padded" else "the real action dims"
    return (
        ("pairs from", f"the teacher, {_steps(settings.teacher_steps, settings.teacher_solver)}"),
        ("objective", f"{settings.objective}, {dims}"),
        *([] if settings.lora.rank else [("trained", _trained(settings))]),
    )


def _weights(settings: RunConfig) -> str:
    if settings.ema_decay and settings.export == "ema":
        return f"moving average, decay {settings.ema_decay:g}"
    return "raw"


_HOW = """`‖a − b‖ / ‖b‖` with `b` the chunks of {reference} from the same noise on the same frames, over real action dims in
normalised units, with bootstrap 95 % intervals over episodes; `@k` is k Euler steps."""


def _fidelity(source: CardSource) -> str:
    report = source.report
    if report is None:
        return _not_measured(source)
    measures, about = report.measures, report.about
    frames = ", ".join(f"{count} frames ({name})" for name, count in measures.frames.items())
    held_out = "that training held out" if about.held_out else "(whether training saw them is not recorded)"
    early = ""
    if about.settings.early_task:
        early = f"Early frames are the first {about.settings.early_frames} of each episode of “{about.settings.early_task}”."
    episodes = f"{len(about.episodes)} episodes of `{about.dataset}` {held_out}"
    where = f"{frames}, with {about.settings.noises} noises each, from {episodes}."
    parts = [
        f"## {'Is it its teacher?' if about.student else 'In how few steps does it act?'}\n\n**{report.verdict.headline}**",
        *(advice.text for advice in report.verdict.advice),
        f"{_HOW.format(reference=measures.reference)} {where} {early}".rstrip(),
        markdown(table.interval_table(measures)),
        f"![Same-noise error to {measures.reference} over the number of Euler steps](images/errors.png)",
        "![Same-noise error along the chunk](images/positions.png)",
    ]
    if measures.distributions:
        rows = measures.distributions[0]
        parts += [
            f"Distribution of chunks at {rows.observations} observations, {rows.draws} draws of each policy. The floor is the "
            "teacher against itself.",
            markdown(table.distribution_table(measures)),
        ]
    if report.verdict.checks:
        checks = table.check_table(report.verdict)
        short = Table(checks.columns[:4], tuple(row[:4] for row in checks.rows))
        parts += ["Checks of `jaxreflow.evaluate`:", markdown(short)]
    parts.append("`report.html` and `report.json` hold all measures. These are errors of chunks, not success rates.")
    return "\n\n".join(parts)


def _not_measured(source: CardSource) -> str:
    if source.settings is None or not source.settings.distils:
        return ""
    data = source.settings.dataset
    dataset = f"--dataset.repo-id {data.repo_id}" if data.repo_id else "--dataset.root DATASET"
    teacher = source.start.name if source.start and source.start.on_hub else "TEACHER"
    return (
        "## Is it its teacher?\n\nThat was not measured. This command does it:\n\n```\n"
        f"python -m jaxreflow.evaluate --teacher {teacher} --student {source.repo} {dataset} --out REPORT\n```"
    )


def _latency(report: Report) -> str:
    measures, about = report.measures, report.about
    if not measures.latency:
        return ""
    parts = [
        f"## Latency\n\nOne observation at a time, {about.dtype}, compiled by jax {about.versions.get('jax', '')} on "
        f"{about.device}; other devices and LeRobot take other times.",
        markdown(table.call_table(measures)),
        markdown(table.latency_table(measures)),
        "![Milliseconds for one chunk, by number of Euler steps](images/latency.png)",
    ]
    if measures.rates:
        parts += ["Actions per second if nothing but the policy takes time:", markdown(table.rate_table(measures))]
    return "\n\n".join(parts)


def _steps(count: int, solver: str = "euler") -> str:
    names: Mapping[str, str] = {"euler": "Euler", "heun": "Heun"}
    return f"{count} {names.get(solver, solver)} step{'s' * (count > 1)}"


def _named(policy: PolicyName | None) -> str:
    return f"`{policy.name}`" if policy else "another policy"
