"""The digits by every launcher, with the same script."""

import json
import re
from collections.abc import Sequence

import pytest

from support.launching import Job, launch, recipe
from support.lines import STEP
from support.marks import first_as_a_rule

SCRIPT = recipe("train_digits.py")
TELLING_ALL = [SCRIPT, "--statistics", "all"]
STEPS = 12 * 23  # 1,437 rows in batches of 64, the last of 29


def check(job: Job, workers: int) -> list[float]:
    """Rank 0 printed one line a step and the accuracy, nobody else anything. Gives the gradient norms."""
    fields = [match.groups() for match in map(STEP.fullmatch, job.lines("step")) if match]
    check_steps(job, workers, [(int(field[0]), int(field[4]), int(field[5])) for field in fields])
    accuracy = [float(line.split()[-1]) for line in job.lines("test accuracy")]
    assert len(accuracy) == 1
    assert accuracy[0] >= 0.95
    others = [line for line in job.out.splitlines() if line and not re.search(r"step \d+ \||test accuracy", line)]
    assert others == []
    return [float(field[3]) for field in fields]


def check_json(job: Job, workers: int) -> list[float]:
    """Rank 0 printed one line a step, nobody else anything. Gives the gradient norms."""
    reports = [json.loads(line) for line in job.out.splitlines()]
    check_steps(job, workers, [(report["step"], report["examples"], report["workers"]) for report in reports])
    return [report["gradient_norm"] for report in reports]


def check_steps(job: Job, workers: int, found: Sequence[tuple[int, int, int]]) -> None:
    """Found are the number, examples and workers of each step."""
    assert job.status == 0, job.err[-3000:]
    assert [number for number, _, _ in found] == list(range(1, STEPS + 1))
    assert {size for _, _, size in found} == {workers}
    assert found[22][1] == 29
    # Whatever else they say: a machine may have its hiccups.
    assert [line for line in job.err.splitlines() if "distgrad: alarm" in line and "slow step" not in line] == []


@pytest.fixture(scope="module")
def alone() -> list[float]:
    return check(launch("solo", 1, TELLING_ALL)[0], 1)


@first_as_a_rule("horovod-gloo", "horovod-mpi", "mwms")
def test_two_workers_train_the_digits_as_one_does(engine: str, alone: list[float]) -> None:
    root, *others = launch(engine, 2, TELLING_ALL)
    norms = check(root, 2)
    assert norms[:5] == pytest.approx(alone[:5], rel=1e-3)
    for other in others:
        assert (other.status, other.out) == (0, "")


def test_two_mpi_workers_do_and_print_json(alone: list[float]) -> None:
    """As lines, test_installation.py reads what they print."""
    (job,) = launch("mpi", 2, [*TELLING_ALL, "--log-format", "json"])
    assert check_json(job, 2)[:5] == pytest.approx(alone[:5], rel=1e-3)
