"""Lines of `meta/*.jsonl`, which datasets before v3.0 have: tasks, episodes, and statistics by episode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxreflow.data.dataset_stats import Stats, aggregate_stats, read_stats, stats_arrays
from jaxreflow.data.meta_files import parse_file, text_value, whole_number
from jaxreflow.data.task_names import task_names
from jaxreflow.support.strict_json import parse_json


def first_task(tasks: Any) -> str:
    """The first of an episode's tasks, or its only one; empty where it has none. TypeError for what is no text."""
    if tasks is None:
        return ""
    if isinstance(tasks, str):
        return text_value(tasks, "tasks")
    return text_value(tasks[0], "tasks") if len(tasks) else ""


def legacy_tasks(root: Path) -> dict[int, str]:
    """Tasks by number; DatasetError if the file is missing or damaged."""
    lines = _lines(root, "tasks.jsonl")
    file = root / "meta" / "tasks.jsonl"
    return parse_file(
        file, lambda: task_names([line["task_index"] for line in lines], [line["task"] for line in lines])
    )


def episode_lines(root: Path) -> list[tuple[int, int | None, str]]:
    """Index, length where it is said, and task of every episode, by index; DatasetError if the file is missing or damaged."""
    episodes = _by_episode(root, "episodes.jsonl")

    def parse(index: int) -> tuple[int, int | None, str]:
        line = episodes[index]
        length = None if line.get("length") is None else whole_number(line["length"], "length")
        return index, length, first_task(line.get("tasks"))

    return [parse_file(root / "meta" / "episodes.jsonl", parse, index) for index in sorted(episodes)]


def legacy_stats(root: Path) -> Stats:
    """Statistics of all episodes together, or those in `stats.json`, as v2.0 has it."""
    file = root / "meta" / "episodes_stats.jsonl"
    if not file.is_file():
        return read_stats(root)
    lines = _by_episode(root, file.name).values()
    return parse_file(file, lambda: aggregate_stats([stats_arrays(line["stats"]) for line in lines]))


def _by_episode(root: Path, name: str) -> dict[int, dict[str, Any]]:
    """Lines by episode; of several about the same one the last counts, as for LeRobot's converter."""
    lines = _lines(root, name)
    return parse_file(
        root / "meta" / name, lambda: {whole_number(line["episode_index"], "episode_index"): line for line in lines}
    )


def _lines(root: Path, name: str) -> list[dict[str, Any]]:
    file = root / "meta" / name
    text = parse_file(file, file.read_text, encoding="utf-8-sig")
    # Not `splitlines`, which also ends a line at characters that a task may hold.
    return [parse_file(file, parse_json, line) for line in text.split("\n") if line.strip()]
