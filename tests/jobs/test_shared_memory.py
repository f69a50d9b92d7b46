"""Summing through shared memory: under stress, beside another job, and without it."""

import os
import re
import uuid

import pytest

from support import memory_limit
from support.advice import advised
from support.launching import Job, finish, launch, program, run, start, told_apart
from support.processes import left_in_shared_memory, wait_until, with_environment

STRESS = """
    import sys
    import numpy as np, tensorflow as tf
    import distgrad

    comm = distgrad.connect()
    seed, steps = int(sys.argv[1]), int(sys.argv[2])
    rng = np.random.default_rng(seed)  # the same on every rank
    kept = []
    for step in range(steps):
        size = int(rng.choice([0, 1, 7, 4096, 20_000, 150_000]))
        dtype = str(rng.choice(["float32", "float64", "int64"]))
        base = np.arange(size) % 1000 + step % 7
        cuts = np.sort(rng.integers(0, size + 1, 2))
        pieces = [tf.constant(piece.astype(dtype)) for piece in np.split(base * (comm.rank + seed), cuts)]
        result = comm.sum_over_workers(lambda: pieces, ())
        expected = base * sum(rank + seed for rank in range(comm.size))
        kept = [*kept[-3:], (result, expected)] if step % 50 == comm.rank else kept[-3:]  # held by some ranks only
        for result, expected in [*kept, (result, expected)]:
            np.testing.assert_array_equal(result.numpy(), expected)
        if step % 40 == 0:  # added up where the others read it, micro-batch by micro-batch, on some ranks none
            weights = tf.Variable(tf.zeros(size))
            rows = tf.ones((comm.rank + step) % comm.size)
            sums = distgrad.sum_gradients(
                lambda row: row * tf.reduce_sum(weights), [weights], rows, comm=comm, micro_batch_size=2
            )
            assert float(sums.weight) == sum(range(comm.size))
            np.testing.assert_array_equal(sums.gradients[0].numpy(), np.full(size, sum(range(comm.size))))
    print("sums right", flush=True)
    comm.close()
"""


def stress(seed: int, steps: int) -> list[str]:
    return [*program(STRESS), str(seed), str(steps)]


def check(job: Job, ranks: int) -> None:
    assert job.status == 0, job.err[-3000:]
    assert job.out.count("sums right") == ranks  # their lines may run into each other


def test_1000_sums_of_changing_sizes_on_more_ranks_than_cores_leave_nothing_behind() -> None:
    before, mark = left_in_shared_memory(), {"DISTGRAD_TEST_SUMS": uuid.uuid4().hex}
    check(launch("mpi", 4, stress(1, 1000), env=mark)[0], 4)
    wait_until(lambda: left_in_shared_memory() <= before and not with_environment(mark), 20)


def test_two_jobs_on_one_host_do_not_meet() -> None:
    command = ["mpirun", "--oversubscribe", "-np", "2", "python"]
    jobs = [start([*command, *stress(seed, 300)], {}) for seed in (1, 1000)]
    for job in jobs:
        check(finish(job), 2)


@pytest.mark.parametrize(
    "hosts", ["0001", *(pytest.param(even, marks=pytest.mark.thorough) for even in ("0011", "0123"))]
)
def test_ranks_that_share_no_memory_sum_their_shards_by_messages(hosts: str) -> None:
    """Ranks of this host, told apart as if they were on several: as many ranks on each, more on one, one on each."""
    code = """
        from distgrad.collectives.vectors import Division
        from distgrad.gradients.flat_vector import SCALARS, FlatLayout
        from distgrad.gradients.window_accumulator import accumulator_for
        for size in (1, 63, 64, 100_000, 1_000_000, 5):
            for step in range(3):
                vector = np.arange(size) * (world.rank + 1.0) + step
                pieces = [*map(tf.constant, np.array_split(vector, 3)), tf.constant([1.0], tf.float64)]
                rest = size - size // 2 + 1
                division = Division(rest, tf.constant([0.0, 2.0], tf.float64))
                total = comm.sum_and_divide(lambda: pieces, (), division)
                expected = np.arange(size) * 10.0 + 4 * step
                half = expected[: size // 2]
                np.testing.assert_array_equal(total.blocks[0], half / 8)
                np.testing.assert_array_equal(total.undivided, [*expected[size // 2 :], 4])
                moments = [half.sum(), (half**2).sum(), half.max(initial=0), 0]
                np.testing.assert_allclose(total.moments, moments, rtol=1e-12)
        totals = accumulator_for(comm, FlatLayout([tf.Variable(tf.zeros((4200, 4)))], [0]), 1)

        @tf.function
        def add_rows(ids, value):
            gradient = tf.IndexedSlices(tf.fill((3, 4), value), ids)
            carried, _ = totals.add([], [gradient], tf.constant(True), tf.constant(True))
            vector = totals.vector(carried, tf.constant(world.rank != 1), tf.fill([SCALARS + 1], 0.5))
            division = Division(SCALARS + 1, tf.constant([0.0, 1.0], tf.float64))
            return comm.sum_and_divide(lambda: vector, (), division)

        for ids, last in (([0, 7, 7], 4.0), ([1, 4199, 5], np.inf), ([2, 2, 2], 4.0)):
            total = add_rows(tf.constant(ids), tf.constant([1.0, 2.0, 3.0, last][world.rank]))
            expected = np.zeros((4200, 4), "f4")
            np.add.at(expected, ids, (1 + 3 + last) / 2)
            np.testing.assert_array_equal(tf.convert_to_tensor(total.sparse[0]), expected)
            assert total.nonfinite_workers.numpy().tolist() == [0, 0, 0, int(np.isinf(last))]
        print("sums right", flush=True)
    """
    check(launch("mpi", 4, told_apart(hosts, code))[0], 4)


@pytest.mark.fault(14)
def test_vectors_of_different_size_are_refused_on_every_rank() -> None:
    code = """
        import tensorflow as tf, distgrad
        comm = distgrad.connect()
        add = lambda: comm.sum_over_workers(lambda: tf.zeros(5 + comm.rank), ())
        for attempt in (add, tf.function(add)):  # a graph hides the error's class
            try:
                attempt()
            except (distgrad.DistgradError, tf.errors.OpError) as error:
                failure = comm.liveness.explain(error)
                print(f"refused {failure.code} {failure.rank}", flush=True)
    """
    job = launch("mpi", 2, program(code))[0]
    assert job.out.count("refused DG020 1") == 4


@pytest.mark.fault(26)
def test_without_enough_memory_to_share_it_sums_by_messages_and_says_so_once() -> None:
    """A limit on the size of files, which shared memory counts as."""
    code = """
        import numpy as np, tensorflow as tf, distgrad
        comm = distgrad.connect()
        for size in (10, 4_000_000, 10, 4_000_000):
            total = comm.sum_over_workers(lambda: tf.fill([size], float(comm.rank + 1)), ())
            assert np.all(total.numpy() == 3), total
        print("sums right")
    """
    limited = ["bash", "-c", 'ulimit -f 40000 && exec "$@"', "bash"]
    job = run([*limited, "mpirun", "-np", "2", "python", *program(code)])
    check(job, 2)
    assert job.err.count("distgrad: warning: sums go by MPI messages") == 1


@pytest.mark.fault(41)
@pytest.mark.skipif(
    not memory_limit.can_limit(), reason="no group of processes with a limit of memory can be made here"
)
def test_a_limit_of_a_control_group_is_seen_before_the_kernel_kills() -> None:
    """What is there already does not count: between the first limit and the vectors there is room for messages."""
    limit = 620 << 20
    code = f"""
        import sys, tensorflow as tf, distgrad
        from support import memory_limit
        comm = distgrad.connect()
        small, large = (tf.fill([size << 18], float(comm.rank + 1)) for size in (128, 256))
        comm.barrier()
        assert memory_limit.enter({os.getpid()}, int(sys.argv[1]))
        try:
            for vector in (small, large):
                total = comm.sum_over_workers(lambda: vector, (), borrow=True)
                assert total[0] == total[-1] == 3
                print("sums right", flush=True)
        except tf.errors.OpError as error:
            raise comm.liveness.explain(error)
    """
    command = ["mpirun", "--oversubscribe", "-np", "2", "python", *program(code)]
    job, raised = run([*command, str(limit)]), run([*command, str(8 * limit)])
    memory_limit.remove(os.getpid())
    assert (raised.status, raised.out.count("sums right")) == (0, 4), raised.err
    assert job.out.count("sums right") == 2, job.err
    assert job.err.count("distgrad: warning: sums go by MPI messages") == 1
    assert f"bytes of shared memory are needed and the limit of {limit} bytes in /sys/fs/cgroup" in job.err
    assert (
        len(re.findall(r"error\[DG065\] rank=0 step=-: \d+ bytes of memory are needed .* the limit of", job.err)) == 1
    )
    assert job.status == 75
    advised(job.err, "raise that limit, or start fewer workers there")


@pytest.mark.fault(45)
def test_where_the_system_makes_no_memory_without_a_name_it_sums_by_messages() -> None:
    """A filter refuses the call on one worker, and the other's Python is of a system that does not know it."""
    code = """
        import os
        from support import seccomp
        if os.environ["OMPI_COMM_WORLD_RANK"] == "0":
            seccomp.refuse_memfd_create()
        else:
            del os.memfd_create
        import tensorflow as tf, distgrad
        comm = distgrad.connect()
        for size in (10, 100_000):
            total = comm.sum_over_workers(lambda: tf.fill([size], float(comm.rank + 1)), ())
            assert bool(tf.reduce_all(total == 3))
        print("sums right", flush=True)
        comm.close()
    """
    job = launch("mpi", 2, program(code))[0]
    check(job, 2)
    assert job.err.count("distgrad: warning: sums go by MPI messages") == 1
