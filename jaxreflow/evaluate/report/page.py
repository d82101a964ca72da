"""The report as one HTML page that needs nothing else: no script, no font, no address outside of it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import TYPE_CHECKING

from PIL import Image

from jaxreflow.evaluate.paths import Example
from jaxreflow.evaluate.report import figures, table
from jaxreflow.evaluate.report.report import Report
from jaxreflow.evaluate.report.table import Table
from jaxreflow.run.record.metrics import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FILES = resources.files(__package__)


def render_page(report: Report, examples: Sequence[Example], records: Sequence[Record]) -> str:
    """The page; `records` are the log of the student's run, where there is one."""
    parts = [
        ("verdict", "Verdict", _verdict(report)),
        ("checks", "Checks", _checks(report)),
        ("errors", "Same-noise error", _errors(report)),
        ("field", "Velocity and straightness", _field(report)),
        ("distribution", "Distribution of chunks", _distribution(report)),
        ("paths", "From noise to action", _paths(report, examples)),
        ("smoothness", "Smoothness", _smoothness(report)),
        ("latency", "Latency", _latency(report)),
        ("training", "Training", _training(report, records)),
        ("thresholds", "Thresholds and settings", _thresholds(report)),
    ]
    shown = [(key, title, body) for key, title, body in parts if body]
    return Template((_FILES / "page.html").read_text(encoding="utf-8")).substitute(
        title="Is the student the teacher?" if report.about.student else "Do you need to distil?",
        style=(_FILES / "page.css").read_text(encoding="utf-8"),
        about=_about(report),
        contents="".join(f'<li><a href="#{key}">{html.escape(title)}</a></li>' for key, title, _ in shown),
        sections="\n".join(
            f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{html.escape(title)}</h2>\n{body}</section>'
            for key, title, body in shown
        ),
    )


def _p(text: str) -> str:
    return f"<p>{html.escape(text)}</p>\n"


def _table(content: Table, caption: str) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in content.columns)
    lines = []
    for name, *cells in content.rows:
        line = f'<th scope="row">{html.escape(name)}</th>' + "".join(_cell(cell) for cell in cells)
        lines.append(f"<tr>{line}</tr>")
    body = "\n".join(lines)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(caption, quote=True)}"><table>'
        f"<caption>{html.escape(caption)}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n"
    )


_KINDS = {"pass": "good", "fit": "good", "FAIL": "bad", "not fit": "bad", "not checked": "none", "open": "none"}


def _cell(text: str) -> str:
    if text in _KINDS:
        return f'<td><span class="state {_KINDS[text]}">{html.escape(text)}</span></td>'
    number = text.removeprefix("-")[:1].isdigit() and len(text) < 28
    kind = ' class="number"' if number or len(text) < 16 else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def _picture(figure: Figure, description: str, caption: str) -> str:
    """A figure with its caption; `description` is read to who cannot see it."""
    image = _image(figures.svg(figure), "svg+xml", description)
    return f'<figure><div class="scroll">{image}</div><figcaption>{html.escape(caption)}</figcaption></figure>\n'


def _image(content: bytes, kind: str, description: str) -> str:
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return f'<img alt="{html.escape(description, quote=True)}" src="{source}">'


def _about(report: Report) -> str:
    about = report.about
    which = "held out of the student's training" if about.held_out else "all that were chosen"
    parts = [
        f"Teacher {about.teacher}, {about.teacher_steps} Euler steps",
        f"student {about.student}" if about.student else "no student",
        f"dataset {about.dataset}, {len(about.episodes)} episodes ({which})",
        ", ".join(f"{count} frames in the set “{name}”" for name, count in report.measures.frames.items()),
        f"{about.settings.noises} noises a frame",
        f"chunks of {about.chunk_size} actions at {about.fps:g} a second",
        f"{about.dtype} on {about.device}",
    ]
    return html.escape("; ".join(parts) + ".")


def _verdict(report: Report) -> str:
    verdict = report.verdict
    kind = "good" if verdict.passed else "bad"
    text = f'<p class="banner {kind}">{html.escape(verdict.headline)}</p>\n'
    text += "".join(_p(advice.text) for advice in verdict.advice)
    text += _table(table.error_table(report.measures), f"Same-noise error to {report.measures.reference}")
    return text + _table(
        table.suitability_table(verdict),
        f"What may stand in for {report.measures.reference}, by the thresholds at the end of this page",
    )


def _checks(report: Report) -> str:
    if not report.verdict.checks:
        return ""
    text = _p("Every rightly made student passes these; each is named after what it catches.")
    return text + _table(table.check_table(report.verdict), "Checks of the student")


def _errors(report: Report) -> str:
    measures, reference = report.measures, report.measures.reference
    text = _p(
        f"‖a − b‖ / ‖b‖ with b the chunks of {reference} from the same noise on the same frames, over real action dims in "
        "normalised units and all positions, summed over the set before the quotient. Intervals are bootstrap 95 % over "
        "episodes. “All” are frames spread evenly over the episodes; “early” are the first of episodes in which several "
        "ways are open."
    )
    text += _picture(
        figures.plot_errors(measures),
        "Same-noise error over the number of Euler steps",
        "Error over the number of Euler steps, with 95 % intervals.",
    )
    text += _table(
        table.fidelity_table(measures), f"Errors to {reference}; those not named after a set are on all frames"
    )
    text += _picture(
        figures.plot_positions(measures),
        "Same-noise error over the position in the chunk",
        "Error along the chunk, all frames.",
    )
    text += _table(
        table.dims_table(measures, report.about.action_names),
        "Errors per action dim: relative, and root mean square in the dataset's units",
    )
    return text


def _field(report: Report) -> str:
    measures, settings = report.measures, report.about.settings
    text = _p(
        f"Velocity error: ‖v − (noise − endpoint)‖ / ‖noise − endpoint‖ at x = t noise + (1 − t) endpoint, with the endpoint of "
        f"{measures.reference}. Straightness: E‖(noise − x0) − v‖² / E‖noise − x0‖² along the policy's own 50-step path. "
        f"{min(settings.field_frames, settings.frames)} frames, one noise each."
    )
    dims = len(report.about.action_names)
    text += _picture(
        figures.plot_fields(measures, dims),
        "Velocity error and straightness over time t",
        "Over t. A student of straight paths is as good in one step as in many.",
    )
    return text + _table(table.field_table(measures), "Means over t")


def _distribution(report: Report) -> str:
    rows = report.measures.distributions
    if not rows:
        return ""
    where = "early" if "early" in report.measures.frames else "all"
    text = _p(
        f"{rows[0].draws} chunks of each policy at each of {rows[0].observations} observations of the set “{where}”, against as "
        f"many of {report.measures.reference} from other noise. A policy that averages two ways round an obstacle loses its "
        "spread and is far from its teacher's distribution even where its mean error is small."
    )
    return text + _table(table.distribution_table(report.measures), "Unbiased energy distance, and spread over draws")


def _paths(report: Report, examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    text = _p(
        "Grey dots are noises, lines the sampler's steps, coloured dots the chunks; every column has the same noises. The plane is "
        f"that in which the chunks of {report.measures.reference} differ most."
    )
    text += '<ul class="frames">'
    for i, example in enumerate(examples, 1):
        text += f"<li>{_image(_png(example), 'png', '')}<span>{html.escape(f'Row {i}: {example.task}')}</span></li>"
    return f"{text}</ul>\n" + _picture(
        figures.plot_paths(examples),
        "Paths from noise to action in a plane, by policy",
        "Paths of the sampler, one frame in each row.",
    )


def _png(example: Example) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(example.image)
    image.thumbnail((192, 192))
    image.save(file, format="PNG")
    return file.getvalue()


def _smoothness(report: Report) -> str:
    text = _p(
        "A robot that executes n actions of a chunk and asks again makes a step from the last of them, a_f[n−1], to the first of "
        "the next chunk, a_(f+n)[0], which has noise of its own. Disagreement is |a_f[n] − a_(f+n)[0]|, the two chunks on the same "
        "moment. Means over dims in normalised units. Jerk, the third difference along the chunk, stands among the errors."
    )
    return (
        text + _table(table.jump_table(report.measures), "Between one chunk and the next")
        if report.measures.jumps
        else ""
    )


def _latency(report: Report) -> str:
    if not report.measures.latency:
        return ""
    text = _p(f"Batch 1, compiled, {report.about.dtype} on {report.about.device}, nothing else counted.")
    text += _picture(
        figures.plot_latency(report.measures), "Milliseconds per chunk by number of Euler steps", "Time for one chunk."
    )
    text += _table(table.call_table(report.measures), "One call of each policy, medians")
    text += _table(table.latency_table(report.measures), "Milliseconds of each part")
    if not report.measures.rates:
        return text
    return text + _table(
        table.rate_table(report.measures), "Actions per second, by actions executed per chunk (n_action_steps)"
    )


def _training(report: Report, records: Sequence[Record]) -> str:
    found = report.measures.consistency
    if found is None:
        return (
            _p("Not available: no run with this teacher is known to have made the student.")
            if report.about.student
            else ""
        )
    if found.ratio is None:
        text = _p(
            f"The reflow loss of the exported weights on held-out frames is {found.loss:.4g}. Its training loss is {found.note}."
        )
    else:
        text = _p(
            f"The reflow loss of the exported weights on held-out frames, with fresh noise and the run's own law of t, is "
            f"{found.loss:.4g}; the {found.note} is {found.logged:.4g}. Their quotient is {found.ratio:.2f}; 1 is right."
        )
        if found.held_out_loss is not None:
            text += _p(
                f"The loss of its last tenth of updates is {found.train_loss:.4g}. It is lower where a student overfits."
            )
    if any("loss" in record for record in records):
        text += _picture(
            figures.plot_losses(records), "Training and held-out loss over updates", "Loss of the student's run."
        )
    return text


def _thresholds(report: Report) -> str:
    text = _p(
        "The verdict draws its lines here; --thresholds.NAME moves one. Those for step counts follow closed loops of small "
        "simulated policies. Executing whole chunks, policies that pass lost up to six points of success. Executing 10 actions, "
        "those with an error up to .12 over these lost up to two points. Beyond it some lost nothing, and some lost much."
    )
    text += _table(table.threshold_table(report.verdict), "Thresholds")
    settings = vars(report.about.settings)
    rows = tuple((name.replace("_", " "), _setting(value)) for name, value in settings.items())
    rows += tuple((f"version of {name}", value) for name, value in report.about.versions.items())
    rows += (("episodes", _setting(report.about.episodes)),)
    return text + _table(Table(("setting", "value"), rows), "Settings of this report")


def _setting(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else "none" if value is None else str(value)
