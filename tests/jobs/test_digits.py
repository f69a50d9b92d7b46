"""The main job as a newcomer runs it: the digits, by every launcher, with the same script."""

import re
import shutil
from pathlib import Path

import pytest

from measure.memory import peak
from support.launching import AS_IT_IS, ROOT, Job, launch, needs_horovod, recipe, run
from support.lines import STEP

SCRIPT = recipe("train_digits.py")
TELLING_ALL = [SCRIPT, "--statistics", "all"]
STEPS = 12 * 23  # 1,437 rows in batches of 64, the last of 29


def check(job: Job, workers: int) -> list[float]:
    """Rank 0 printed one line a step and the accuracy, nobody else anything. Gives the gradient norms."""
    assert job.status == 0, job.err[-3000:]
    fields = [match.groups() for match in map(STEP.fullmatch, job.lines("step")) if match]
    assert [int(field[0]) for field in fields] == list(range(1, STEPS + 1))
    assert {int(field[5]) for field in fields} == {workers}
    assert fields[22][4] == "29"
    accuracy = [float(line.split()[-1]) for line in job.lines("test accuracy")]
    assert len(accuracy) == 1
    assert accuracy[0] >= 0.95
    # Whatever else they say: a machine may have its hiccups.
    assert [line for line in job.err.splitlines() if "distgrad: alarm" in line and "slow step" not in line] == []
    others = [line for line in job.out.splitlines() if line and not re.search(r"step \d+ \||test accuracy", line)]
    assert others == []
    return [float(field[3]) for field in fields]


@pytest.fixture(scope="module")
def alone() -> list[float]:
    return check(launch("solo", 1, TELLING_ALL)[0], 1)


@pytest.mark.parametrize(
    "engine",
    [
        "mpi",
        "mwms",
        pytest.param("horovod-gloo", marks=needs_horovod),
        pytest.param("horovod-mpi", marks=[needs_horovod, pytest.mark.thorough]),
    ],
)
def test_two_workers_train_the_digits_as_one_does(engine: str, alone: list[float]) -> None:
    root, *others = launch(engine, 2, TELLING_ALL)
    norms = check(root, 2)
    assert norms[:5] == pytest.approx(alone[:5], rel=1e-3)
    for other in others:
        assert (other.status, other.out) == (0, "")


def test_quickstart() -> None:
    job = run([ROOT / "launch" / "quickstart"], timeout=280, env=AS_IT_IS)
    assert job.status == 0, job.err[-3000:]
    assert sum(bool(STEP.fullmatch(line)) for line in job.out.splitlines()) == STEPS
    assert "workers 2" in job.out
    assert float(job.out.strip().rsplit(" ", 1)[-1]) >= 0.95


@pytest.mark.parametrize(("missing", "fix"), [("g++", "apt-get install g++"), ("make", "apt-get install make")])
def test_horovod_s_build_names_what_it_lacks(tmp_path: Path, missing: str, fix: str) -> None:
    """Under a PATH of links to what is there; cmake and mpicxx come with the environment."""
    for program in {"bash", "dirname", "env", "g++", "make"} - {missing}:
        (tmp_path / program).symlink_to(shutil.which(program) or "/bin/true")
    job = run(["bash", ROOT / "launch" / "install-horovod"], env={"PATH": str(tmp_path)})
    assert (job.status, job.out) == (69, "")
    assert job.err == f"launch/install-horovod: {missing} is missing; on Debian: {fix}\n"


def test_json_lines() -> None:
    job = launch("mpi", 2, [SCRIPT, "--epochs", "1", "--log-format", "json"])[0]
    assert len(job.lines('{"step": ')) == 23 == len(job.out.splitlines())


def test_micro_batches_cost_no_memory() -> None:
    assert peak(32) <= 1.05 * peak(2)
