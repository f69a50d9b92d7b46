"""The workers' tests in every world: one launch each, under a clock, with the result of every test in it."""

from pathlib import Path

import pytest

from support import results
from support.launching import TESTS, launch, needs_horovod

HOROVOD = ("horovod-gloo", "horovod-mpi")
# All tests run in one world; in the others, those marked `every_world`. `-m thorough` runs all of them everywhere.
WHOLE = [("mpi", 2)]
OTHERS = [
    ("solo", 1),
    ("mpi", 1),
    ("mpi", 3),
    ("horovod-gloo", 1),
    ("horovod-gloo", 2),
    ("horovod-gloo", 3),
    ("horovod-mpi", 2),
    ("mwms", 2),
    ("mwms", 3),
    ("mirrored", 2),
]
PROCESSES = {"mirrored": 1}  # in other worlds there is one for each worker
A_TEST, A_WORLD = 240, 900  # seconds until it is taken for hung


def world(engine: str, size: int, *marks: pytest.MarkDecorator) -> object:
    return pytest.param(engine, size, marks=[*marks, *([needs_horovod] if engine in HOROVOD else [])])


@pytest.mark.timeout(A_WORLD + 60)
@pytest.mark.parametrize(
    ("engine", "size"),
    [*(world(*whole) for whole in WHOLE), *(world(*other, pytest.mark.thorough) for other in OTHERS)],
)
def test_all(engine: str, size: int, subtests: pytest.Subtests, tmp_path: Path) -> None:
    run_in_workers(engine, size, "", subtests, tmp_path)


@pytest.mark.timeout(A_WORLD + 60)
@pytest.mark.parametrize(("engine", "size"), [world(*other) for other in OTHERS])
def test_those_for_every_world(engine: str, size: int, subtests: pytest.Subtests, tmp_path: Path) -> None:
    run_in_workers(engine, size, "every_world", subtests, tmp_path)


def run_in_workers(engine: str, size: int, marked: str, subtests: pytest.Subtests, folder: Path) -> None:
    """Run the tests that are so marked in each worker, and show every result as one of the outer test's."""
    suite = ["-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS / "workers", "-m", marked]
    clock = [f"--timeout={A_TEST}", "--timeout-method=thread"]  # a signal does not end a sum that waits
    jobs = launch(engine, size, [*suite, *clock], timeout=A_WORLD, env={"DISTGRAD_TEST_RESULTS": str(folder)})
    found = results.read(folder, PROCESSES.get(engine, size))
    for result in found:
        with subtests.test(result.name):
            assert not result.complaints, "\n".join(result.complaints)
    for job in jobs:
        assert job.status == 0, job.out[-6000:] + job.err[-3000:]
    assert sum(result.ran for result in found) > 10
