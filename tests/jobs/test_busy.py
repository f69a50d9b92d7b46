"""A worker that is busy outside a step, for longer than the others wait for one of which they hear nothing."""

import pytest

from support.hosts import Hosts
from support.launching import TESTS, launch
from support.lines import ERROR
from support.marks import first_as_a_rule

WORKER = TESTS / "support" / "busy_worker.py"


@pytest.mark.fault(50)
@first_as_a_rule("mpi", "horovod-gloo", "mwms")
def test_it_is_waited_for_and_named(engine: str) -> None:
    jobs = launch(engine, 2, [WORKER, "works"])
    assert [job.status for job in jobs] == [0] * len(jobs), "".join(job.err for job in jobs)
    assert sum(len(job.lines("trained")) for job in jobs) == 2
    errors = "".join(job.err for job in jobs)
    said = "distgrad: note: waiting for worker 0, which has been busy outside a step for 3 s; it is alive"
    assert errors.count("distgrad: note: waiting") == errors.count(said) == 1


@pytest.mark.thorough
def test_on_another_host_too(hosts: Hosts) -> None:
    job = hosts.run(1, [str(WORKER), "works"])
    assert job.status == 0, job.err
    assert len(job.lines("trained")) == 2
    assert job.err.count("distgrad: note: waiting for worker 0, which has been busy outside a step for") == 1


@pytest.mark.thorough
def test_one_that_is_stopped_there_is_not() -> None:
    job = launch("mpi", 2, [WORKER, "stops"])[0]
    assert job.status == 75, job.err
    (line,) = ERROR.findall(job.err)
    assert "error[DG061] rank=0" in line
    assert "rank 0 has not arrived at the sum within 3 s" in line
