"""The sum between hosts: exact, and with no more bytes on the wire than it takes."""

import json
from pathlib import Path

import pytest

from support.hosts import SENT, Hosts
from support.launching import program
from support.worlds import settings, show, suite

SIZES = (0, 7, 100_000, 4_000_000)
TIMES = 5
ROUNDED = 1_000_000  # gradients of a vector that is sent as bfloat16
SUMS = f"""
    import json
    import numpy as np, tensorflow as tf
    import distgrad
    from distgrad.collectives.vectors import Division

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

    def sent_by_rounded_sums():
        compression = comm.window.compression(False)
        division = Division(1, tf.constant([1.0, 0.0], tf.float64), compression=compression.number)
        own = [tf.fill([{ROUNDED}], float(comm.rank + 1)), tf.constant([1 + 2.0**-20])]
        comm.barrier()
        before = {SENT}
        for _ in range({TIMES}):
            total = comm.sum_and_divide(lambda: own, (), division)
            np.testing.assert_array_equal(total.blocks[0], sum(range(comm.size + 1)))
            assert float(total.undivided[0]) == comm.size * (1 + 2.0**-20)
        comm.barrier()
        return {SENT} - before

    sent = [*(sent_by_sums(size) for size in {SIZES}), sent_by_rounded_sums()]
    workers = comm.exchange(json.dumps([comm.local_size, *sent])).values()
    if comm.is_root:  # alone, so that no two lines run into each other
        print("workers", *workers, sep=";", flush=True)
    comm.close()
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_sums_are_exact_and_send_every_byte_once(hosts: Hosts, ranks: int) -> None:
    job = hosts.run(ranks, program(SUMS))
    assert job.status == 0, job.err[-3000:]
    workers = [json.loads(text) for line in job.lines("workers") for text in line.split(";")[1:]]
    assert len(workers) == 2 * ranks
    for local_size, *sent, rounded in workers:
        assert local_size == ranks
        for size, count in zip(SIZES, sent, strict=True):
            # Of n hosts each must send 2(n-1)/n of a vector: here, all of it. Barriers and headers outweigh small ones.
            least = TIMES * 4 * size
            assert size < 100_000 or least <= count <= 1.1 * least, (size, count / least)
        assert 1 <= rounded / (TIMES * 2 * ROUNDED) <= 1.1


def test_statistics_are_those_of_all_hosts(hosts: Hosts, subtests: pytest.Subtests, tmp_path: Path) -> None:
    job = hosts.run(1, suite("between_hosts"), **settings(2, tmp_path))
    show(subtests, 2, tmp_path, [job])
