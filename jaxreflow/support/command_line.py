"""How every command reads its options: the same help, errors and spellings everywhere.

tyro makes options, help and checks from a dataclass or a function. Before it sees them, this module names the nearest option
where one is unknown, takes `--flag=true`, `--flag false` and lists as `[1, 2]`, and lets a command translate another program's
spellings into its own. Wrong usage ends with exit code 2.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import inspect
import itertools
import os
import re
import select
import shutil
import sys
import textwrap
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro

from jaxreflow.errors import ConfigError, JaxReflowError
from jaxreflow.support.console import console_log
from jaxreflow.support.installation import as_typed
from jaxreflow.support.jax_errors import explained
from jaxreflow.support.tyro_rules import BOOLEANS, make_registry

T = TypeVar("T")

_POSITIONAL = typing.get_args(tyro.conf.Positional[str])[1]
_FREE_MEMORY = "end other programs that use this memory, or take a machine with more of it"
# Below this likeness a proposal would be a guess.
_ALIKE = 0.5


@dataclasses.dataclass(frozen=True)
class Flag:
    """An option as it was typed, in dashes: its name, and the words that follow it up to the next option."""

    name: str
    values: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Translation:
    """Another program's options in the place of a command's.

    `names` are those that only have another name there, with the command's; `translate(flags, options)` gives all flags as the
    command's, whose types by name are `options`, and raises ConfigError, which says what to do, for those without a meaning.
    """

    names: Mapping[str, str]
    translate: Callable[[Sequence[Flag], Mapping[str, Any]], list[Flag]]


@contextlib.contextmanager
def _while_somebody_reads() -> Iterator[None]:
    """Ends the program with exit code 1, without a word, if the one that reads its output has gone, such as `head`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError as error:
        if not _nobody_reads_on():
            raise
        raise SystemExit(1) from error


def _nobody_reads_on() -> bool:
    """Whether the output is a pipe without a reader. What is left to print is then thrown away."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


@_while_somebody_reads()
def run(program: Callable[[list[str]], int], argv: Sequence[str] | None, *, out_of_memory: str = _FREE_MEMORY) -> int:
    """Runs a command and shows its log; its exit code, or 1 after one of the package's errors, with a traceback under `--debug`.

    `out_of_memory` says what to lower in this command where memory is not enough.
    """
    args, debug = without_debug(argv)
    try:
        with console_log(), explained(out_of_memory):
            return program(args)
    except JaxReflowError as error:
        if debug:
            raise
        print_error(error)
        return 1


def without_debug(argv: Sequence[str] | None) -> tuple[list[str], bool]:
    """The arguments (default: the process's), and whether `--debug` was among them."""
    args = list(sys.argv[1:] if argv is None else argv)
    return [arg for arg in args if arg != "--debug"], "--debug" in args


def print_error(error: object) -> None:
    """Shows an error on stderr, with the commands that the user has."""
    print(as_typed(f"error: {error}"), file=sys.stderr)


def usage_error(prog: str, message: str) -> NoReturn:
    """Ends the process with exit code 2."""
    print_error(f"{message}\n`{prog} --help` lists what there is")
    raise SystemExit(2)


@_while_somebody_reads()
def choose(args: Sequence[str], commands: Mapping[str, str], *, prog: str, about: str) -> tuple[str, list[str]]:
    """The command that the first argument names, and its own arguments; `commands` has a sentence for each."""
    name, *rest = args or [""]
    if name in commands:
        return name, rest
    if name in ("-h", "--help"):
        usage = f"usage: {prog} NAME [OPTIONS]"
        parts = [wrapped(about), usage, _listing(commands), f"`{prog} NAME --help` lists its options"]
        print(as_typed("\n\n".join(parts)))
        raise SystemExit(0)
    nearest = difflib.get_close_matches(name, commands, 1, _ALIKE)
    proposal = f"; did you mean {nearest[0]}?" if nearest else ""
    usage_error(prog, f"{prog}: expected one of {', '.join(commands)}, found {name or 'nothing'}{proposal}")


def _listing(commands: Mapping[str, str]) -> str:
    column = max(map(len, commands)) + 4
    width = max(shutil.get_terminal_size().columns, column + 40)
    return "\n".join(
        textwrap.fill(sentence, width, initial_indent=f"  {name}".ljust(column), subsequent_indent=" " * column)
        for name, sentence in commands.items()
    )


def first_sentence(module: Path) -> str:
    """What a module's docstring begins with, without running the module."""
    doc = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return " ".join(doc.split("\n\n")[0].split())


@_while_somebody_reads()
def parse(
    target: Callable[..., T],
    args: Sequence[str],
    *,
    prog: str,
    about: str,
    default: T | None = None,
    others: Translation | None = None,
    sections: Mapping[str, Sequence[str]] | None = None,
) -> T:
    """`target`, a dataclass or function, made with the options in `args`.

    `about` opens the help and holds an example; `sections` are boxes of the help with the fields of `target` in each. Ends the
    process after `--help` and, with exit code 2, after wrong usage.
    """
    options = _options(target)
    try:
        words = _words(args, options, others)
    except ConfigError as error:
        usage_error(prog, str(error))
    if {"-h", "--help"} & set(words):
        print(as_typed(wrapped(about)) + "\n")
    settings: dict[str, Any] = {} if default is None else {"default": default}
    registry = make_registry(target, sections or {})
    return tyro.cli(target, args=words, prog=as_typed(prog), description="", registry=registry, **settings)


def wrapped(about: str) -> str:
    """Prose and lists in the width of the terminal; what is indented, as commands are, as it is."""
    width = min(max(shutil.get_terminal_size().columns, 40), 120)

    def fill(paragraph: str) -> str:
        if paragraph.startswith("    "):
            return paragraph
        items = re.split(r"\n(?=- )", paragraph)
        indents = ["  " if item.startswith("- ") else "" for item in items]
        return "\n".join(textwrap.fill(i, width, subsequent_indent=by) for i, by in zip(items, indents, strict=True))

    return "\n\n".join(fill(paragraph.strip("\n")) for paragraph in about.strip().split("\n\n"))


def option_names(target: Any) -> set[str]:
    """The options of a dataclass or function in dashes, with the opposites of its switches."""
    options = _options(target)
    return {*options, *_opposites(options)}


def _options(target: Any, prefix: str = "") -> dict[str, Any]:
    """Types by option, `--dataset.repo-id`, of a dataclass or function, without positional arguments."""
    options: dict[str, Any] = {}
    for field, hint in typing.get_type_hints(target, include_extras=True).items():
        kind = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
        if field == "return" or _POSITIONAL in typing.get_args(hint)[1:]:
            continue
        name = prefix + field.replace("_", "-")
        if dataclasses.is_dataclass(kind):
            options |= _options(kind, f"{name}.")
        else:
            options[f"--{name}"] = kind
    return options


def _words(args: Sequence[str], options: Mapping[str, Any], others: Translation | None) -> list[str]:
    """The arguments as tyro wants them; ConfigError for an unknown option."""
    bounds = [*(i for i, word in enumerate(args) if word.startswith("--")), len(args)]
    leading, flags = list(map(_at_home, args[: bounds[0]])), [_split(args[i:j]) for i, j in itertools.pairwise(bounds)]
    if others is not None:
        flags = others.translate(flags, options)
    names = others.names if others is not None else {}
    return [*leading, *(word for flag in flags for word in _spelled(flag, options, names))]


def _split(words: Sequence[str]) -> Flag:
    name, given, value = words[0].partition("=")
    return Flag(name.replace("_", "-"), tuple(map(_at_home, [*([value] if given else []), *words[1:]])))


def _at_home(word: str) -> str:
    """`~` as the user's home: a shell expands `--root ~/data`, but neither `--root=~/data` nor what stands in quotes."""
    return str(Path(word).expanduser()) if word == "~" or word.startswith("~/") else word


def _spelled(flag: Flag, options: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """A flag as tyro takes it."""
    opposite = _opposites(options)
    if flag.name not in {*options, *opposite, "--help"}:
        raise ConfigError(f"{flag.name}: there is no such option{_proposal(flag.name, [*options, *opposite], names)}")
    if flag.name in opposite:
        return _switch(flag, opposite[flag.name])
    return [flag.name, *(_items(flag.values) if _takes_several(options.get(flag.name)) else flag.values)]


def _proposal(typed: str, known: Sequence[str], names: Mapping[str, str]) -> str:
    """The nearest option, also by another program's names; nothing where none is near."""
    nearest = max([*known, *names], key=lambda option: _likeness(typed, option))
    return f"; did you mean {names.get(nearest, nearest)}?" if _likeness(typed, nearest) >= _ALIKE else ""


def _switch(flag: Flag, opposite: str) -> list[str]:
    """`--flag false` as `--no-flag`; words that are no boolean follow as they are."""
    if not flag.values or flag.values[0].lower() not in BOOLEANS:
        return [flag.name, *flag.values]
    return [flag.name if BOOLEANS[flag.values[0].lower()] else opposite, *flag.values[1:]]


def _items(values: Sequence[str]) -> list[str]:
    """`[1, 2]` as two words."""
    if len(values) != 1 or not values[0].startswith("["):
        return list(values)
    return [word.strip() for word in values[0].strip("[]").split(",") if word.strip()]


def _opposites(options: Mapping[str, Any]) -> dict[str, str]:
    switches = [name for name, kind in options.items() if kind is bool]
    return {name: _inverse(name) for name in switches} | {_inverse(name): name for name in switches}


def _inverse(name: str) -> str:
    """`--resume` -> `--no-resume`, `--dataset.skip-bad` -> `--dataset.no-skip-bad`."""
    group, dot, last = name.removeprefix("--").rpartition(".")
    return f"--{group}{dot}no-{last}"


def _likeness(typed: str, option: str) -> float:
    def ratio(a: str, b: str) -> float:
        return difflib.SequenceMatcher(None, a, b).ratio()

    # Whoever leaves the group out, or takes another one, means the last word.
    return max(ratio(typed, option), 0.95 * ratio(typed.strip("-").split(".")[-1], option.strip("-").split(".")[-1]))


def _takes_several(kind: Any) -> bool:
    return tuple in (typing.get_origin(kind), *map(typing.get_origin, typing.get_args(kind)))


def command_doc(function: Callable[..., Any]) -> str:
    """The docstring of a command that is a function, without its list of arguments, which tyro shows beside the options."""
    return (inspect.getdoc(function) or "").split("\n\nArgs:")[0]
