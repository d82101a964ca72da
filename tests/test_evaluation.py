"""The measure of fidelity and its table, on numbers that can be checked by hand."""

import numpy as np

from jaxreflow.evaluation import Fidelity, relative_error
from jaxreflow.report import table


def test_relative_error_is_one_quotient_over_the_whole_set():
    reference = np.array([[3.0, 0.0], [0.0, 4.0]])
    np.testing.assert_allclose(relative_error(np.array([[3.0, 1.0], [0.0, 4.0]]), reference), 1 / 5)
    assert relative_error(reference, reference) == 0.0


def test_table_has_a_line_per_policy_and_a_column_per_set():
    rows = [
        Fidelity(name, 1, frames, error) for name, frames, error in (("a", "x", 0.5), ("a", "y", 1.0), ("b", "x", 2.0))
    ]
    rows.append(Fidelity("b", 1, "y", 0.25))
    assert table(rows, "t@10").splitlines() == [
        "| relative error to t@10, same noise | x | y |",
        "| --- | --- | --- |",
        "| a@1 | 0.500 | 1.000 |",
        "| b@1 | 2.000 | 0.250 |",
    ]
