"""The contract suite on every engine: the same tests, inside real workers, under a clock."""

import pytest
from support.launching import ROOT, launch, needs_horovod

HOROVOD = ("horovod-gloo", "horovod-mpi")
# The communicator's own suite runs in all of these. Above it nothing knows the engine: what is built on it runs whole
# in one world, and at a glance in some others. `-m thorough` runs all of it everywhere, which takes long.
WORLDS = [
    ("solo", 1),
    ("mpi", 1),
    ("mpi", 2),
    ("mpi", 3),
    ("horovod-gloo", 1),
    ("horovod-gloo", 2),
    ("horovod-gloo", 3),
    ("horovod-mpi", 2),
    ("mwms", 2),
    ("mwms", 3),
    ("mirrored", 2),
]
WHOLE = [("mpi", 2)]
GLANCED = [("mpi", 3), ("horovod-gloo", 2), ("mwms", 2), ("mirrored", 2)]
GLANCE = "masked or one_reduction or nonfinite_on or nan_on"
CHECKPOINTED = [("mpi", 2), ("horovod-gloo", 2), ("mwms", 2), ("mirrored", 2)]


def worlds(chosen: list[tuple[str, int]], usual: list[tuple[str, int]] | None = None) -> pytest.MarkDecorator:
    """Run a test in these worlds; those that are not usual are for a thorough run."""

    def marks(world: tuple[str, int]) -> list[pytest.MarkDecorator]:
        thorough = [] if usual is None or world in usual else [pytest.mark.thorough]
        return [*thorough, *([needs_horovod] if world[0] in HOROVOD else [])]

    listed = [pytest.param(*world, marks=marks(world)) for world in chosen]
    return pytest.mark.parametrize(("engine", "size"), listed)


@worlds(WORLDS)
def test_communicator_and_a_glance_at_the_rest(engine: str, size: int) -> None:
    if (engine, size) in GLANCED:
        only = f"test_communicator or {GLANCE}"
        run_suite(engine, size, "test_communicator.py", "test_step.py", "test_fit.py", only=only)
    else:
        run_suite(engine, size, "test_communicator.py")


@worlds(WORLDS, WHOLE)
def test_step(engine: str, size: int) -> None:
    run_suite(engine, size, "test_step.py", "test_rows.py", "test_guards.py")


@worlds(WORLDS, WHOLE)
def test_fit(engine: str, size: int) -> None:
    run_suite(engine, size, "test_fit.py", "test_statistics.py")


@worlds(WORLDS, WHOLE)
def test_guides(engine: str, size: int) -> None:
    run_suite(engine, size, "test_guides.py")


@worlds(CHECKPOINTED, WHOLE)
def test_checkpoints(engine: str, size: int) -> None:
    run_suite(engine, size, "test_checkpoint.py", only="" if engine == "mpi" else "loop and 10 or damaged")


def run_suite(engine: str, size: int, *files: str, only: str = "") -> None:
    paths = [ROOT / "tests" / "workers" / name for name in files]
    suite = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *paths, "--timeout=240", "-k", only]
    for job in launch(engine, size, suite, timeout=540):
        assert job.status == 0, job.out[-6000:] + job.err[-3000:]
        assert " passed" in job.out
        assert "failed" not in job.out.splitlines()[-1]
