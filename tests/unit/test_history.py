"""A log file read back: every step counts, whatever its length, and whatever happened to it."""

import base64
import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from distgrad.reports.history import LONGEST_LINE, MOST_NAMES, files_of, read
from distgrad.reports.html_report import summary, write_html, write_png
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


def of_variable(norm: object, name: str = "a") -> str:
    return line(2, variables={name: {"gradient_norm": norm}})


ODD_STEPS = (-1, 1.5, None, "2", True, 2**63, 2**64, 10**400, 1e308, 10**16)
NO_STEPS = ("5", "[]", '"x"', "true", "NaN", "Infinity", "{}", "[" * 10_000, '{"step":' * 10_000, "\x1b[31m", "{\x00")
DAMAGED = [
    *NO_STEPS,
    *(line(2, loss=loss) for loss in (float("nan"), float("inf"), "1", [1], {}, True)),
    *(line(2).replace('"step": 2', f'"step": {json.dumps(step)}') for step in ODD_STEPS),
    *(line(2, applied=applied) for applied in (1, "yes", None, [])),
    *(line(2, variables=variables) for variables in ([], 5, None, "x", {"a": 5}, {"a": {}}, {"a": None}, {"a": []})),
    *(of_variable(norm) for norm in ("x", [1, 2], {}, True)),
    *(line(2, by_worker=workers) for workers in (7, None, [1], [None], [{}], {"a": 1}, "x", [{"gradient_norm": "x"}])),
    *(line(2, noise=noise) for noise in (7, [], "x", {"trace": "x"}, {"squared_norm": []})),
    *(line(2, times=times) for times in (7, [], "x", {"compute": "x"}, {"apply": True})),
    line(2, variables={"a": {"gradient_norm": 1.0}}).replace('"a"', '"\\ud800"'),
]


@pytest.mark.fault(46)
def test_odd_lines_are_damaged_ones(tmp_path: Path) -> None:
    for text in DAMAGED:
        run = read(written(tmp_path / "log", [line(1), text, line(3)]))
        assert (run.lines, run.damaged) == (2, 1), text[:100]
    path = tmp_path / "log"
    path.write_bytes(
        b"\n".join([line(1).encode(), b'{"step": "\xff\xfe"}', b"\xef\xbb\xbf" + line(2).encode(), b"\xc3("])
    )
    run = read(path)
    assert (run.lines, run.damaged) == (1, 3)


@pytest.mark.fault(46)
def test_a_line_without_end_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.write(line(1).encode() + b"\n")
        for _ in range(100):
            file.write(b"[" * 1_000_000)
        file.write(b"\n" + line(2).encode() + b"\n" + b"{" * (LONGEST_LINE - 1) + b"\n" + line(3).encode())
    tracemalloc.start()
    try:
        run = read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (run.lines, run.damaged) == (3, 2)
    assert peak < 16 * LONGEST_LINE < 100_000_000


def test_the_names_of_a_log_are_bounded(tmp_path: Path) -> None:
    norms = [{f"{step}-{n}": {"gradient_norm": float(n)} for n in range(6000)} for step in range(4)]
    run = read(written(tmp_path / "log", [line(step + 1, variables=each) for step, each in enumerate(norms)]))
    assert len(run.variables) == MOST_NAMES
    np.testing.assert_array_equal(run.variables["1-3999"], [np.nan, 3999, np.nan, np.nan])
    assert "1-4000" not in run.variables


NAMES = [
    "<script>alert(1)</script>",
    "cost$\\frac$x$",
    "a_$x^$_b",
    "a\x00b",
    "a\x1b[31mb\n\n",
    "\u202eabc",
    "\U0001f600 \u5909\u6570",
    "&amp;\"'",
    "x" * 20_000,
]


@pytest.mark.fault(46)
def test_odd_names_and_numbers_are_drawn(tmp_path: Path) -> None:
    """Without a warning, which would be an error here."""
    lines = [line(n + 1, variables={name: {"gradient_norm": n + 1}}) for n, name in enumerate(NAMES)]
    lines += [
        line(20, loss=1e308, gradient_norm=1e-320, gradient_sum=-1e308, variables={"a": {"gradient_norm": 1e308}}),
        line(
            21,
            times={"compute": -1e300, "reduce": 1e300, "apply": -1.0},
            noise={"trace": 1e308, "squared_norm": 5e-324},
        ),
        line(10**15, seconds=-1, by_worker=[{"gradient_norm": 0.0}] * 100),
        line(10**15),
        line(5),
    ]
    run = read(written(tmp_path / "log", lines))
    assert (run.lines, run.damaged) == (len(lines), 0)
    write_html(tmp_path / "page.html", "\x1b[31m<b>\udcff", run)
    page = (tmp_path / "page.html").read_text()
    assert "&#x27;\\x1b[31m&lt;b&gt;\\udcff&#x27;" in page
    drawn = "".join(base64.b64decode(each).decode() for each in re.findall('base64,([^"]+)', page))
    assert not re.search("[\x00\x1b\u202e]", drawn)
    for text in ("&lt;script&gt;", "cost$\\frac$x$", "a\\x1b[31mb\\n", "\\u202eabc", "\u5909"):
        assert text in drawn
    assert "<script" not in drawn + page


def test_a_page_of_nothing_finite(tmp_path: Path) -> None:
    none = dict.fromkeys(("loss", "gradient_sum", "gradient_norm", "seconds"))
    norm = {"gradient_norm": None}
    run = read(written(tmp_path / "log", [line(1, **none, variables={"a": norm}, by_worker=[norm])]))
    assert summary(run)["median step"] == "unknown"
    write_png(tmp_path / "page.png", run)


def test_rotated_files_are_read_in_order(tmp_path: Path) -> None:
    for name, step in (("log", 12), ("log.1", 11), ("log.2", 3), ("log.10", 1)):
        written(tmp_path / name, [line(step)])
    for name in ("log.txt", "log.\u00b2", "log.\u0663x"):
        written(tmp_path / name, [line(99)])
    (tmp_path / "log.7").mkdir()
    assert [one.name for one in files_of(tmp_path / "log")] == ["log.10", "log.2", "log.1", "log"]
    assert read(tmp_path / "log").column("step")[1].tolist() == [1, 3, 11, 12]
