"""Imports go one way: config, types <- sharding, model, flow, data <- training, evaluation <- train.py."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "jaxreflow").rglob("*.py"))
CONVERT = sorted((ROOT / "convert").glob("*.py"))
EVERYTHING = [*PACKAGE, *CONVERT, *sorted((ROOT / "configs").glob("*.py")), ROOT / "train.py"]

# What a module may import of the package. A directory stands for all in it.
COMMANDS = {"command_line", "option_types", "console"}
BASE = {"errors", "config_fields", "config", "types", "jsonfile", "hub", "storage", *COMMANDS}
VISION = {"data", "model", "weights", "observation", "pretrained", "run_config", "sharding"}
FORMATS = {"aloha", "normalization", "processors", "statistics", "vlm"}
ALLOWED = {
    "errors": set(),
    "config_fields": set(),
    "jsonfile": set(),
    "hub": set(),
    "storage": {"errors", "console"},
    "console": set(),
    "option_types": set(),
    "command_line": {"errors", "console", "option_types"},
    # What runs on a robot knows no JAX.
    "messages": {"errors"},
    "client": {"errors", "messages", "command_line"},
    "server": {"errors", "messages"},
    "config": {"errors", "config_fields"},
    "types": {"errors", "config"},
    "sharding": BASE,
    "flow": BASE,
    "model": {*BASE, "model"},
    "data": {*BASE, "data"},
    # The program that fills a cache of image tokens: it runs the model over the data.
    "data.features": {*BASE, *FORMATS, *VISION},
    # The program that packs frames, at the size that a policy looks at.
    "data.pack": {*BASE, "data", "model", "pretrained"},
    **{module: {*BASE, *FORMATS, "tensorfile"} for module in FORMATS},
    "tensorfile": {"errors", "jsonfile"},
    "weights": {*BASE, "model", "statistics", "tensorfile"},
    "observation": {*BASE, *FORMATS},
    "pretrained": {*BASE, *FORMATS, "tensorfile", "weights", "observation"},
}
# `convert` reads, writes and publishes checkpoints, merges adapters, and samples to measure what a position id is worth; it never
# trains.
CONVERT_MAY = {
    *(*BASE, *FORMATS, "model", "flow", "tensorfile", "weights", "lora", "pretrained", "policy", "checkpoint"),
    "publication",
}
TOP_LEVEL = {"train", "convert", "configs"}


def imports(path: Path) -> Iterator[str]:
    """Absolute names of the modules that a file imports, also inside functions; relative ones start with a dot."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            # `from jaxreflow import flow` names a module, `from jaxreflow.flow import euler` a thing in it.
            yield from (f"{name}.{alias.name}" for alias in node.names) if name == "jaxreflow" else (name,)


def layer(module: str) -> str:
    """`jaxreflow.data.video` -> `data`."""
    return [*module.split("."), ""][1]


def own(path: Path) -> set[str]:
    return {layer(name) for name in imports(path) if name.split(".")[0] == "jaxreflow"}


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


@pytest.mark.parametrize("path", PACKAGE, ids=names(PACKAGE))
def test_lower_layers_know_no_higher_ones(path):
    parts = path.relative_to(ROOT / "jaxreflow").with_suffix("").parts
    allowed = ALLOWED.get(".".join(parts), ALLOWED.get(parts[0]))
    if allowed is not None:
        assert own(path) <= allowed, f"{path} imports from a layer above its own"


@pytest.mark.parametrize("path", EVERYTHING, ids=names(EVERYTHING))
def test_nobody_imports_a_program(path):
    for name in imports(path):
        assert name.split(".")[0] not in TOP_LEVEL, f"{path} imports {name}, which is a program"
        assert not name.startswith(("jaxreflow.cli", "torch", "lerobot", "pickle")), f"{path} imports {name}"


@pytest.mark.parametrize("path", CONVERT, ids=names(CONVERT))
def test_convert_reads_checkpoints_only(path):
    assert own(path) <= CONVERT_MAY


def test_modules_do_not_import_each_other_in_circles():
    graph = {}
    for path in PACKAGE:
        parts = path.relative_to(ROOT / "jaxreflow").with_suffix("").parts
        graph.setdefault(parts[0], set()).update(own(path) - {parts[0]})
    graph.pop("__init__")  # hands out the policy on first use
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"circle: {' -> '.join((*above, module))}"
        if module not in done:
            for below in graph.get(module, ()):
                visit(below, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())
