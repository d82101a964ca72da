"""LeRobot's training options in train.py: those with a meaning here, and what is answered to the others."""

import pytest

import train
from jaxreflow.errors import ConfigError
from jaxreflow.run.config import FinetuneConfig, ReflowConfig, RunConfig
from jaxreflow.run.flags import read_settings
from jaxreflow.run.lerobot_flags import INSTEAD, OFF_HERE, RENAMED, to_ours
from jaxreflow.support.command_line import Flag

DATA = ["--dataset.root", "DATA"]


def settings(name: str, *words: str) -> RunConfig:
    return read_settings(train.CONFIGS / f"{name}.py", [*DATA, "--output_dir=RUN", *words])


def test_a_command_line_of_lerobots_is_understood():
    found = settings(
        "reflow",
        *("--policy.path=lerobot/smolvla_base", "--dataset.repo_id=me/data", "--batch_size=64", "--steps=20000"),
        *("--save_freq=500", "--log_freq=20", "--eval_freq=100", "--resume=false", "--num_workers=4", "--seed=7"),
        *("--policy.optimizer_lr=3e-4", "--policy.scheduler_warmup_steps=10", "--policy.push_to_hub=false"),
        *("--wandb.enable=false", "--policy.type=smolvla", "--dataset.episodes=[0,1]"),
        "--tolerance_s=0.04",
        '--rename_map={"observation.images.front": "observation.images.camera1"}',
    )
    assert isinstance(found, ReflowConfig)
    assert (found.teacher.path, found.dataset.repo_id, found.batch_size) == ("lerobot/smolvla_base", "me/data", 64)
    assert (found.save_every, found.log_every, found.eval_every) == (500, 20, 100)
    assert (found.num_workers, found.seed, found.output_dir, found.resume) == (4, 7, "RUN", False)
    assert (found.optimizer.lr, found.optimizer.warmup_steps, found.dataset.episodes) == (3e-4, 10, (0, 1))
    assert found.rename_map == {"observation.images.front": "observation.images.camera1"}
    assert found.dataset.tolerance_s == 0.04


def test_in_finetune_lerobots_policy_is_the_one_to_train():
    found = settings(
        "finetune", "--policy.pretrained_path=P", "--policy.train_expert_only=false", "--policy.num_steps=5"
    )
    assert isinstance(found, FinetuneConfig)
    assert (found.policy.path, found.policy.train_expert_only, found.policy.num_steps) == ("P", False, 5)
    new = settings("finetune", "--policy.type=smolvla", "--policy.resize_imgs_with_padding=[96,96]")
    assert isinstance(new, FinetuneConfig)
    assert (new.policy.new, new.policy.resize_imgs_with_padding) == (True, (96, 96))


def test_every_other_name_means_the_option_that_it_is_mapped_to():
    flags = [Flag(name, ("1",)) for name in RENAMED]
    assert [flag.name for flag in to_ours(flags, {})] == list(RENAMED.values())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--wandb.enable", "true"], [Flag("--tracker", ("wandb",))]),
        (["--wandb.enable", "false"], []),
        (["--policy.repo-id", "me/it"], [Flag("--push-to-hub", ("me/it",))]),
        (["--policy.repo-id", "me/it", "--policy.push-to-hub", "true"], [Flag("--push-to-hub", ("me/it",))]),
        (["--policy.repo-id", "me/it", "--policy.push-to-hub", "false"], []),
    ],
)
def test_options_that_depend_on_values(words, expected):
    flags = [Flag(name, (value,)) for name, value in zip(words[::2], words[1::2], strict=True)]
    assert to_ours(flags, {}) == expected


@pytest.mark.parametrize("name", INSTEAD)
def test_an_option_without_a_meaning_here_says_what_to_do_instead(name):
    typed = name + "something" if name.endswith((".", "-")) else name
    with pytest.raises(ConfigError, match="is an option of LeRobot's that has no place here") as caught:
        to_ours([Flag(typed, ("1",))], {})
    assert INSTEAD[name] in str(caught.value)


def test_spellings_of_lerobot_0_6_are_understood():
    words = ["--dataset.eval_split=0.2", "--eval_steps=50", "--env_eval_freq=0", "--save_checkpoint_to_hub=false"]
    peft = ["--peft.method_type=lora", "--peft.r=4", "--peft.lora_alpha=8", "--job.target=local"]
    path = ["--policy.pretrained_path=P", "--policy.pretrained_revision=v1"]
    found = settings("finetune", *words, *peft, *path)
    assert isinstance(found, FinetuneConfig)
    assert (found.dataset.holdout, found.eval_every) == (0.2, 50)
    assert (found.lora.rank, found.lora.alpha) == (4, 8.0)
    assert (found.policy.path, found.policy.revision) == ("P", "v1")
    taught = settings("reflow", *path)
    assert isinstance(taught, ReflowConfig)
    assert (taught.teacher.path, taught.teacher.revision) == ("P", "v1")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (Flag("--eval-steps", ("0",)), "give --dataset.holdout 0"),
        (Flag("--save-freq", ("-1",)), "give --save-every the number of --steps"),
        (Flag("--peft.method-type", ("MISS",)), "expected LORA, found MISS"),
        (Flag("--job.target", ("a10g-small",)), "expected local, found a10g-small"),
        (Flag("--dataset.streaming", ("true",)), "a dataset is read from disk"),
    ],
)
def test_values_without_a_meaning_here_are_answered(flag, message):
    with pytest.raises(ConfigError, match=message):
        to_ours([flag], {})


@pytest.mark.parametrize("name", sorted(OFF_HERE))
def test_what_is_off_here_may_be_switched_off(name):
    assert to_ours([Flag(name, ("false",))], {}) == []
