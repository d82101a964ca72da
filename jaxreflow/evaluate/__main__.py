"""Is the student the teacher? Compares a distilled policy with its teacher on held-out episodes and says what to deploy.

    python -m jaxreflow.evaluate --teacher DIR --student RUN/checkpoints/last/pretrained_model --dataset.root DATASET --out REPORT
    python -m jaxreflow.evaluate --teacher DIR --dataset.root DATASET --out REPORT     # without a student: do you need to distil?

The command writes report.json and report.html, one page without links, into REPORT. It prints the table and the verdict. It
measures the student in its folder, in the dtypes that it is stored in. A student of a run of train.py is measured on the run's
dataset and held-out episodes. Other policies are measured on all episodes, unless --dataset.episodes names some. Give --early-task
where several ways are open at the start of an episode. There, and where whole chunks are executed, few steps change what a robot
does.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from jaxreflow.evaluate.comparison import REPORT_HTML, compare
from jaxreflow.evaluate.options import EvaluateConfig
from jaxreflow.evaluate.report.table import format_report
from jaxreflow.evaluate.settings import Settings
from jaxreflow.support.command_line import parse, run
from jaxreflow.support.compilation import use_compilation_cache
from jaxreflow.support.storage import as_path


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 if the report was written, 1 after an error. A failed check is a result, not an error."""
    return run(_main, argv, out_of_memory="lower --batch-size or --draws")


def _main(args: list[str]) -> int:
    sections = {"measurement": [field.name for field in dataclasses.fields(Settings)]}
    prog, about = "python -m jaxreflow.evaluate", __doc__ or ""
    config = parse(EvaluateConfig, args, prog=prog, about=about, sections=sections)
    use_compilation_cache()
    report = compare(config).report
    print(format_report(report))
    print(f"\n{as_path(config.out) / REPORT_HTML}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
