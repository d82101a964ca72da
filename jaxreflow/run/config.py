"""What a training run is asked to do: frozen dataclasses, of which configs/ makes runs; tyro makes the flags."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from jaxreflow.errors import ConfigError
from jaxreflow.flow import REDUCTIONS
from jaxreflow.run.config_groups import (
    DatasetConfig,
    OptimizerFlags,
    PolicySource,
    StudentConfig,
    TeacherSource,
    check_choice,
    check_numbers,
    flag_of,
    parse_window,
)
from jaxreflow.run.trainable import adapters_of, check_trainable, whole_parts
from jaxreflow.support.option import option
from jaxreflow.support.storage import check_path
from jaxreflow.support.tyro_rules import RenameMap
from jaxreflow.training.experimental import OBJECTIVES, SOLVERS, TIME_LAWS, real_noises
from jaxreflow.training.lora import LoraConfig

__all__ = [
    "DatasetConfig",
    "FinetuneConfig",
    "OptimizerFlags",
    "PolicySource",
    "ReflowConfig",
    "RunConfig",
    "StudentConfig",
    "TeacherSource",
]


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What every run has."""

    source_flag: ClassVar[str] = "--policy.path (or --policy.new)"
    output_dir: str | None = option(None, may_change=True)
    """Directory of this run, which may be gs://; must not hold another."""
    resume: bool = option(False, may_change=True)
    """Continue the run in --output-dir exactly; settings come from there."""
    dry_run: bool = option(False, may_change=True)
    """Say what the run would do, on what and in how much memory; train and write nothing."""
    for_memory: float | None = option(None, may_change=True)
    """With --dry-run: GiB of each device for which the largest batch size is sought (default: the devices at hand)."""
    steps: int = option(20_000, may_change=True)
    """Updates."""
    batch_size: int = option(32, label="observations per update")
    """Observations per update, over all devices and microbatches."""
    seed: int = option(0, label="seed")
    """Of everything random."""
    dataset: DatasetConfig = dataclasses.field(default_factory=DatasetConfig)
    rename_map: RenameMap = option(factory=dict, section="data")
    """Dataset names to policy names, such as '{"observation.images.front": "observation.images.camera1"}'."""
    stats_from: str | None = option(None, section="data")
    """Statistics to normalise by: those of the `dataset`, of the `policy` to start from, or of a FILE (stats.json, safetensors)."""
    vlm: str | None = option(None, section="data", may_change=True)
    """Directory of the VLM's config and tokenizer (default: the policy's vlm/ folder, else its vlm_model_name)."""
    vision_positions: Literal["exact", "shifted"] = option("exact", section="data")
    """Position ids of the vision tower, as the LeRobot set-up that will act has them."""
    num_workers: int = option(0, section="data", may_change=True)
    """Processes that read data; 0: a thread."""
    noises: int = option(1, section="update", label="noises per observation")
    """Noise draws per observation, M."""
    ema_decay: float = option(0.0, section="update")
    """Decay of the moving average of weights; 0: none."""
    dtype: Literal["float32", "bfloat16"] = option("float32", section="update", label="computed in")
    """Compute dtype; weights are trained in float32."""
    skip_nonfinite: int = option(0, section="update", may_change=True)
    """Updates whose loss or gradient may be not finite; they change nothing."""
    optimizer: OptimizerFlags = dataclasses.field(default_factory=OptimizerFlags)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    accumulate: int = option(1, section="device", may_change=True)
    """Microbatches per update."""
    fsdp: int = option(1, section="device", may_change=True)
    """Devices over which trained parameters, optimizer state and moving average are split."""
    reduce_dtype: Literal["float32", "bfloat16"] = option("float32", section="device")
    """Dtype in which devices send each other their gradients, once per update."""
    distributed: str = option("off", section="device", may_change=True)
    """Processes of this run: off (this one alone), auto (as SLURM, Cloud TPU, Kubernetes or Open MPI say), or HOST:PORT,N,I:
    process I of N, the first of which listens at HOST:PORT."""
    step_timeout: float = option(1_800.0, section="device", may_change=True)
    """Seconds for an update, an evaluation or a checkpoint, after which the run ends with every thread's stack; 0: no limit."""
    log_every: int = option(50, section="record", may_change=True)
    """Updates between metrics."""
    eval_every: int = option(500, section="record", may_change=True)
    """Updates between evaluations on held-out episodes."""
    eval_batches: int = option(8, section="record", may_change=True)
    """Batches per evaluation."""
    save_every: int = option(2_000, section="record", may_change=True)
    """Updates between checkpoints; the last update is always saved."""
    keep: int = option(3, section="record", may_change=True)
    """Newest checkpoints that are kept; 0: all."""
    keep_every: int = option(0, section="record", may_change=True)
    """Keep every checkpoint whose step is a multiple of this, too; 0: none."""
    export: Literal["ema", "raw"] = option("ema", section="record")
    """Weights that are evaluated and exported: the moving average where there is one, or the raw ones."""
    num_steps: int | None = option(None, section="record")
    """Euler steps that the exported policy takes (default: as the policy)."""
    tracker: Literal["none", "tensorboard", "wandb"] = option("none", section="record", may_change=True)
    """Where metrics, cameras and settings go besides RUN/metrics.jsonl: event files in RUN/tensorboard, or Weights & Biases."""
    profile: str | None = option(None, section="record", may_change=True)
    """START,N: trace N updates from update START on into RUN/profile, for XProf."""
    push_to_hub: str | None = option(None, section="hub", may_change=True)
    """USER/NAME of a hub repository to which the finished policy is pushed, with a model card; it is made if it is not there."""
    private: bool = option(False, section="hub", may_change=True)
    """With --push-to-hub: the repository is private."""
    time_law: str = option("beta", section="experimental", label="law of t")
    """Law of t: beta (LeRobot's), uniform, u-shaped, exponential, discrete (1 or 1/2), noise-biased (Beta(4, 1)); or half the
    mass at exactly 1 and the rest u-shaped (half-at-one), half-at-one-beta or half-at-one-exponential."""

    def __post_init__(self) -> None:
        check_path("--output-dir", self.output_dir, schemes=("gs",), reason="where Orbax cannot write checkpoints")
        for name in ("stats_from", "vlm"):
            check_path(flag_of(name), getattr(self, name), schemes=())
        every = ("save_every", "log_every", "eval_every")
        counts = ("steps", "batch_size", "accumulate", "noises", "eval_batches", "num_steps", *every)
        check_numbers(self, counts, at_least=1)
        check_numbers(self, ("keep", "keep_every", "num_workers", "seed", "step_timeout", "skip_nonfinite"), at_least=0)
        if self.for_memory is not None and not 0 < self.for_memory < float("inf"):
            raise ConfigError(f"--for-memory must be a positive number of GiB, found {self.for_memory:g}")
        for name, subject in (("private", "push_to_hub"), ("for_memory", "dry_run")):
            if getattr(self, name) and not getattr(self, subject):
                raise ConfigError(
                    f"{flag_of(name)} is about {flag_of(subject)}, which is missing: give both or neither"
                )
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"--ema-decay must lie in [0, 1), found {self.ema_decay}")
        if self.num_workers and self.dataset.cache_frames:
            raise ConfigError(
                f"--dataset.cache-frames needs --num-workers 0, found {self.num_workers}: each process would decode and "
                "hold all frames of its own, and one thread is enough to read them from memory"
            )
        check_choice("--time-law", self.time_law, TIME_LAWS)
        parse_window(self.profile, self.steps)

    @property
    def source(self) -> TeacherSource | PolicySource:
        """The policy that the run starts from."""
        raise NotImplementedError

    @property
    def starts_new(self) -> bool:
        """Whether the run makes the policy that it starts from."""
        return False

    @property
    def distillation(self) -> ReflowConfig | None:
        """These settings, if the run has a teacher, as which its student starts."""
        return None

    @property
    def distils(self) -> bool:
        """Whether it has one."""
        return self.distillation is not None

    @property
    def trained_parts(self) -> tuple[str, ...] | None:
        """Parts of the network that are trained themselves, of `model.params.PARTS`; None: what the policy's config says."""
        return None

    @property
    def adapters(self) -> LoraConfig:
        """`lora`, with the layers that are adapted."""
        return self.lora

    @property
    def times_per_noise(self) -> int:
        """Times t for each noise of an observation."""
        return 1

    @property
    def reported_task(self) -> str | None:
        """The task whose first frames the report at the run's end looks at, if it makes one."""
        return None

    def missing(self) -> str | None:
        """What the run cannot do without and was not given, as an error."""
        if not self.source.path and not self.starts_new:
            return f"{self.source_flag} is missing: the directory or hub name of a policy in LeRobot's layout"
        if not self.dataset.root and not self.dataset.repo_id:
            return (
                "--dataset.root is missing: the directory of a LeRobotDataset, or --dataset.repo-id with its hub name"
            )
        return None


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(RunConfig):
    """Flow matching on recorded actions, as LeRobot trains."""

    policy: PolicySource = dataclasses.field(default_factory=PolicySource)
    loss_compat: str = option("lerobot-main", section="update")
    """Reduction of the loss: lerobot-main (real dims, padding masked) or lerobot-0.4.4 (everything)."""
    stats_from: str | None = "dataset"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("--loss-compat", self.loss_compat, REDUCTIONS)
        if self.policy.new and self.lora.rank:
            raise ConfigError(
                "--policy.new and --lora.rank exclude each other: of a new policy's random weights adapters make none that "
                "act; leave one of the two out"
            )

    @property
    def source(self) -> PolicySource:
        return self.policy

    @property
    def starts_new(self) -> bool:
        return self.policy.new


@dataclasses.dataclass(frozen=True)
class ReflowConfig(RunConfig):
    """Distils a teacher into a student of one or two steps: flow matching on its (noise, endpoint) pairs."""

    source_flag: ClassVar[str] = "--teacher.path"
    teacher: TeacherSource = dataclasses.field(default_factory=TeacherSource)
    student: StudentConfig = dataclasses.field(default_factory=StudentConfig)
    teacher_steps: int = option(10, section="update")
    """Steps of the teacher's solver, whatever number its config.json names: a student's names its own."""
    teacher_solver: str = option("euler", section="experimental")
    """Solver of the teacher's flow: euler (as it is deployed) or heun (second order, two evaluations a step)."""
    objective: str = option("mse", section="experimental")
    """What is minimised of the velocity's error: mse, or pseudo-huber (its norm over a chunk, smooth at zero)."""
    loss_dims: Literal["padded", "real"] = option("padded", section="experimental")
    """Action dims that the loss covers: all that the sampler integrates, or the real ones; noise and endpoint stay whole."""
    times: int = option(1, section="experimental", label="times per pair", unsaid=1)
    """Times t at which each pair is looked at; the teacher integrates once for all of them."""
    real_share: float = option(0.0, section="experimental", label="share of recorded actions", unsaid=0.0)
    """Share of pairs that are recorded actions with the noise that the teacher's flow leads to them; a multiple of 1/--noises."""
    trainable: str | None = option(None, section="update")
    """What is trained: expert (with the projections) and, joined by +, connector, language and vision, each with :lora if by
    adapters; or as-policy, what the policy's config says (default: expert; with a network of its own expert+connector+language;
    with --lora.rank adapters of --lora.targets alone)."""
    stats_from: str | None = "policy"
    noises: int = 4
    time_law: str = "half-at-one"
    optimizer: OptimizerFlags = dataclasses.field(
        default_factory=lambda: OptimizerFlags(lr=1e-4, warmup_steps=500, decay_steps=20_000, decay_lr=2.5e-6)
    )
    ema_decay: float = 0.999
    num_steps: int | None = 1
    report: bool = option(True, section="comparison", may_change=True)
    """At the end compare the student with its teacher on held-out episodes: report.json and report.html beside its weights."""
    early_task: str | None = option(None, section="comparison", may_change=True)
    """For the report: a task whose first frames leave several ways open."""
    eval_frames: int = option(192, section="comparison", may_change=True)
    """For the report: held-out frames, spread evenly."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, ("eval_frames", "teacher_steps", "times"), at_least=1)
        check_choice("--teacher-solver", self.teacher_solver, SOLVERS)
        check_choice("--objective", self.objective, OBJECTIVES)
        check_trainable(self.trainable, self.lora)
        self.dataset.check_cache("--student.features", self.student.features)
        real_noises(self.real_share, self.noises)

    @property
    def source(self) -> TeacherSource:
        return self.teacher

    @property
    def distillation(self) -> ReflowConfig:
        return self

    @property
    def trained_parts(self) -> tuple[str, ...] | None:
        return whole_parts(self.trainable, self.lora, compact=self.student.is_compact)

    @property
    def adapters(self) -> LoraConfig:
        return adapters_of(self.trainable, self.lora)

    @property
    def times_per_noise(self) -> int:
        return self.times

    @property
    def reported_task(self) -> str | None:
        return self.early_task if self.report else None

    @property
    def real_noises(self) -> int:
        """How many of an observation's noises are inverted from its recorded actions."""
        return real_noises(self.real_share, self.noises)

    def reference_steps(self, own_steps: int) -> int:
        """Euler steps of the sampler that the student imitates; the teacher's own number where another solver made its pairs."""
        return self.teacher_steps if self.teacher_solver == "euler" else own_steps
