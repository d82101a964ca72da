"""Students made with the mistakes of an earlier attempt fail, by the name of what is wrong; a rightly made one passes.

The mistakes live here only: the update is the real one, its loss and its noise are this file's.
"""

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxreflow import flow
from jaxreflow.evaluate.checks import Thresholds
from jaxreflow.evaluate.measure import Training, measure
from jaxreflow.evaluate.measures.consistency import find_run, last_update
from jaxreflow.evaluate.sampling import Candidate, Trial, make_subject
from jaxreflow.evaluate.settings import Settings
from jaxreflow.evaluate.verdict import judge
from jaxreflow.model import memorise, observe, velocity
from jaxreflow.model.params import merge_params
from jaxreflow.policy.saved import SavedPolicy, load_saved_policy, save_pretrained
from jaxreflow.run.config import DatasetConfig, OptimizerFlags, ReflowConfig, TeacherSource
from jaxreflow.run.data import open_dataset, split_data, training_batches
from jaxreflow.run.programs import split_weights
from jaxreflow.support.mesh import make_mesh, shard_batch, sharded_copy
from jaxreflow.training import experimental
from jaxreflow.training.optimizer import make_optimizer, make_schedule
from jaxreflow.training.step import init_state, make_draw, make_train_step
from tests.tiny_policy import DATASET

TEACHER = Path(__file__).parent / "assets" / "teacher"
UPDATES = 60
CONFIG = ReflowConfig(
    teacher=TeacherSource(str(TEACHER)),
    dataset=DatasetConfig(root=str(DATASET), episodes=tuple(range(0, 240, 12)), holdout=0.2),
    steps=UPDATES,
    batch_size=8,
    noises=1,
    optimizer=OptimizerFlags(lr=1e-3, warmup_steps=10, decay_steps=UPDATES, decay_lr=1e-5),
    ema_decay=0.0,
)


@dataclasses.dataclass(frozen=True)
class Mistake:
    """What is done wrongly, as factors: of the noise and of the teacher's endpoint in the padded dims, and of its direction."""

    noise: float = 1.0
    endpoint: float = 1.0
    direction: float = 1.0


MISTAKES = {
    "none": Mistake(),
    "noise on real dims only": Mistake(noise=0.0),
    "endpoint cut to real dims": Mistake(endpoint=0.0),
    "wrong direction": Mistake(direction=-1.0),
}
CAUGHT_BY = {
    "noise on real dims only": {"loss consistency", "velocity error"},
    "endpoint cut to real dims": {"loss consistency"},
    "wrong direction": {"loss consistency", "velocity error", "better than the teacher"},
}


def loss_with_mistakes(checkpoint: SavedPolicy):
    """The reflow loss, whose mistake comes with the frozen parameters: one program trains all students."""
    config, real = checkpoint.config, checkpoint.policy.action_dim

    def padded(x, factor):
        return x.at[..., real:].multiply(factor)

    def loss(trainable, frozen, teacher, batch, draws):
        mistake, state = frozen["mistake"], jnp.asarray(batch.observation.state)
        first, second = (merge_params(own, frozen["params"]) for own in (teacher, trainable))
        context = jax.lax.stop_gradient(observe(first, batch.observation, config=config))
        noise = padded(draws.noise, mistake["noise"])
        memory = memorise(first, context, state, config=config)
        endpoint = flow.euler(
            lambda x, t: mistake["direction"] * velocity(first, memory, x, t, config=config), noise, 10
        )
        memory = memorise(second, context, state, config=config)
        return flow.reflow_loss(
            lambda x, t: velocity(second, memory, x, t, config=config),
            padded(endpoint, mistake["endpoint"]),
            noise,
            draws.t,
        )

    return loss


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A student by each mistake, in a run's folders, with the log of the loss that it was trained by."""
    checkpoint, mesh = load_saved_policy(TEACHER), make_mesh()
    data = split_data(open_dataset(CONFIG.dataset), checkpoint.policy, checkpoint.load_transforms(), CONFIG)
    batches = [shard_batch(b, mesh) for b in itertools.islice(training_batches(data, CONFIG, 0), UPDATES // 2)]
    weights = split_weights(CONFIG, checkpoint, mesh)
    settings = CONFIG.optimizer.resolve(checkpoint.policy)
    optimizer = make_optimizer(settings, UPDATES)
    step = make_train_step(
        loss_with_mistakes(checkpoint),
        optimizer,
        make_schedule(settings, UPDATES),
        make_draw(experimental.TIME_LAWS[CONFIG.time_law], CONFIG.noises, checkpoint.config),
        mesh,
    )
    made = {}
    for name, mistake in MISTAKES.items():
        state = sharded_copy(init_state(weights.start, optimizer, ema=False), mesh)
        frozen = {"params": weights.frozen, "mistake": dataclasses.asdict(mistake)}
        losses = []
        for i in range(UPDATES):
            batch = batches[i % len(batches)]
            state, metrics = step(state, frozen, weights.teacher, batch, jax.random.key(0))
            losses.append(metrics["loss"])
        run = tmp_path_factory.mktemp("run")
        records = [{"step": i, "loss": float(loss)} for i, loss in enumerate(losses, 1)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        made[name] = run / "checkpoints" / f"{UPDATES:06d}" / "pretrained_model"
        trained = jax.device_get(state.trainable)
        save_pretrained(made[name], checkpoint, trained, num_steps=1, train_config=dataclasses.asdict(CONFIG))
    return made


@pytest.fixture(scope="module")
def trial() -> Trial:
    """The teacher alone on a few frames of the held-out episodes."""
    checkpoint = load_saved_policy(TEACHER)
    transforms = checkpoint.load_transforms()
    held_out = split_data(open_dataset(CONFIG.dataset), checkpoint.policy, transforms, CONFIG).held_out
    assert held_out is not None
    subject = make_subject("teacher", checkpoint.load_params(), checkpoint.config)
    few = Settings(num_steps=(10, 1), noises=1, frames=16, field_frames=8, pairs=8, draws=0, repeats=0)
    return Trial((subject,), Candidate(subject, checkpoint.policy.num_steps), held_out, transforms, few)


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_every_old_mistake_is_caught_by_name(name: str, students: dict[str, Path], trial: Trial) -> None:
    """As the exported student shows it, read from its folder."""
    teacher, student = load_saved_policy(TEACHER), load_saved_policy(students[name])
    subject = make_subject("student", student.load_params(), student.config, like=trial.reference.subject)
    both = dataclasses.replace(trial, subjects=(*trial.subjects, subject))
    training = Training(CONFIG, teacher, find_run(students[name]), last_update(students[name]))
    verdict = judge(measure(both, training), teacher.policy.chunk_size, (10, 50), Thresholds())
    failed = {check.name for check in verdict.checks if check.passed is False}
    if name == "none":
        assert not failed, verdict.checks
        assert verdict.passed
    else:
        assert CAUGHT_BY[name] <= failed, verdict.checks
        assert verdict.headline.startswith("Do not deploy this student: ")
        assert not any(advice.deploy.startswith("student") for advice in verdict.advice)
