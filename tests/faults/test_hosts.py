"""Hosts that are cut off from each other: on both the job is given up."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.hosts import ADDRESSES, PLACES, Hosts, mpirun
from support.launching import BIN, PATIENCE, Job, finish, needs_horovod
from support.lines import ERROR
from support.processes import wait_until

TIMEOUT = 5.0
FOR_EVER = f"""
    import distgrad
    from pathlib import Path

    comm = distgrad.connect(timeout={TIMEOUT})
    import tensorflow as tf
    add = tf.function(lambda: comm.sum_over_workers(lambda: tf.ones(1000), ()), autograph=False)
    while True:
        assert all(add().numpy() == comm.size)
        Path(__file__).with_suffix(f".{{comm.rank}}").touch()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(FOR_EVER))
    return path


def cut_off(hosts: Hosts, script: Path, jobs: list[subprocess.Popen[str]]) -> list[Job]:
    """Let workers on both hosts sum, and then not hear from each other, until none is left."""
    wait_until(lambda: {path.suffix for path in script.parent.iterdir()} == {".py", ".0", ".1"}, PATIENCE)
    with hosts.cut():
        wait_until(lambda: not hosts.processes(), TIMEOUT + 12)
    return [finish(job, 5) for job in jobs]


def give_up(hosts: Hosts, script: Path, words: Sequence[str], **env: str) -> tuple[int, list[str]]:
    """The status and the lines of a job whose hosts are cut off from each other."""
    (job,) = cut_off(hosts, script, [hosts.start([*words, str(script)], **env)])
    return job.status, ERROR.findall(job.err)


DISTGRAD_RUN = [str(BIN / "distgrad"), "run", "-H", PLACES]


@pytest.mark.fault(3)
@pytest.mark.parametrize("launcher", ["mpirun", "distgrad run"])
def test_hosts_that_are_cut_off_from_each_other_both_give_up(hosts: Hosts, launcher: str, script: Path) -> None:
    words = mpirun(1, []) if launcher == "mpirun" else [*DISTGRAD_RUN, "--backend", "mpi"]
    status, (line,) = give_up(hosts, script, words)
    assert status == 75 if launcher == "distgrad run" else status != 0  # Open MPI's crashes
    assert "error[DG061] rank=1" in line


@pytest.mark.fault(3)
@needs_horovod
def test_and_so_do_horovods_workers_over_mpi(hosts: Hosts, script: Path) -> None:
    status, (line,) = give_up(hosts, script, mpirun(1, []), DISTGRAD_BACKEND="horovod")
    assert status != 0
    assert "error[DG061]" in line


@pytest.mark.fault(3)
@needs_horovod
def test_and_over_gloo(hosts: Hosts, script: Path) -> None:
    status, lines = give_up(hosts, script, [*DISTGRAD_RUN, "--backend", "horovod", "--controller", "gloo"])
    assert status == 75
    assert len(lines) == 2, lines  # neither host hears what the other has said
    assert all("error[DG061]" in line for line in lines)


@pytest.mark.fault(3)
def test_and_so_do_tensorflows_workers(hosts: Hosts, script: Path) -> None:
    cluster = {"worker": [f"{address}:2222" for address in ADDRESSES]}
    configs = [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}) for index in (0, 1)]
    started = [
        hosts.start([sys.executable, str(script)], host, TF_CONFIG=config) for host, config in enumerate(configs)
    ]
    for job in cut_off(hosts, script, started):
        assert job.status == 75
        (line,) = ERROR.findall(job.err)
        assert "error[DG061]" in line
