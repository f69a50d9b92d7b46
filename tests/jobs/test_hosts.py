"""The sum between hosts: exact, with no more bytes on the wire than it takes, and given up when there is no wire."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from support.hosts import ADDRESSES, PLACES, SENT, CannotMake, Hosts, mpirun, two_hosts
from support.launching import BIN, Job, finish, needs_horovod
from support.lines import ERROR
from support.processes import wait_until

SIZES = (0, 7, 100_000, 4_000_000)
TIMES = 5
SUMS = f"""
    import json
    import numpy as np, tensorflow as tf
    import distgrad

    comm = distgrad.connect()

    def sent_by_sums(size):
        base = np.arange(size) % 1000
        own = tf.constant(base * (comm.rank + 1), tf.float32)
        add = tf.function(lambda: comm.sum_over_workers(lambda: own, ()), autograph=False)
        add()
        comm.barrier()
        before = {SENT}
        for _ in range({TIMES}):
            np.testing.assert_array_equal(add().numpy(), base * sum(range(comm.size + 1)))
        comm.barrier()
        return {SENT} - before

    sent = [sent_by_sums(size) for size in {SIZES}]
    workers = comm.exchange(json.dumps([comm.local_size, *sent])).values()
    if comm.is_root:  # alone, so that no two lines run into each other
        print("workers", *workers, sep=";", flush=True)
    comm.close()
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    try:
        with two_hosts() as made:
            yield made
    except CannotMake as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("ranks", [1, 2])
def test_sums_are_exact_and_send_every_byte_once(hosts: Hosts, ranks: int) -> None:
    job = hosts.run(ranks, ["-c", textwrap.dedent(SUMS)])
    assert job.status == 0, job.err[-3000:]
    workers = [json.loads(text) for line in job.lines("workers") for text in line.split(";")[1:]]
    assert len(workers) == 2 * ranks
    for local_size, *sent in workers:
        assert local_size == ranks
        for size, count in zip(SIZES, sent, strict=True):
            # Of n hosts each must send 2(n-1)/n of a vector: here, all of it. Barriers and headers outweigh small ones.
            least = TIMES * 4 * size
            assert size < 100_000 or least <= count <= 1.1 * least, (size, count / least)


def test_statistics_are_those_of_all_hosts(hosts: Hosts) -> None:
    suite = [
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/workers/test_statistics.py",
        "-k",
        "all_that_can",
    ]
    job = hosts.run(1, suite, DISTGRAD_TEST_SIZE="2")
    assert job.status == 0, job.out[-3000:]
    assert job.out.count("1 passed") == 2


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
    wait_until(lambda: {path.suffix for path in script.parent.iterdir()} == {".py", ".0", ".1"}, 60)
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
