"""Imports go one way. The table says which package may import which, as data; docs/design.md says why."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxreflow"

# What a package, or a module where it differs from its package, may import of jaxreflow beside itself.
# A package stands for all in it; the longest name that fits counts.
BELOW_RUN = {"errors", "flow", "support", "model", "policy", "data", "training"}
# Readers and writers of data, which run in worker processes and must not load JAX; they may import each other.
LIGHT = {
    f"data.{module}"
    for module in (
        *("meta_files", "file_layout", "dataset_stats", "metadata", "episodes", "columns", "lerobot"),
        *("advice", "task_names", "legacy_metadata", "pictures", "frame_images", "episode_rows"),
        *("video", "video_writer", "writer", "shards", "manifests", "packed_frames", "feature_cache"),
    )
}
ALLOWED: dict[str, set[str]] = {
    "": {"policy.smolvla_policy"},
    "errors": set(),
    "flow": set(),
    "client": {"errors", "support.command_line", "serve.messages"},
    "cli": set(),
    "support": {"errors"},
    "model": {"errors"},
    "policy": {"errors", "flow", "support", "model"},
    "policy.names": set(),
    "policy.config_fields": set(),
    "data": {"errors", "support", "model", "policy"},
    **{module: {"errors", "support", "policy.names", *LIGHT} for module in LIGHT},
    "training": {"errors", "flow", "support", "model"},
    "run": BELOW_RUN,
    "evaluate": {*BELOW_RUN, "run"},
    "publish": {"errors", "support", "policy", "run", "evaluate"},
    "sim": {"errors", "flow", "support", "policy", "data"},
    "serve": {"errors", "support", "policy"},
    "serve.messages": {"errors"},
    "serve.server": {"errors", "serve.messages"},
}
PROGRAMS = {"train", "convert", "configs", "benchmarks", "jaxreflow.cli"}
NEVER = {"torch", "lerobot", "pickle"}


def name_of(path: Path) -> str:
    """`jaxreflow/data/video.py` -> `data.video`; an `__init__.py` is its package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> Iterator[str]:
    """Absolute names of what a file imports, also inside functions: `jaxreflow.flow` for `from jaxreflow import flow`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [path.parent.name if node.level else "", node.module]))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def modules(path: Path) -> set[str]:
    """The package's own modules that a file imports, below `jaxreflow`."""
    found = set()
    for name in imports(path):
        first, *rest = name.split(".")
        if first == "jaxreflow":
            while rest and ".".join(rest) not in FILES:
                rest.pop()
            found.add(".".join(rest))
    return found


def within(module: str, place: str) -> bool:
    return module == place or module.startswith(f"{place}.")


def allowed(module: str) -> set[str]:
    """The row of the table for a module: its own, else its package's."""
    rows = [name for name in ALLOWED if within(module, name)]
    own = max(rows, key=len, default="")
    return {*ALLOWED[own], own} if "." not in own else ALLOWED[own]


def test_every_package_has_a_row():
    assert {name.partition(".")[0] for name in FILES} == {name.partition(".")[0] for name in ALLOWED}
    assert all(name in FILES for name in ALLOWED)


def test_imports_go_one_way():
    wrong = {
        module: sorted(above)
        for module, path in FILES.items()
        if (
            above := {m for m in modules(path) if m and not any(within(m, place) for place in allowed(module) if place)}
        )
    }
    assert not wrong, "not in the table of allowed imports"


def test_files_do_not_import_each_other_in_circles():
    graph = {name: modules(path) - {name} for name, path in FILES.items() if path.name != "__init__.py"}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"circle: {' -> '.join((*above, module))}"
        if module not in done:
            for below in graph.get(module, ()):
                visit(below, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_packages_do_not_import_each_other_in_circles():
    order = [name for name in ALLOWED if "." not in name and name]
    above: dict[str, set[str]] = {name: set() for name in order}
    for module, path in FILES.items():
        top = module.partition(".")[0]
        if top:
            above[top] |= {m.partition(".")[0] for m in modules(path) if m} - {top}
    left = set(above)
    while left:
        bottom = {name for name in left if not above[name] & left}
        assert bottom, f"circle among {sorted(left)}"
        left -= bottom


def test_nobody_imports_a_program_or_what_is_not_ours():
    programs = [ROOT / "train.py", *(ROOT / "convert").glob("*.py"), *(ROOT / "configs").glob("*.py")]
    for path in [*FILES.values(), *programs]:
        for name in imports(path):
            assert name.partition(".")[0] not in NEVER, f"{path} imports {name}"
            if not (path.parent.name == "convert" and within(name, "convert")):
                assert not any(within(name, program) for program in PROGRAMS), f"{path} imports {name}, a program"
