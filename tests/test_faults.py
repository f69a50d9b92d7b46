"""Whatever happens to a worker or its launcher: the job ends in time, says why, and leaves nothing behind."""

import sys

import pytest
from apart import needs_mounts
from faults import FAULTS, Trial, can_be_done
from launching import ROOT, horovod_installed, run

# Nearly everything under MPI; under the others what they have of their own; the rest in a thorough run.
CHOSEN = {"mpi": [*range(1, 35)], "horovod-gloo": [1, 3, 5, 8], "mwms": [1, 5, 9]}
CASES = [
    pytest.param(name, engine, marks=[] if int(name.split()[0]) in rows else pytest.mark.thorough)
    for name, fault in FAULTS.items()
    for engine, rows in CHOSEN.items()
    if engine in fault.status
]


@pytest.mark.parametrize(("name", "engine"), CASES)
def test_a_fault(name: str, engine: str) -> None:
    if engine.startswith("horovod") and not horovod_installed():
        pytest.skip("Horovod is not installed")
    if not can_be_done(name):
        pytest.skip("no group of processes with a limit of memory can be made here")
    Trial(name, engine).run()


@needs_mounts
def test_nothing_is_left_of_a_job_that_was_killed_anywhere() -> None:
    job = run([sys.executable, ROOT / "tests" / "kills.py", "--times", "3", "--seed", "5"])
    assert job.status == 0, job.out + job.err
    assert "3 kills, complaints: 0" in job.out
