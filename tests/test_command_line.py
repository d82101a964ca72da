"""Options as they are typed: spellings, booleans, lists, proposals, help."""

import dataclasses
import importlib
import logging
import os
import re
import subprocess
import sys
from types import ModuleType

import pytest
import tyro

import train
from convert.__main__ import main as convert
from jaxreflow.errors import ConfigError
from jaxreflow.run.config import ReflowConfig
from jaxreflow.run.directory import check_resumable, read_config, write_config
from jaxreflow.run.flags import TITLES, read_settings
from jaxreflow.sim import __main__ as sim
from jaxreflow.support import installation
from jaxreflow.support.command_line import choose, parse, run, wrapped
from jaxreflow.support.console import console_log
from jaxreflow.support.option import boxes, labelled, option
from tests.test_lerobot_flags import settings


@dataclasses.dataclass(frozen=True)
class Inner:
    """Some more."""

    skip_bad: bool = False
    """Go on."""
    episodes: tuple[int, ...] | None = None
    size: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Example:
    """A command."""

    place: tyro.conf.Positional[str] = "here"
    save_every: int = 1
    """Updates between
    checkpoints."""
    resume: bool = False
    freeze: bool | None = None
    inner: Inner = Inner()


def read(*args: str) -> Example:
    return parse(Example, args, prog="example", about="An example.")


@pytest.mark.parametrize(
    "words", [["--save-every", "3"], ["--save_every", "3"], ["--save_every=3"], ["--save-every=3"]]
)
def test_dashes_underscores_and_equals_signs_are_alike(words):
    assert read(*words) == Example(save_every=3)


@pytest.mark.parametrize("words", [["~/x"], ["--place=~/x"], ["--place", "~/x"]])
def test_a_tilde_is_the_users_home_wherever_it_stands(words, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Placed:
        """A command."""

        first: tyro.conf.Positional[str] = ""
        place: str = ""

    monkeypatch.setenv("HOME", "/home/me")
    made = parse(Placed, words, prog="example", about="An example.")
    assert {made.first, made.place} == {"", "/home/me/x"}


def test_arguments_without_a_name_may_stand_before_and_behind_options():
    assert read("there") == Example(place="there")
    assert (
        read("there", "--save-every", "3") == read("--save-every", "3", "there") == Example(place="there", save_every=3)
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--resume"], Example(resume=True)),
        (["--resume=true"], Example(resume=True)),
        (["--resume", "True"], Example(resume=True)),
        (["--resume=false"], Example()),
        (["--no-resume"], Example()),
        (["--no_resume=false"], Example(resume=True)),
        (["--resume", "there"], Example(place="there", resume=True)),
        (["--inner.skip_bad=true"], Example(inner=Inner(skip_bad=True))),
        (["--inner.skip-bad", "--inner.no-skip-bad"], Example()),
        (["--freeze=true"], Example(freeze=True)),
        (["--freeze", "False"], Example(freeze=False)),
        (["--freeze=none"], Example()),
    ],
)
def test_booleans(words, expected):
    assert read(*words) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--inner.episodes", "1", "2"], Inner(episodes=(1, 2))),
        (["--inner.episodes=[1, 2]"], Inner(episodes=(1, 2))),
        (["--inner.episodes=[]"], Inner(episodes=())),
        (["--inner.episodes", "none"], Inner()),
        (["--inner.size=[512,256]"], Inner(size=(512, 256))),
        (["--inner.size", "null"], Inner()),
    ],
)
def test_lists(words, expected):
    assert read(*words).inner == expected


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--sav-every", "--save-every"),
        ("--save_evry=3", "--save-every"),
        ("--resum", "--resume"),
        ("--no-resum", "--no-resume"),
        ("--skip-bad", "--inner.skip-bad"),
        ("--other.episodes", "--inner.episodes"),
    ],
)
def test_the_nearest_option_is_proposed(typed, meant, capsys):
    with pytest.raises(SystemExit, match="2"):
        read(typed)
    assert f"there is no such option; did you mean {meant}?\n" in capsys.readouterr().err


def test_nothing_is_proposed_where_nothing_is_near(capsys):
    with pytest.raises(SystemExit, match="2"):
        read("--xyzzy")
    error = capsys.readouterr().err
    assert "--xyzzy: there is no such option\n`example --help`" in error
    assert "Traceback" not in error


def test_a_word_that_is_no_command_of_the_simulation_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        sim.main(["recrd", "--episodes", "3"])
    assert "expected options, or `record` before them, found recrd" in capsys.readouterr().err


def test_commands_are_chosen_by_name(capsys):
    commands = {"reflow": "Distils.", "finetune": "Trains."}
    assert choose(["reflow", "--steps", "3"], commands, prog="p", about="") == ("reflow", ["--steps", "3"])
    for words, error in ((["reflw"], "found reflw; did you mean reflow?"), ([], "found nothing")):
        with pytest.raises(SystemExit, match="2"):
            choose(words, commands, prog="p", about="")
        assert error in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        choose(["--help"], commands, prog="p", about="Programs.")
    assert "  reflow    Distils." in capsys.readouterr().out


def test_prose_is_wrapped_and_commands_are_not(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    command = "python -m somewhere " + "--and --many --options " * 3
    commands = f"    P=policies\n    {command} --policy $P"
    lines = wrapped(f"A sentence of more than forty letters, all told.\n\n{commands}\n\nThe end.").splitlines()
    start = ["A sentence of more than forty letters,", "all told.", ""]
    assert lines == [*start, "    P=policies", f"    {command} --policy $P", "", "The end."]


def test_items_of_a_list_begin_lines_of_their_own(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = wrapped(
        "Two things:\n\n- An item that is longer than the forty\n  letters of a line.\n- Another."
    ).splitlines()
    assert lines == ["Two things:", "", "- An item that is longer than the forty", "  letters of a line.", "- Another."]


def test_every_option_of_a_run_stands_in_its_box(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match="0"):
        parse(ReflowConfig, ["--help"], prog="p", about="", sections=boxes(ReflowConfig, TITLES))
    top, *shown = re.split(r" (\w+) options\W", capsys.readouterr().out)
    for name in ("--output-dir", "--resume", "--dry-run", "--steps", "--batch-size", "--seed"):
        assert f" {name}" in top
    assert shown[::2] == [title for title in TITLES if title != "policy"]
    last = " ".join(shown[-1].replace("│", " ").split())
    assert "or half the mass at exactly 1 and the rest u-shaped" in last, "a docstring is one paragraph"


@dataclasses.dataclass(frozen=True)
class WithMore(ReflowConfig):
    """A run with two options more."""

    warmth: float = option(0.0, section="update", label="warmth", unsaid=0.0)
    """How warm it is."""
    colour: str = option("red", section="record", may_change=True)
    """What it looks like."""
    noises: int = 2


def test_an_option_needs_nothing_but_its_declaration(tmp_path, capsys):
    more = parse(WithMore, ["--warmth", "0.5"], prog="p", about="", sections=boxes(WithMore, TITLES))
    assert more == WithMore(warmth=0.5)
    assert ("warmth", "0.5") in labelled(more)
    assert "warmth" not in dict(labelled(WithMore()))
    assert ("noises per observation", "2") in labelled(more), "a changed default keeps what its base says"

    with pytest.raises(SystemExit, match="0"):
        parse(WithMore, ["--help"], prog="p", about="", sections=boxes(WithMore, TITLES))
    shown = capsys.readouterr().out
    update = shown.partition("update options")[2].partition("optimizer options")[0]
    record = shown.partition("record options")[2].partition("hub options")[0]
    assert "--warmth FLOAT" in update
    assert "How warm it is." in update
    assert "--noises INT" in update
    assert "--colour STR" in record

    write_config(more, tmp_path / "train_config.json")
    assert read_config(WithMore, tmp_path / "train_config.json") == more
    check_resumable(more, dataclasses.replace(more, colour="blue"))
    with pytest.raises(ConfigError, match=r"--warmth 0.5 -> 1.0; leave"):
        check_resumable(more, dataclasses.replace(more, warmth=1.0, colour="blue"))


def test_an_option_of_an_unknown_box_is_refused():
    with pytest.raises(ValueError, match="WithMore: record, update is no title"):
        boxes(WithMore, [title for title in TITLES if title not in ("update", "record")])


# ---- help


def program(name: str) -> ModuleType:
    return importlib.import_module(name)


HELP = [
    *[("train", path.stem) for path in sorted(train.CONFIGS.glob("*.py"))],
    *[("convert.__main__", name) for name in ("inspect", "from-lerobot", "to-lerobot", "doctor")],
    ("jaxreflow.evaluate.__main__", ""),
    ("jaxreflow.sim.__main__", ""),
    ("jaxreflow.sim.__main__", "record"),
    ("jaxreflow.data.features", ""),
    ("jaxreflow.serve.__main__", ""),
    ("jaxreflow.client", ""),
    ("jaxreflow.data.pack", ""),
]


@pytest.mark.parametrize(("module", "command", "columns"), [*((*each, 80) for each in HELP), ("train", "reflow", 120)])
def test_help_opens_with_a_sentence_and_an_example(module, command, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit, match="0"):
        program(module).main([*command.split(), "--help"])
    about, _, options = capsys.readouterr().out.partition("usage: ")
    sentence, example = about.split("\n\n")[:2]
    assert len(sentence) > 20
    assert example.startswith("    python ")
    # A default that says nothing is left out; a tracker's is a choice.
    assert options.count("(default: none)") == options.count("--tracker")
    assert max(map(len, options.splitlines()[1:])) <= columns


@pytest.mark.parametrize(
    "words", [[], *([name] for name in ("reflow-step", "sample", "loader", "convert", "startup", "pod"))]
)
def test_help_of_the_benchmarks(words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words, "--help"])
    with pytest.raises(SystemExit, match="0"):
        program("benchmarks.__main__").main()
    assert "    python -m benchmarks " in capsys.readouterr().out


# ---- LeRobot's spellings


def test_what_is_wrong_or_missing_ends_with_exit_code_2(capsys):
    wrong = {
        ("--policy.chunk_size=10",): "a student has its teacher's architecture",
        ("--policy.device=cuda",): "JAX_PLATFORMS",
        ("--policy.type=act",): "expected smolvla, found act",
        ("--teacher.pth=P",): "did you mean --teacher.path?",
        ("--lr=3",): "did you mean --optimizer.lr?",
        ("--sav_freq=3",): "did you mean --save-every?",
        (): "--teacher.path is missing",
    }
    for words, message in wrong.items():
        with pytest.raises(SystemExit, match="2"):
            settings("reflow", *words)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        settings("reflow", "--job_name=x", "--env.type=metaworld")
    errors = capsys.readouterr().err
    assert "--job-name is an option" in errors
    assert "--env.type is an option" in errors
    with pytest.raises(SystemExit, match="2"):
        read_settings(train.CONFIGS / "reflow.py", ["--teacher.path=P"])
    assert "--output-dir is missing" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        read_settings(train.CONFIGS / "reflow.py", ["--teacher.path=P", "--dry-run"])
    assert "--dataset.root is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        (
            "finetune",
            ("--student.image-size", "256", "--student.vlm_layers=8", "--no-report"),
            "--student.image-size, --student.vlm-layers, --no-report: `train.py finetune` has no such option; `train.py reflow` "
            "has, which distils a teacher",
        ),
        (
            "metaworld_biased",
            ("--teacher-steps=5",),
            "--teacher-steps: `train.py metaworld_biased` has no such option; `train.py reflow` has, which distils a teacher",
        ),
        (
            "reflow",
            ("--loss-compat", "lerobot-0.4.4"),
            "--loss-compat: `train.py reflow` has no such option; `train.py finetune` has, which trains on recorded actions",
        ),
    ],
)
def test_an_option_of_the_other_kind_of_runs_is_named_as_such(name, words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        settings(name, *words)
    assert f"error: {message}\n" in capsys.readouterr().err


def test_an_installed_package_names_its_own_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "python train.py reflow; `train.py demo --help`; python -m convert doctor DIR; `convert push`; /lerobot/train.py"
    assert installation.as_typed(text) == text
    expected = (
        "jaxreflow-train reflow; `jaxreflow-train demo --help`; jaxreflow-convert doctor DIR; `jaxreflow-convert push`; "
        "/lerobot/train.py"
    )
    with monkeypatch.context() as typed:  # in a clone, which is installed as editable
        typed.setattr(sys, "argv", ["/bin/jaxreflow-train"])
        assert installation.as_typed(text) == expected
    monkeypatch.setattr(installation, "INSTALLED", True)
    assert installation.as_typed(text) == expected
    with console_log():
        logging.getLogger("jaxreflow.train").info("go on with: %s", "train.py reflow")
    assert capsys.readouterr().err == "go on with: jaxreflow-train reflow\n"
    with pytest.raises(SystemExit):
        convert(["doctor"])
    assert "jaxreflow-convert doctor --help" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main(["nosuch"])
    found = capsys.readouterr().err
    assert "jaxreflow-train: expected one of" in found
    assert "train.py" not in found


HELP_OF = "import sys, {module}; sys.exit({module}.main({words!r}))"


def _into_a_pipe_that_nobody_reads(program: str) -> subprocess.CompletedProcess[str]:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        return subprocess.run(
            [sys.executable, "-c", program], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
        )


@pytest.mark.parametrize("words", [["--help"], ["reflow", "--help"]])
def test_a_reader_that_leaves_ends_a_command_without_a_word(words):
    """As in `train.py --help | head`."""
    done = _into_a_pipe_that_nobody_reads(HELP_OF.format(module="train", words=words))
    assert (done.stderr, done.returncode) == ("", 1)


def test_another_pipe_that_breaks_is_an_error_as_before():
    """Here the broken pipe is not the output, such as a connection of a tracker."""

    def program(words: list[str]) -> int:
        raise BrokenPipeError(f"connection lost after {words}")

    with pytest.raises(BrokenPipeError):
        run(program, [])
