"""Processes that are forked from a worker: they end as without distgrad, and their end is nothing to the job."""

import pytest

from support.launching import TESTS, launch
from support.marks import first_as_a_rule

WORKER = TESTS / "support" / "forking_worker.py"
ENDS = {
    "leaves": "3",
    "fails": "70",
    "closes": "0",
    "shares memory": "0",
    "SIGTERM": "-15",
    "SIGINT": "-2",
    "SIGTERM at once": "-15",
    "terminated": "-15",
    "pool": "10",
}


@pytest.mark.fault(39)
@first_as_a_rule("mpi", "horovod-gloo", "mwms")
def test_children_end_and_the_job_goes_on(engine: str) -> None:
    jobs = launch(engine, 2, [WORKER])
    for job in jobs:
        assert job.status == 0, job.err
        assert "distgrad: error" not in job.err
        assert "Exception ignored" not in job.err
    assert [line for job in jobs for line in job.lines("child")] == [
        f"child {kind}: {end}" for kind, end in ENDS.items()
    ]
    assert [line for job in jobs for line in job.lines("trained")] == [f"trained {len(ENDS) + 1}"] * 2
    assert [line for job in jobs for line in job.lines("losses")] == ["losses [1.0, 1.0, 1.0]"] * 2
