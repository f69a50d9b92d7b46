"""Where reports go: log files, TensorBoard, the terminal, alarms, Keras's logs."""

import io
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import rich.console

import distgrad
from distgrad import DistributedStep, StepReport
from distgrad.errors import BadArgument
from distgrad.reports.statistics import SCALARS, Contents
from distgrad.seeing import Alarms, Live, LogFile

ROWS = 8


@pytest.fixture(scope="module")
def comm() -> distgrad.Communicator:
    return distgrad.connect("solo")


def model() -> keras.Model:
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Dense(4, activation="relu", name="body"), keras.layers.Dense(1, name="head")]
    return keras.Sequential([keras.Input((3,)), *layers], name="m")


def batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(ROWS, 3)).astype("float32"), rng.normal(size=(ROWS, 1)).astype("float32")


def run(comm: distgrad.Communicator, steps: int, **options: Any) -> list[StepReport]:
    asked = {"statistics": "all", "groups": {"head": "head/"}, "micro_batch_size": 2, "log_every": 0} | options
    step = DistributedStep(model(), "mse", keras.optimizers.SGD(0.1), comm=comm, **asked)
    reports = [step(*batch(number)) for number in range(steps)]
    step.close()
    return reports


def test_a_log_file_has_every_step_and_is_rotated(comm: distgrad.Communicator, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "run.jsonl"
    reports = run(comm, 12, log_file=LogFile(path, max_bytes=6000, backups=20))
    files = sorted(path.parent.iterdir(), key=lambda one: -int(one.suffix[1:]) if one.suffix != ".jsonl" else 0)
    assert len(files) > 2
    assert max(file.stat().st_size for file in files) <= 6000
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[-1] == json.loads(reports[-1].as_json())
    expected = {"zeros", "variables", "by_worker", "noise", "times", "updates", "groups"}
    assert set(lines[-1]) >= expected
    assert set(lines[-1]["updates"]["by_variable"]) == set(lines[-1]["variables"])


def test_a_full_disk_stops_the_log_and_not_the_training(
    comm: distgrad.Communicator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert all(report.applied for report in run(comm, 3, log_file="/dev/full"))
    assert capsys.readouterr().err.count("distgrad: warning: /dev/full lacks steps from now on: [Errno 28]") == 1


def test_an_unwritable_place_does_not_stop_it_either(
    comm: distgrad.Communicator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    run(comm, 2, log_file=tmp_path / "file" / "run.jsonl")
    assert capsys.readouterr().err.count("lacks steps from now on") == 1


def test_functions_hear_every_report_while_its_gradient_is_there(comm: distgrad.Communicator) -> None:
    heard = []
    reports = run(comm, 3, listeners=[lambda report: heard.append((report.step, len(report.table())))])
    assert heard == [(report.step, 4) for report in reports]


def test_updates_are_measured_on_the_weights(comm: distgrad.Communicator) -> None:
    built = model()
    step = DistributedStep(built, "mse", keras.optimizers.SGD(0.1), comm=comm, statistics="updates", log_every=2)
    assert step(*batch()).updates is None
    before = [np.float64(weight) for weight in built.get_weights()]
    ratios = step(*batch()).updates
    after = [np.float64(weight) for weight in built.get_weights()]
    changes = [np.linalg.norm(b - a) for a, b in zip(before, after, strict=True)]
    sizes = [np.linalg.norm(a) for a in before]
    assert ratios.whole == pytest.approx(np.linalg.norm(changes) / np.linalg.norm(sizes), rel=1e-5)
    assert list(ratios.by_variable.values()) == pytest.approx(np.divide(changes, sizes), rel=1e-5)


def test_keras_s_logs_hold_what_was_asked_for(comm: distgrad.Communicator) -> None:
    built = distgrad.distribute(model(), comm, 2, statistics=["variables", "noise"])
    built.compile("sgd", "mse")
    history = built.fit(*batch(), batch_size=ROWS, epochs=2, verbose=0).history
    assert {"gradient_sum", "gradient_norm", "gradient_zeros", "noise_scale"} <= set(history)


def test_what_is_no_statistic_is_refused(comm: distgrad.Communicator) -> None:
    with pytest.raises(BadArgument, match=r"statistics='speed'; give some of 'variables', 'workers'"):
        run(comm, 0, statistics="speed")


def test_a_live_view_on_a_terminal_and_lines_elsewhere(
    comm: distgrad.Communicator, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = rich.console.Console(file=io.StringIO(), force_terminal=True, width=100)
    run(comm, 4, listeners=[Live(console=terminal)])
    shown = terminal.file.getvalue()
    assert all(text in shown for text in ("step 4", "gradient sum", "noise scale", "head", "examples 8 | workers 1"))
    assert any(bar in shown for bar in "▁▂▃▄▅▆▇█")
    capsys.readouterr()
    run(comm, 4, log_format="live", log_every=2)
    assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "step 2",
        "  head",
        "step 4",
        "  head",
    ]


# ---- alarms

CONTENTS = Contents([("a", (2,))], {}, 2, 0, frozenset({"variables", "workers"}), True)


def report(step: int, norm: float = 1.0, zeros: float = 0, odd: float = 1.0, seconds: float = 0.01) -> StepReport:
    numbers: dict[str, Any] = dict.fromkeys(SCALARS, 0) | {"loss": 0.5, "examples": 8, "weight": 8.0, "applied": 1}
    numbers |= {"gradient_sum": norm, "gradient_norm": norm, "gradient_max": norm, "nonfinite_workers": [0, 0]}
    numbers |= {
        "scale": 1.0,
        "summed_squares": 64.0,
        "summed_after": 0.005,
        "by_variable": [[norm, norm, norm, 0, zeros]],
    }
    workers = [[norm * 4, norm * 4, 1.0, 1, 4.0, 0.001], [odd * norm * 4, odd * norm * 4, 1.0, 1, 4.0, 0.001]]
    numbers["worker_table"] = np.hstack([workers, np.zeros_like(workers)])
    exact = {name: np.asarray(value, np.float64) for name, value in numbers.items()}
    return StepReport(step, 2, seconds, CONTENTS.packing.pack(exact).numpy(), CONTENTS, None)


def alarms(reports: list[StepReport], capsys: pytest.CaptureFixture[str], **thresholds: Any) -> list[str]:
    listener = Alarms(**thresholds)
    for one in reports:
        listener.hear(one)
    return capsys.readouterr().err.splitlines()


USUAL = [report(step, norm=1 + step % 5) for step in range(1, 41)]


@pytest.mark.parametrize(
    ("then", "line"),
    [
        ([{"norm": 400.0}], "step 41: exploding gradient: norm 4.0000e+02, 133 times the median 3.0000e+00"),
        ([{"norm": 1e-5}], "step 41: vanishing gradient: norm 1.0000e-05, and the median is 3.0000e+00"),
        ([{"zeros": 2}] * 20, "step 60: dead layer a: its gradient has been all zeros for 20 steps"),
        (
            [{"odd": 20.0}] * 20,
            "step 60: odd worker rank 0: its own gradient has norm 1.0000e+00, the others' 2.0000e+01",
        ),
        ([{"seconds": 1.1}], "step 41: slow step: 1.10 s, and the median is 0.01 s"),
    ],
)
def test_an_alarm_is_one_line(then: list[dict[str, float]], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    reports = [*USUAL, *(report(41 + number, **what) for number, what in enumerate(then))]
    assert alarms(reports, capsys)[0] == f"distgrad: alarm: {line}"
    assert alarms(reports[:-1], capsys) == []
    assert alarms(reports, capsys, exploding=None, vanishing=None, dead=None, odd=None, slow=None) == []


def test_an_alarm_is_not_repeated_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    loud = [report(41 + number, norm=1e3) for number in range(20)]
    assert len(alarms([*USUAL, *loud], capsys, quiet=10)) == 2
    assert alarms([*USUAL, report(41, norm=np.nan)], capsys) == []
