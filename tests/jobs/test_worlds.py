"""The workers' tests in every world: one launch each, under a clock, with the result of every test in it."""

from pathlib import Path

import pytest

from support.launching import launch, needs_horovod
from support.worlds import A_WORLD, settings, show, suite

pytestmark = pytest.mark.timeout(A_WORLD + 60)
HOROVOD = ("horovod-gloo", "horovod-mpi")
# All tests but those marked `thorough` run in one world, those marked `every_world` in all others, and the few marked
# `every_engine` or `three_workers` in some of them. `-m thorough` runs all tests everywhere, and in two worlds more.
WHOLE = [("mpi", 2)]
OTHERS = {
    ("solo", 1): "every_world",
    ("mpi", 1): "every_world",
    ("mpi", 3): "every_world or three_workers",
    ("horovod-gloo", 1): "every_world",
    ("horovod-gloo", 2): "every_world or every_engine",
    ("horovod-mpi", 2): "every_world",
    ("mwms", 2): "every_world or every_engine",
    ("mirrored", 2): "every_world or every_engine",
}
THOROUGH = [("horovod-gloo", 3), ("mwms", 3)]
PROCESSES = {"mirrored": 1}  # in other worlds there is one for each worker


def world(engine: str, size: int, *marks: pytest.MarkDecorator) -> object:
    return pytest.param(engine, size, marks=[*marks, *([needs_horovod] if engine in HOROVOD else [])])


@pytest.mark.parametrize(
    ("engine", "size"),
    [world(*each, pytest.mark.thorough) for each in [*WHOLE, *OTHERS, *THOROUGH]],
)
def test_all(engine: str, size: int, subtests: pytest.Subtests, tmp_path: Path) -> None:
    run_in_workers(engine, size, "", subtests, tmp_path)


@pytest.mark.parametrize(
    ("engine", "size"),
    [*(world(*whole) for whole in WHOLE), world("solo", 1, pytest.mark.thorough, pytest.mark.releases)],
)
def test_all_but_thorough_ones(engine: str, size: int, subtests: pytest.Subtests, tmp_path: Path) -> None:
    run_in_workers(engine, size, "not thorough", subtests, tmp_path)


@pytest.mark.parametrize(("engine", "size"), [world(*other) for other in OTHERS])
def test_some(engine: str, size: int, subtests: pytest.Subtests, tmp_path: Path) -> None:
    run_in_workers(engine, size, OTHERS[engine, size], subtests, tmp_path)


def run_in_workers(engine: str, size: int, marked: str, subtests: pytest.Subtests, folder: Path) -> None:
    jobs = launch(engine, size, suite(marked), timeout=A_WORLD, env=settings(size, folder))
    show(subtests, PROCESSES.get(engine, size), folder, jobs)
