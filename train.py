"""Trains a policy: `python train.py NAME [OPTIONS]` runs configs/NAME.py with its settings overridden by the options.

    python train.py reflow   --teacher.path DIR_OR_HUB_ID --dataset.root DIR --output-dir RUN
    python train.py finetune --policy.path  DIR_OR_HUB_ID --dataset.root DIR --output-dir RUN
    python train.py reflow   --output-dir RUN --resume
    python train.py reflow   --teacher.path DIR_OR_HUB_ID --dataset.root DIR --dry-run

LeRobot's spellings of these options are understood, too (docs/command_line.md).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
from jaxtyping import Array

from jaxreflow.errors import JaxReflowError
from jaxreflow.evaluate.comparison import REPORT_HTML, compare_run
from jaxreflow.evaluate.demo import DemoConfig, write_demo_report
from jaxreflow.evaluate.report.table import format_report
from jaxreflow.model.params import count_parameters
from jaxreflow.model.types import Batch
from jaxreflow.policy.saved import SavedPolicy, save_pretrained
from jaxreflow.policy.weights import expected_tensors
from jaxreflow.publish.publication import check_push, push_run
from jaxreflow.run.checkpoints import CheckpointStore, newest_policy
from jaxreflow.run.config import RunConfig, TeacherSource
from jaxreflow.run.config_groups import parse_window
from jaxreflow.run.data import held_out_batches, training_batches
from jaxreflow.run.directory import CONFIG_FILE, check_directory, claim_directory, restore, run_identity
from jaxreflow.run.dry_run import dry_run
from jaxreflow.run.flags import load_config, read_settings
from jaxreflow.run.loop import Cadence, Callbacks, fit, mean_scores
from jaxreflow.run.monitor import action_units, make_error_step, root_errors
from jaxreflow.run.programs import MeasureLoss, Weights, exported_params, make_update, networks_of, split_weights
from jaxreflow.run.record.cameras import CAMERAS, camera_views, write_views
from jaxreflow.run.record.metrics import MetricsLog, last_logged
from jaxreflow.run.record.profiling import ProfileWindow
from jaxreflow.run.record.provenance import provenance, write_provenance
from jaxreflow.run.record.trackers import Tracking, open_tracker
from jaxreflow.run.setup import Setup, set_up, set_up_devices
from jaxreflow.run.start import ACTION_NAMES
from jaxreflow.run.supervision import Interrupted, StopRequest, Watchdog
from jaxreflow.support import processes
from jaxreflow.support.command_line import choose, first_sentence, print_error, without_debug
from jaxreflow.support.console import console_log
from jaxreflow.support.installation import as_typed
from jaxreflow.support.jax_errors import explained
from jaxreflow.support.storage import AnyPath, as_path
from jaxreflow.training.step import TrainState

OUT_OF_MEMORY = (
    "lower --batch-size, or compute it in more parts with --accumulate; --dry-run says how much an update needs"
)
CONFIGS = Path(__file__).parent / "configs"
log = logging.getLogger("jaxreflow.train")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one config by name; 0 if it ran to its end, 1 after an error, 2 for wrong usage, 128 + n if signal n stopped it."""
    args, debug = without_debug(argv)
    files = {path.stem: path for path in sorted(CONFIGS.glob("*.py")) if path.stem != "__init__"}
    sentences = {name: first_sentence(path) for name, path in files.items()}
    name, flags = choose(args, sentences, prog="train.py", about=__doc__ or "")
    try:
        with console_log(), explained(OUT_OF_MEMORY):
            config = read_settings(files[name], flags)
            processes.connect(config.distributed)
            with processes.failing_together():
                check_push(config)
                if config.dry_run:
                    dry_run(config)
                else:
                    train(config)
    except Interrupted as stop:
        if processes.is_first():
            again = shlex.join([name, "--output-dir", str(config.output_dir), "--resume"])
            print(as_typed(f"{stop}; go on with: train.py {again}"), file=sys.stderr)
        return 128 + stop.signal
    except JaxReflowError as error:
        if debug:
            raise
        print_error(error)
        return 1
    return 0


def train(config: RunConfig) -> None:
    """A run and what follows it: the report, and the hub if that is wished."""
    if isinstance(config, DemoConfig):
        run_demo(config)
    else:
        run(config)
        report(config)
    push(config)


def run(config: RunConfig) -> None:
    """One run from its settings to its last checkpoint."""
    mesh, run_dir = set_up_devices(config), check_directory(config)
    log.info("devices: %d x %s, processes: %d", mesh.size, jax.devices()[0].device_kind, jax.process_count())
    setup = set_up(config, mesh, run_dir)
    log_data(setup)
    weights = split_weights(config, setup.saved, mesh)
    log_parameters(config, setup.saved, weights)
    start, update, measure_loss = make_update(config, setup.saved, weights, mesh)

    # ---- the state: at its start, or as the last checkpoint left it
    store = CheckpointStore(run_dir / "checkpoints", keep=config.keep or None, keep_every=config.keep_every or None)
    state = restore(store, start, run_identity(setup.saved, setup.dataset))
    first = int(state.step)
    if first >= config.steps:
        log.info("%s is complete after update %d; raise --steps to go on", run_dir, first)
        return
    log.info("updates %d to %d", first + 1, config.steps)
    batches = training_batches(setup.data, config, first)
    claim_directory(config, run_dir)

    # ---- the loop; a checkpoint that it began is finished even if it fails
    score = make_score(config, setup, weights, measure_loss)
    save = make_save(config, setup, weights, store)
    cadence = Cadence(config.steps, config.log_every, config.eval_every, config.save_every)
    with (
        contextlib.closing(store),
        contextlib.closing(batches),
        open_tracker(config.tracker, run_dir, start=first, logged=last_logged(run_dir)) as tracking,
        MetricsLog(run_dir, start=first, steps=config.steps, tracking=tracking) as metrics,
        ProfileWindow(run_dir, parse_window(config.profile, config.steps), start=first) as profile,
        StopRequest() as stop,
        Watchdog(config.step_timeout) as watchdog,
    ):
        state = fit(
            state,
            profile.watch(update),
            log_start(config, setup.saved, batches, first, run_dir, tracking),
            mesh,
            cadence,
            metrics,
            Callbacks(score, save, stop.made, watchdog.heard),
            skip_nonfinite=config.skip_nonfinite,
        )
    done = int(state.step)
    if done < config.steps:
        raise Interrupted(stop.signal, f"stopped by {stop.name} after update {done}, which is saved")
    log.info("policy after update %d: %s", done, newest_policy(store.directory))


def make_score(
    config: RunConfig, setup: Setup, weights: Weights, measure_loss: MeasureLoss
) -> Callable[[TrainState], dict[str, float]]:
    """The evaluation of a state on held-out episodes: the loss, and errors of its chunks; nothing where none are held out."""
    units = action_units(setup.data.transforms, setup.data.action_names)
    measure_errors = make_error_step(config, setup.saved, weights, setup.mesh, units)

    def score(state: TrainState) -> dict[str, float]:
        if not setup.data.held_out:
            return {}
        exported = exported_params(config, state, weights, setup.mesh)

        def sums(batch: Batch, index: int) -> dict[str, tuple[Array, Array]]:
            return {"held_out_loss": measure_loss(exported, batch, index), **measure_errors(exported, batch, index)}

        return root_errors(mean_scores(sums, held_out_batches(setup.data, config), setup.mesh))

    return score


def make_save(
    config: RunConfig, setup: Setup, weights: Weights, store: CheckpointStore
) -> Callable[[int, TrainState], None]:
    """Writes the state after an update, and the policy that it makes, as a checkpoint."""
    settings, identity = dataclasses.asdict(config), run_identity(setup.saved, setup.dataset)

    def save(step: int, state: TrainState) -> None:
        meta = {**identity, "step": step, "examples": step * config.batch_size, "seed": config.seed, "config": settings}
        exported = jax.device_get(exported_params(config, state, weights, setup.mesh))
        # What a policy's folder tells of its making, also where the run is not around it.
        recorded = {**settings, "source": identity["source"], "update": step, ACTION_NAMES: setup.data.action_names}

        def write_policy(out: AnyPath) -> None:
            save_pretrained(out, setup.saved, exported, num_steps=config.num_steps, train_config=recorded)

        store.save(step, state, meta, write_policy)

    return save


def report(config: RunConfig) -> None:
    """Compares a finished student with its teacher, unless that is done or not wished."""
    distillation = config.distillation
    if distillation is None or not distillation.report or not processes.is_first():
        return
    run_dir = as_path(str(config.output_dir))
    student = newest_policy(run_dir / "checkpoints")
    if not (student / REPORT_HTML).exists():
        log.info("comparing the student with its teacher on held-out episodes")
        log.info("\n%s\n", format_report(compare_run(distillation, run_dir).report))
    log.info("report: %s", student / REPORT_HTML)


def push(config: RunConfig) -> None:
    """Publishes a finished run's policy, if that is wished."""
    if config.push_to_hub and processes.is_first():
        log.info("pushing the policy to %s", config.push_to_hub)
        log.info("pushed: %s", push_run(config))


def run_demo(config: DemoConfig) -> None:
    """The demo: the teacher if wished, the student, and the report on both."""
    assert config.output_dir is not None
    run_dir = Path(config.output_dir)
    if config.from_scratch:
        teacher_dir = run_dir.with_name(run_dir.name + "_teacher")
        resume = (teacher_dir / CONFIG_FILE).exists()
        own = load_config(CONFIGS / "demo_teacher.py").config
        run(dataclasses.replace(own, output_dir=str(teacher_dir), resume=resume))
        teacher = str(newest_policy(teacher_dir / "checkpoints"))
        config = dataclasses.replace(config, teacher=TeacherSource(path=teacher))
    run(config)
    log.info("\n%s\n", write_demo_report(config, run_dir))
    log.info("report and pictures: %s", run_dir / "report")
    log.info("student: %s (docs/lerobot.md says how LeRobot loads it)", newest_policy(run_dir / "checkpoints"))


def log_data(setup: Setup) -> None:
    """Says what is trained on and what is held out."""
    dataset, held_out = setup.dataset, ", ".join(map(str, setup.data.held_out_episodes)) or "none"
    log.info("dataset: %d frames in %d episodes, held out: %s", dataset.num_frames, len(dataset.episodes), held_out)


def log_start(
    config: RunConfig,
    saved: SavedPolicy,
    batches: Iterator[Batch],
    first: int,
    run_dir: AnyPath,
    tracking: Tracking,
) -> Iterator[Batch]:
    """Writes down what the run is made of, and, at its beginning, what its cameras show; the same batches."""
    if not processes.is_first():
        return batches
    record = provenance(config, first)
    write_provenance(run_dir, record)
    tracking.facts(first, "provenance", record)
    if first:
        return batches
    batch = next(batches)
    views = camera_views(batch.observation.images, config.dataset.image_transforms, config=saved.config)
    write_views(views, run_dir)
    for key, view in views.items():
        tracking.image(0, f"{CAMERAS}/{key}", view)
    log.info(
        "cameras as the network gets them: %s", run_dir / CAMERAS if views else "none, their image tokens are cached"
    )
    return itertools.chain([batch], batches)


def log_parameters(config: RunConfig, saved: SavedPolicy, weights: Weights) -> None:
    """Says how many parameters the policy has and how many are trained."""
    total = count_parameters(expected_tensors(saved.config))
    trained = sum(leaf.size for leaf in jax.tree.leaves(weights.start))
    log.info("policy: %s parameters, %s trainable (%.2f %%)", f"{total:,}", f"{trained:,}", 100 * trained / total)
    if config.lora.rank:
        kernels = len(jax.tree.leaves(weights.base))
        log.info("LoRA: adapters of rank %d for %d linear layers, exported merged", config.lora.rank, kernels)
    if config.distils:
        log.info("student = teacher, loaded once: %s", saved.directory)
        if not networks_of(saved).share_context(weights.start):
            log.info(
                "teacher and student each encode the observation: the student's VLM is trained, or it sees otherwise"
            )


if __name__ == "__main__":
    sys.exit(main())
