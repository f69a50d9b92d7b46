"""The tests in workers/ as one job: what is launched, and its results as those of the test that launches it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from support import results
from support.launching import TESTS, Job

A_TEST, A_WORLD = 240, 3600  # seconds until it is taken for hung


def suite(marked: str) -> list[str]:
    """The Python command line of each worker, which runs the tests that are so marked, or all."""
    clock = [f"--timeout={A_TEST}", "--timeout-method=thread"]  # a signal does not end a sum that waits
    return ["-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / "workers"), "-m", marked, *clock]


def settings(size: int, folder: Path) -> dict[str, str]:
    """What the workers find in their environment: how many they should be, and where their results go."""
    return {"DISTGRAD_TEST_SIZE": str(size), "DISTGRAD_TEST_RESULTS": str(folder)}


def show(subtests: pytest.Subtests, processes: int, folder: Path, jobs: Sequence[Job]) -> None:
    """Show each worker's results as parts of the outer test, which fails with any of them."""
    found = results.read(folder, processes)
    for result in found:
        with subtests.test(result.name):
            assert not result.complaints, "\n".join(result.complaints)
    for job in jobs:
        assert job.status == 0, job.out[-6000:] + job.err[-6000:]
    assert sum(result.ran for result in found) > 0
