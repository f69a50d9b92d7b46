"""Whatever happens to a worker or its launcher: the job ends in time, says why, and leaves nothing behind."""

import pytest
from faults import FAULTS, Trial
from launching import horovod_installed

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
    Trial(name, engine).run()
