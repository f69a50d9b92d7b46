"""A training to which things keep happening is, in the end, bit for bit one that was left alone."""

import sys

import pytest

from support.launching import run
from support.mounts import needs_mounts

SHORT = ["--minutes", "0.2", "--gap", "4", "--seed", "88", "worker killed"]  # one fault, after 7.8 s
LONG = ["--minutes", "0.8", "--gap", "3"]


@needs_mounts
@pytest.mark.parametrize("how", [SHORT, pytest.param(LONG, marks=pytest.mark.thorough)])
def test_nothing_is_lost(how: list[str]) -> None:
    job = run([sys.executable, "-m", "faults.soak", *how], timeout=400)
    assert job.status == 0, job.out + job.err[-6000:]
    assert "equal to the unbroken training: yes" in job.out
    assert "left behind: nothing" in job.out
    assert len(job.lines("| ")) > 1
