"""The contract suite on every engine: the same tests, inside real workers, under a clock."""

import pytest
from launching import ROOT, launch, needs_horovod

ENGINES = [
    ("solo", 1),
    ("mpi", 1),
    ("mpi", 2),
    ("mpi", 3),
    pytest.param("horovod-gloo", 1, marks=needs_horovod),
    pytest.param("horovod-gloo", 2, marks=needs_horovod),
    pytest.param("horovod-gloo", 3, marks=needs_horovod),
    pytest.param("horovod-mpi", 1, marks=needs_horovod),
    pytest.param("horovod-mpi", 2, marks=needs_horovod),
    ("mwms", 2),
    ("mwms", 3),
    ("mirrored", 2),
]


# Above the step nothing knows the engine: one world of each kind, and MPI's in two sizes.
FITTING = [
    ("solo", 1),
    ("mpi", 2),
    ("mpi", 3),
    pytest.param("horovod-gloo", 2, marks=needs_horovod),
    ("mwms", 2),
    ("mirrored", 2),
]


# What people write, with the two lines.
GUIDED = [("mpi", 2), ("mwms", 2)]
# The other worlds see a little of everything that fit does.
GLANCED = [
    ("mpi", 1),
    pytest.param("horovod-gloo", 1, marks=needs_horovod),
    pytest.param("horovod-gloo", 3, marks=needs_horovod),
    pytest.param("horovod-mpi", 2, marks=needs_horovod),
    ("mwms", 3),
]


@pytest.mark.parametrize(("engine", "size"), ENGINES)
def test_contract(engine: str, size: int) -> None:
    run_suite(engine, size, "test_communicator.py", "test_step.py", "test_guards.py")


@pytest.mark.parametrize(("engine", "size"), FITTING)
def test_rows_and_fit(engine: str, size: int) -> None:
    run_suite(engine, size, "test_rows.py", "test_fit.py", "test_seeing.py")


@pytest.mark.parametrize(("engine", "size"), GUIDED)
def test_guides(engine: str, size: int) -> None:
    run_suite(engine, size, "test_guides.py")


@pytest.mark.parametrize(("engine", "size"), GLANCED)
def test_fit_at_a_glance(engine: str, size: int) -> None:
    run_suite(engine, size, "test_fit.py", only="masked or nan_on or test_callbacks or unequal")


@pytest.mark.parametrize(
    ("engine", "some"),
    [
        ("mpi", ""),
        pytest.param("horovod-gloo", "loop and 10 or damaged", marks=needs_horovod),
        ("mwms", "loop and 10 or damaged"),
    ],
)
def test_checkpoints(engine: str, some: str) -> None:
    run_suite(engine, 2, "test_checkpoint.py", only=some)


def run_suite(engine: str, size: int, *files: str, only: str = "") -> None:
    paths = [ROOT / "tests" / "contract" / name for name in files]
    suite = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *paths, "--timeout=240", "-k", only]
    for job in launch(engine, size, suite, timeout=540):
        assert job.status == 0, job.out[-6000:] + job.err[-3000:]
        assert " passed" in job.out
        assert "failed" not in job.out.splitlines()[-1]
