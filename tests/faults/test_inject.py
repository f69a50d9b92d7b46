"""Whatever happens to a worker or its launcher: the job ends in time, says why, and leaves nothing behind."""

import re
import sys

import pytest

from faults.inject import FAULTS, Trial, can_be_done
from support.launching import ROOT, horovod_installed, run
from support.mounts import needs_mounts

# Nearly everything under MPI; under the others what they have of their own; the rest in a thorough run.
CHOSEN = {"mpi": [*range(1, 35)], "horovod-gloo": [1, 3, 8], "mwms": [1, 9]}
ROWS = {name: int(name.split()[0]) for name in FAULTS}
CASES = [
    pytest.param(
        name, engine, marks=[pytest.mark.fault(row), *([] if row in CHOSEN[engine] else [pytest.mark.thorough])]
    )
    for name, row in ROWS.items()
    for engine in CHOSEN
    if engine in FAULTS[name].status
]
LISTED = re.compile(r"^\| (\d+) \|", re.MULTILINE)
MARKED = re.compile(r"mark\.fault\(([\d, ]+)\)")


@pytest.mark.parametrize(("name", "engine"), CASES)
def test_a_fault(name: str, engine: str) -> None:
    if engine.startswith("horovod") and not horovod_installed():
        pytest.skip("Horovod is not installed")
    if not can_be_done(name):
        pytest.skip("no group of processes with a limit of memory can be made here")
    Trial(name, engine).run()


def test_every_fault_that_is_listed_is_tried() -> None:
    listed = set(map(int, LISTED.findall((ROOT / "tests" / "faults.md").read_text())))
    sources = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    marked = {int(row) for source in sources for rows in MARKED.findall(source) for row in rows.split(",")}
    assert listed == marked | set(ROWS.values())


@needs_mounts
def test_nothing_is_left_of_a_job_that_was_killed_anywhere() -> None:
    job = run([sys.executable, "-m", "faults.kills", "--times", "3", "--seed", "5"])
    assert job.status == 0, job.out + job.err
    assert "3 kills, complaints: 0" in job.out
