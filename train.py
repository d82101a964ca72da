"""Trains a policy: `python train.py NAME [flags]` runs configs/NAME.py with its settings overridden by the flags.

python train.py reflow   --teacher.path DIR_OR_HUB_ID --dataset.root DIR --output-dir RUN
python train.py finetune --policy.path  DIR_OR_HUB_ID --dataset.root DIR --output-dir RUN
python train.py reflow   --output-dir RUN --resume
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import itertools
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import jax
import tyro
from jaxtyping import Array
from tqdm.contrib.logging import logging_redirect_tqdm

from jaxreflow import distributed
from jaxreflow.camera_views import CAMERAS, camera_views, write_views
from jaxreflow.checkpoint import CheckpointStore, newest_policy
from jaxreflow.compilation import use_compilation_cache
from jaxreflow.data.features import check_vision_frozen
from jaxreflow.data.lerobot import LeRobotDataset
from jaxreflow.demo import DemoConfig, write_demo_report
from jaxreflow.errors import ConfigError, JaxReflowError
from jaxreflow.evaluate import REPORT_HTML, evaluate_run
from jaxreflow.evaluation.frames import early_positions
from jaxreflow.evaluation.monitor import action_units, make_error_step, root_errors
from jaxreflow.evaluation.table import format_report
from jaxreflow.loop import Cadence, fit, mean_scores
from jaxreflow.metrics import MetricsLog, last_logged
from jaxreflow.new_policy import create_policy
from jaxreflow.pretrained import Checkpoint, load_checkpoint, save_pretrained
from jaxreflow.profiling import ProfileWindow
from jaxreflow.provenance import provenance, write_provenance
from jaxreflow.run_config import FREE_FIELDS, FinetuneConfig, PolicySource, ReflowConfig, RunConfig, TeacherSource
from jaxreflow.run_data import (
    RunData,
    held_out_batches,
    open_dataset,
    open_run_features,
    split_data,
    training_batches,
)
from jaxreflow.run_directory import (
    CONFIG_FILE,
    check_directory,
    check_resumable,
    claim_directory,
    read_config,
    restore,
    run_identity,
)
from jaxreflow.sharding import check_batch_size, make_mesh
from jaxreflow.storage import AnyPath, as_path, is_taken
from jaxreflow.supervision import Interrupted, StopRequest, Watchdog
from jaxreflow.trackers import Tracking, check_tracker, open_tracker
from jaxreflow.training import TrainState, shares_context
from jaxreflow.types import Batch
from jaxreflow.update import Weights, exported_params, make_update, split_weights
from jaxreflow.weights import count_parameters, expected_tensors

CONFIGS = Path(__file__).parent / "configs"
log = logging.getLogger("jaxreflow.train")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one config by name; 0 if it ran to its end, 1 after an error, 2 for wrong usage, 128 + n if signal n stopped it."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    names = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "__init__")
    if not args or args[0] not in names:
        wanted = args[0] if args else "nothing"
        print(
            f"usage: train.py {{{','.join(names)}}} [flags], found {wanted}; `train.py NAME --help` lists the flags",
            file=sys.stderr,
        )
        return 0 if args and args[0] in ("-h", "--help") else 2
    try:
        with console_log():
            config = parse(args[0], args[1:])
            distributed.connect(config.distributed)
            with distributed.failing_together():
                if isinstance(config, DemoConfig):
                    run_demo(config)
                else:
                    run(config)
                    report(config)
    except Interrupted as stop:
        if distributed.is_first():
            again = shlex.join([args[0], "--output-dir", str(config.output_dir), "--resume"])
            print(f"{stop}; go on with: train.py {again}", file=sys.stderr)
        return 128 + stop.signal
    except JaxReflowError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def console_log() -> Iterator[None]:
    """Shows the package's log lines, above the progress bar if there is one."""
    logger, handler = logging.getLogger("jaxreflow"), logging.StreamHandler()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        with logging_redirect_tqdm([logger]):
            yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def load_config(name: str) -> ModuleType:
    """The module configs/NAME.py, by its file: the folder is no package of an installed jaxreflow."""
    spec = importlib.util.spec_from_file_location(f"configs.{name}", CONFIGS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(name: str, args: Sequence[str]) -> RunConfig:
    """The settings in configs/NAME.py under the flags; a resumed run's own settings under the flags."""
    module = load_config(name)

    def flags(default: RunConfig) -> RunConfig:
        return tyro.cli(
            type(default), default=default, args=list(args), prog=f"train.py {name}", description=module.__doc__
        )

    config = flags(module.config)
    if not config.output_dir:
        raise ConfigError("--output-dir is missing: the directory in which the run is to be kept")
    if config.resume:
        saved = read_config(type(config), as_path(config.output_dir) / CONFIG_FILE)
        config = flags(saved)
        check_resumable(saved, config)
    return config


def run(config: RunConfig) -> None:
    """One run from its settings to its last checkpoint."""
    # ---- where: the devices, and a directory that holds no other run
    use_compilation_cache()
    distributed.check_connected()
    mesh = make_mesh(config.fsdp)
    check_batch_size(config.batch_size, config.accumulate, mesh)
    check_tracker(config.tracker)
    run_dir = check_directory(config)
    log.info("devices: %d x %s, processes: %d", mesh.size, jax.devices()[0].device_kind, jax.process_count())

    # ---- the data, and the policy to start from
    dataset = open_dataset(config.dataset)
    checkpoint = open_checkpoint(config, dataset, run_dir)
    features = open_run_features(config, checkpoint, dataset)
    data = split_data(dataset, checkpoint.policy, checkpoint.load_transforms(), config, features)
    log_data(dataset, data)
    if isinstance(config, ReflowConfig) and config.report and config.early_task and data.held_out:
        early_positions(data.held_out, config.early_task, 1)  # Names the tasks now if there is none of this name.

    # ---- the update: what is trained, by which loss and optimizer
    weights = split_weights(config, checkpoint, mesh)
    if features is not None:
        check_vision_frozen(weights.start)
    log_parameters(config, checkpoint, weights)
    init, train_step, eval_step = make_update(config, checkpoint, weights, mesh)

    # ---- the state: at its start, or as the last checkpoint left it
    store = CheckpointStore(run_dir / "checkpoints", keep=config.keep or None, keep_every=config.keep_every or None)
    identity = run_identity(checkpoint, dataset)
    state = restore(store, init, identity)
    first = int(state.step)
    if first >= config.steps:
        log.info("%s is complete after update %d; raise --steps to go on", run_dir, first)
        return
    log.info("updates %d to %d", first + 1, config.steps)
    batches = training_batches(data, config, first)
    claim_directory(config, run_dir)

    units = action_units(data.transforms, data.action_names)
    error_step = make_error_step(config, checkpoint, weights, mesh, units)

    def evaluate(state: TrainState) -> dict[str, float]:
        if not data.held_out:
            return {}

        exported = exported_params(config, state, mesh)

        def scores(batch: Batch, index: int) -> dict[str, tuple[Array, Array]]:
            return {"held_out_loss": eval_step(exported, batch, index), **error_step(exported, batch, index)}

        return root_errors(mean_scores(scores, held_out_batches(data, config), mesh))

    def save(step: int, state: TrainState) -> None:
        settings = dataclasses.asdict(config)
        meta = {**identity, "step": step, "examples": step * config.batch_size, "seed": config.seed, "config": settings}
        exported = jax.device_get(exported_params(config, state, mesh))
        store.save(
            step,
            state,
            meta,
            lambda out: save_pretrained(out, checkpoint, exported, num_steps=config.num_steps, train_config=settings),
        )

    # ---- the loop; a checkpoint that it began is finished even if it fails
    cadence = Cadence(config.steps, config.log_every, config.eval_every, config.save_every)
    with (
        contextlib.closing(store),
        contextlib.closing(batches),
        open_tracker(config.tracker, run_dir, start=first, logged=last_logged(run_dir)) as tracking,
        MetricsLog(run_dir, start=first, steps=config.steps, tracking=tracking) as metrics,
        ProfileWindow(run_dir, config.profile_window, start=first) as profile,
        StopRequest() as stop,
        Watchdog(config.step_timeout) as watchdog,
    ):
        state = fit(
            state,
            profile.watch(train_step),
            log_start(config, checkpoint, batches, first, run_dir, tracking),
            mesh,
            cadence,
            metrics,
            batch_size=config.batch_size,
            evaluate=evaluate,
            save=save,
            stop=stop.made,
            heard=watchdog.heard,
            skip_nonfinite=config.skip_nonfinite,
        )
    done = int(state.step)
    if done < config.steps:
        raise Interrupted(stop.signal, f"stopped by {stop.name} after update {done}, which is saved")
    log.info("policy after update %d: %s", done, newest_policy(store.directory))


def report(config: RunConfig) -> None:
    """Compares a finished student with its teacher, unless that is done or not wished."""
    if not isinstance(config, ReflowConfig) or not config.report or not distributed.is_first():
        return
    run_dir = as_path(str(config.output_dir))
    student = newest_policy(run_dir / "checkpoints")
    if not (student / REPORT_HTML).exists():
        log.info("comparing the student with its teacher on held-out episodes")
        log.info("\n%s\n", format_report(evaluate_run(config, run_dir).report))
    log.info("report: %s", student / REPORT_HTML)


def run_demo(config: DemoConfig) -> None:
    """The demo: the teacher if wished, the student, and the report on both."""
    assert config.output_dir is not None
    run_dir = Path(config.output_dir)
    if config.from_scratch:
        teacher_dir = run_dir.with_name(run_dir.name + "_teacher")
        resume = (teacher_dir / CONFIG_FILE).exists()
        run(dataclasses.replace(load_config("demo_teacher").config, output_dir=str(teacher_dir), resume=resume))
        teacher = str(teacher_dir / "checkpoints" / "last" / "pretrained_model")
        config = dataclasses.replace(config, teacher=TeacherSource(path=teacher))
    run(config)
    log.info("\n%s\n", write_demo_report(config, run_dir))
    log.info("report and pictures: %s", run_dir / "report")
    log.info(
        "student: %s (docs/lerobot.md says how LeRobot loads it)", run_dir / "checkpoints" / "last" / "pretrained_model"
    )


def open_checkpoint(config: RunConfig, dataset: LeRobotDataset, run_dir: AnyPath) -> Checkpoint:
    """The policy that the run starts from; a new one is first written into the run's directory."""
    source: TeacherSource | PolicySource
    if isinstance(config, ReflowConfig):
        source, flag = config.teacher, "--teacher.path"
    else:
        assert isinstance(config, FinetuneConfig)
        source, flag = config.policy, "--policy.path (or --policy.new)"
    path = source.path
    if isinstance(source, PolicySource) and source.new:
        initial = run_dir / "initial_policy"
        path = str(initial)
        if distributed.is_first() and not is_taken(initial):
            new = dataclasses.replace(source, vlm=source.vlm or config.vlm)
            create_policy(initial, new, dataset, rename_map=config.rename_map, seed=config.seed)
        distributed.wait_for_all("the new policy")
    if not path:
        raise ConfigError(f"{flag} is missing: the directory or hub name of a policy in LeRobot's layout")
    checkpoint = load_checkpoint(
        path,
        revision=source.revision,
        vlm=config.vlm,
        dtype=config.dtype,
        vision_positions=config.vision_positions,
        stats_from=config.stats_from,
        dataset_stats=dataset.stats,
        rename_map=config.rename_map or None,
    )
    if isinstance(config, FinetuneConfig) and not config.policy.new:
        changed = config.policy.apply(checkpoint.policy)
        fixed = [
            n for n, value in vars(changed).items() if n not in FREE_FIELDS and value != getattr(checkpoint.policy, n)
        ]
        if fixed:
            raise ConfigError(
                f"--policy.{fixed[0].replace('_', '-')} differs from {path}'s, whose weights were made for its own; "
                "leave it out, or make a new policy with --policy.new"
            )
        checkpoint = dataclasses.replace(checkpoint, policy=changed)
    return checkpoint


def log_data(dataset: LeRobotDataset, data: RunData) -> None:
    """Says what is trained on and what is held out."""
    held_out = ", ".join(map(str, data.held_out_episodes)) or "none"
    log.info("dataset: %d frames in %d episodes, held out: %s", dataset.num_frames, len(dataset.episodes), held_out)


def log_start(
    config: RunConfig,
    checkpoint: Checkpoint,
    batches: Iterator[Batch],
    first: int,
    run_dir: AnyPath,
    tracking: Tracking,
) -> Iterator[Batch]:
    """Writes down what the run is made of, and, at its beginning, what its cameras show; the same batches."""
    if not distributed.is_first():
        return batches
    record = provenance(config, first)
    write_provenance(run_dir, record)
    tracking.facts(first, "provenance", record)
    if first:
        return batches
    batch = next(batches)
    views = camera_views(batch.observation.images, config=checkpoint.config)
    write_views(views, run_dir)
    for key, view in views.items():
        tracking.image(0, f"{CAMERAS}/{key}", view)
    log.info(
        "cameras as the network gets them: %s", run_dir / CAMERAS if views else "none, their image tokens are cached"
    )
    return itertools.chain([batch], batches)


def log_parameters(config: RunConfig, checkpoint: Checkpoint, weights: Weights) -> None:
    """Says how many parameters the policy has and how many are trained."""
    total = count_parameters(expected_tensors(checkpoint.config))
    trained = sum(leaf.size for leaf in jax.tree.leaves(weights.start))
    log.info("policy: %s parameters, %s trainable (%.2f %%)", f"{total:,}", f"{trained:,}", 100 * trained / total)
    if isinstance(config, ReflowConfig):
        log.info("student = teacher, loaded once: %s", checkpoint.directory)
        if not shares_context(weights.start):
            log.info("the VLM is trained: teacher and student each encode the observation")


if __name__ == "__main__":
    sys.exit(main())
