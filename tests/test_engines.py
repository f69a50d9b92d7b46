"""The contract suite on every engine: the same tests, inside real workers, under a clock."""

import pytest
from launching import ROOT, horovod_installed, launch

ENGINES = [
    ("solo", 1),
    ("mpi", 1),
    ("mpi", 2),
    ("mpi", 3),
    ("horovod-gloo", 1),
    ("horovod-gloo", 2),
    ("horovod-gloo", 3),
    ("horovod-mpi", 1),
    ("horovod-mpi", 2),
    ("mwms", 2),
    ("mwms", 3),
    ("mirrored", 2),
]


@pytest.mark.parametrize(("engine", "size"), ENGINES)
def test_contract(engine: str, size: int) -> None:
    if engine.startswith("horovod") and not horovod_installed():
        pytest.skip("Horovod is not installed")
    suite = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", ROOT / "tests" / "contract", "--timeout=240"]
    for job in launch(engine, size, suite, timeout=300):
        assert job.status == 0, job.out[-6000:] + job.err[-3000:]
        assert " passed" in job.out
        assert "failed" not in job.out.splitlines()[-1]
