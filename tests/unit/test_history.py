"""A log file read back: every step counts, whatever its length, and whatever happened to it."""

from pathlib import Path

import numpy as np
import pytest

from distgrad.reports.history import files_of, read
from support.logs import line, written


def test_a_short_run_is_there_step_by_step(tmp_path: Path) -> None:
    told = {"noise": {"trace": 3.0, "squared_norm": None}, "times": {"compute": 0.1, "reduce": 0.2, "apply": 0.3}}
    told |= {"variables": {"a": {"gradient_norm": 4.0}}, "by_worker": [{"gradient_norm": 5.0}, {"gradient_norm": None}]}
    run = read(written(tmp_path / "log", [line(1), line(2, loss=None, applied=False), line(3, **told)]))
    assert (run.lines, run.damaged, run.skipped) == (3, 0, 1)
    for part in run.column("step"):
        assert part.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(run.column("loss")[1], [1, np.nan, 1 / 3])
    np.testing.assert_array_equal(run.column("trace")[1], [np.nan, np.nan, 3])
    np.testing.assert_array_equal(run.column("squared_norm")[1], [np.nan] * 3)
    assert run.column("apply")[2][-1] == 0.3
    np.testing.assert_array_equal(run.variables["a"], [np.nan, np.nan, 4])
    np.testing.assert_array_equal(run.workers["0"], [np.nan, np.nan, 5])


@pytest.mark.parametrize("steps", [199, 200, 201, 1000, 4321])
def test_a_long_run_keeps_its_extremes_in_few_buckets(tmp_path: Path, steps: int) -> None:
    losses = np.random.default_rng(steps).normal(size=steps)
    losses[steps // 3] = 1e6
    run = read(written(tmp_path / "log", [line(n + 1, loss=float(loss)) for n, loss in enumerate(losses)]), limit=100)
    low, mean, high = run.column("loss")
    assert run.lines == steps
    assert len(mean) < 200
    assert (low.min(), high.max()) == (losses.min(), 1e6)
    sizes = np.diff([*(run.column("step")[0] - 1), steps])
    assert (mean * sizes).sum() == pytest.approx(losses.sum())


def test_damaged_lines_are_counted(tmp_path: Path) -> None:
    damaged = [line(2)[:40], line(3) + line(4), "", "null", "5", '{"step": 6}', line(7, loss="x"), "\x00\x00", "NaN"]
    run = read(written(tmp_path / "log", [line(1), *damaged, line(8)]))
    assert (run.lines, run.damaged) == (2, len(damaged) - 1)


def test_rotated_files_are_read_in_order(tmp_path: Path) -> None:
    for name, step in (("log", 12), ("log.1", 11), ("log.2", 3), ("log.10", 1)):
        written(tmp_path / name, [line(step)])
    written(tmp_path / "log.txt", [line(99)])
    assert [one.name for one in files_of(tmp_path / "log")] == ["log.10", "log.2", "log.1", "log"]
    assert read(tmp_path / "log").column("step")[1].tolist() == [1, 3, 11, 12]
