"""The demo's report: what its student has learnt, on episodes that neither teacher nor student was trained on."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from jaxreflow.evaluate.comparison import REPORT_HTML, REPORT_JSON, compare_run
from jaxreflow.evaluate.report.figures import plot_chunks, plot_losses
from jaxreflow.evaluate.report.table import error_table, format_report, markdown
from jaxreflow.run.checkpoints import newest_policy
from jaxreflow.run.config import ReflowConfig
from jaxreflow.support.storage import check_path


@dataclasses.dataclass(frozen=True)
class DemoConfig(ReflowConfig):
    """A reflow run that ends with a report and pictures; `from_scratch` trains the teacher first, by configs/demo_teacher.py."""

    from_scratch: bool = False
    """Train the teacher too, instead of taking the one in the repository."""
    early_task: str | None = "Bypass a wall and reach a goal"
    """At its first frames an episode of this task does not show yet on which side the demonstrator will pass: both are right."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_path("--output-dir", self.output_dir, schemes=(), reason="the demo draws pictures")


def write_demo_report(config: DemoConfig, run_dir: Path) -> str:
    """Compares the exported student with its teacher, writes RUN/report, and returns what there is to say."""
    evaluation = compare_run(config, run_dir, num_steps=(10, 2, 1), draws=64, observations=8, field_frames=16)
    out = run_dir / "report"
    out.mkdir(parents=True, exist_ok=True)
    for name in (REPORT_JSON, REPORT_HTML):
        shutil.copyfile(newest_policy(run_dir / "checkpoints") / name, out / name)
    figures = {
        "chunks": plot_chunks(evaluation.examples, evaluation.report.about.action_names),
        "loss": plot_losses(evaluation.records),
    }
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=130, facecolor="white")
    pictures = "\n\n".join(f"![{name}]({name}.png)" for name in figures)
    table = markdown(error_table(evaluation.report.measures))
    (out / "report.md").write_text(f"{table}\n\n{pictures}\n", encoding="utf-8")
    return format_report(evaluation.report)
