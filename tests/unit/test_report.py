"""What a step tells: the line that people grep, the JSON that programs read, the table."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf

from distgrad import StepReport
from distgrad.errors import ReportExpired
from distgrad.gradients.flat_vector import Place
from distgrad.gradients.global_gradient import GradientStatistics
from distgrad.reports.lines import Lines
from distgrad.reports.report import GlobalGradientEntries
from distgrad.reports.statistics import Contents
from support.lines import STEP


class Watched:
    """A value that knows whether it was fetched."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.fetched = values, 0

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        self.fetched += 1
        return np.array(self.values)


CONTENTS = Contents(
    variables=[("a/kernel", (3, 1)), ("b", (2,))],
    groups={"head": [0, 1]},
    workers=2,
    rank=0,
    asked=frozenset(),
    divides=True,
)
PLACES = [Place(1, 0, None), Place(0, 0, 2)]


def report(loss: float = 0.431214, nonfinite: float = 0, applied: float = 1) -> StepReport:
    numbers = {"loss": loss, "examples": 2048, "weight": 2000.5, "more": 1, "applied": applied, "stop": 0, "drifted": 0}
    numbers |= {"gradient_sum": -32.184, "gradient_norm": 1.9203, "gradient_max": 0.5, "nonfinite": nonfinite}
    numbers["nonfinite_workers"] = [0, float(nonfinite > 0)]
    numbers["by_variable"] = [[-1.5, 1.2, 0.25, 0, 1], [0.5, 1.6, 0.125, 0, 0]]
    exact = {name: np.asarray(value, np.float64) for name, value in numbers.items()}
    values = Watched(CONTENTS.packing.pack(exact).numpy())
    in_two_blocks, sparse = [tf.constant([np.nan]), tf.constant([3.0])], tf.constant([1.0, -2.0, 2.0])
    return StepReport(12, 2, 0.0123, values, CONTENTS, GlobalGradientEntries(in_two_blocks, [sparse], PLACES))


def test_the_line_is_the_one_that_people_grep() -> None:
    line, group = report().as_text().split("\n")
    assert line == (
        "step 12 | loss 0.43121 | gradient sum -3.2184e+01 | gradient norm 1.9203e+00"
        " | examples 2048 | workers 2 | 12.3 ms"
    )
    assert STEP.fullmatch(line)
    assert group == "  head | gradient sum -1.0000e+00 | gradient norm 2.0000e+00"
    assert STEP.fullmatch(report(loss=np.nan).as_text().split("\n")[0])


def test_json_has_the_same_fields_and_stays_json_when_numbers_are_not_finite() -> None:
    fields = json.loads(report().as_json())
    assert fields.pop("groups") == {
        "head": {"gradient_sum": -1.0, "gradient_norm": 2.0, "gradient_max": 0.25, "nonfinite": 0}
    }
    assert fields == {
        "step": 12,
        "loss": 0.431214,
        "examples": 2048,
        "weight": 2000.5,
        "gradient_sum": -32.184,
        "gradient_norm": 1.9203,
        "gradient_max": 0.5,
        "nonfinite": 0,
        "applied": True,
        "workers": 2,
        "seconds": 0.0123,
    }
    assert json.loads(report(loss=np.inf).as_json())["loss"] is None


def test_values_are_fetched_once_and_only_when_read() -> None:
    one = report()
    values = one._values
    assert (one.step, one.workers, repr(one)[:11], values.fetched) == (12, 2, "StepReport(", 0)
    assert (one.loss, one.examples, one.gradient_norm, one.groups["head"]) == (
        0.431214,
        2048,
        1.9203,
        GradientStatistics(-1.0, 2.0, 0.25, 0),
    )
    assert values.fetched == 1


def test_the_table_has_a_row_a_variable_and_expires_with_its_step() -> None:
    one = report()
    table = one.table()
    assert table[0] == ("a/kernel", (3, 1), 1.0, 3.0, 2.0, 0)
    assert (table[1].path, table[1].nonfinite) == ("b", 1)
    assert re.search(r"a/kernel\s+│ \(3, 1\)\s+│\s+1\.0000e\+00 │\s+3\.0000e\+00", str(table))
    one.expire()
    with pytest.raises(ReportExpired, match="step 12 is gone"):
        one.table()


def test_a_skipped_step_says_who_is_to_blame(capsys: pytest.CaptureFixture[str]) -> None:
    Lines().hear(report(nonfinite=3, applied=0))
    printed = capsys.readouterr()
    assert STEP.match(printed.out)
    assert printed.err == "distgrad: warning: step 12 skipped: 3 non-finite gradient entries from rank 1\n"
