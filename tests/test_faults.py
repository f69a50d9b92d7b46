"""Whatever happens to a worker or its launcher: the job ends in time, says why, and leaves nothing behind."""

import sys

import pytest
from apart import needs_mounts
from faults import FAULTS, Trial, can_be_done
from launching import ROOT, horovod_installed, run

# Everything under MPI; under the others what they have of their own. `python tests/faults.py --engine` does all.
CHOSEN = {"mpi": "", "horovod-gloo": "1358", "mwms": "19"}
CASES = [
    (name, engine)
    for name, fault in FAULTS.items()
    for engine, rows in CHOSEN.items()
    if engine in fault.status and (not rows or name.split()[0] in list(rows))
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
    assert "3 kills, left behind: 0" in job.out
