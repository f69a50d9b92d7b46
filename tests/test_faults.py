"""Whatever happens to a worker or its launcher: the job ends in time, says why, and leaves nothing behind."""

import pytest
from faults import FAULTS, Trial
from launching import horovod_installed

CASES = [(name, engine) for name, fault in FAULTS.items() for engine in fault.status]


@pytest.mark.parametrize(("name", "engine"), CASES)
def test_a_fault(name: str, engine: str) -> None:
    if engine.startswith("horovod") and not horovod_installed():
        pytest.skip("Horovod is not installed")
    Trial(name, engine).run()
