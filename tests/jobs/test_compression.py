"""Sums between hosts, rounded or by halves: ranks of this host, told apart as if they were on several."""

import textwrap
from pathlib import Path

import pytest

from support.launching import Job, launch, program, told_apart

SAME_EVERYWHERE = """
def same_everywhere(array):
    return len(set(world.allgather(np.ascontiguousarray(array).tobytes()))) == 1

"""


def apart(hosts: str, code: str) -> list[str]:
    """The Python command line of ranks that are told apart."""
    return told_apart(hosts, SAME_EVERYWHERE + textwrap.dedent(code))


def check(job: Job, ranks: int) -> None:
    assert job.status == 0, job.err[-3000:]
    assert job.out.count("all right") == ranks  # their lines may run into each other


@pytest.mark.parametrize(
    "hosts", ["01", *(pytest.param(more, marks=pytest.mark.thorough) for more in ("0011", "0001", "0123"))]
)
def test_what_rounding_takes_away_is_not_lost(hosts: str) -> None:
    """What was applied over many steps is the exact sum within one rounding, whatever N each step is divided by."""
    code = """
        from distgrad.collectives.vectors import Division
        size, steps = 150_001, 24
        compression = comm.window.compression(False)
        rngs = [np.random.default_rng(rank) for rank in range(world.size)]
        applied, exact, errors = np.zeros(size), np.zeros(size), []
        for step in range(steps):
            each = [rng.standard_normal(size).astype("f4") for rng in rngs]
            weight = [16.0, 1.0, 64.0][step % 3]  # the entries are as many times larger
            lanes = tf.constant([1 + 2.0**-20, weight])  # no bfloat16
            division = Division(2, tf.constant([0.0, 1.0], tf.float64), compression=compression.number)
            own = tf.constant(each[world.rank] * np.float32(weight))
            total = comm.sum_and_divide(lambda: [own, lanes], (), division)
            found = total.blocks[0].numpy()
            assert same_everywhere(found)
            assert total.undivided.numpy().tolist() == [world.size * (1 + 2.0**-20), world.size * weight]
            applied += found
            exact += np.sum(each, axis=0, dtype="f8") / world.size
            errors.append(np.abs(applied - exact).max())
        # A rounding of each contribution and of their sum, all less than 8 a worker: 2^-9 of them at most.
        assert errors[0] > 1e-4, errors  # it was rounded
        assert max(errors) < 2 * 8 * 2.0**-9, errors
        assert max(errors[-5:]) < 2 * max(errors[:5]), errors
        print("all right", flush=True)
    """
    check(launch("mpi", len(hosts), apart(hosts, code))[0], len(hosts))


def test_steps(tmp_path: Path) -> None:
    """Skipped steps, a resume, and the choice of "auto"."""
    code = """
        import sys
        import keras
        import distgrad
        from support.steps import product, quiet, weights

        rng = np.random.default_rng(5)
        batches = [(rng.standard_normal((4, 250)).astype("f4"), rng.standard_normal((4, 80)).astype("f4"))
                   for _ in range(20)]
        broken = np.full((4, 250), np.nan, "f4") if world.rank else batches[0][0]

        def new(mode, dtype="float32"):
            kernel = keras.layers.Dense(80, use_bias=False, kernel_initializer="zeros", dtype=dtype)
            return quiet(comm, keras.Sequential([keras.Input((250,)), kernel]), product, keras.optimizers.SGD(1.0),
                         compression=mode)

        def train(step, batches):
            for x, y in batches:
                own = slice(2 * world.rank, 2 * world.rank + 2)
                step(x[own], y[own])
            assert same_everywhere(weights(step.model))
            return weights(step.model)

        # A step that is skipped leaves no trace: the bits are those of a training without it.
        plain, skipping = new("bf16"), new("bf16")
        expected = train(plain, batches[:6])
        train(skipping, batches[:3])
        assert not skipping(broken, batches[0][1]).applied
        np.testing.assert_array_equal(train(skipping, batches[3:6]), expected)
        exact = -sum(x.astype("f8").T @ y for x, y in batches[:6]).ravel() / 4
        error = np.abs(expected - exact).max()
        assert 1e-5 < error < 2.0**-5, error

        # After a resume nothing is left to be added, in the same process or in another.
        folder = sys.argv[1]
        again, other = new("bf16"), new("bf16")
        train(again, batches[:3])
        checkpoint = distgrad.Checkpoint(folder, comm)
        checkpoint.save(again)
        train(again, batches[3:6])
        checkpoint.wait()
        comm.barrier()
        results = []
        for step in (again, other):
            assert distgrad.Checkpoint(folder, comm).resume(step)
            results.append(train(step, batches[3:6]))
        np.testing.assert_array_equal(*results)

        # Float64 goes as it is; "auto" decides alike, and its result is right either way.
        wide = train(new("bf16", "float64"), batches[:2])
        np.testing.assert_allclose(wide, -sum(x.astype("f8").T @ y for x, y in batches[:2]).ravel() / 4, rtol=1e-12)
        auto = new("auto")
        found = train(auto, batches)
        assert not auto._compression.measures
        assert len(set(world.allgather(auto._compression.rounds))) == 1
        exact = -sum(x.astype("f8").T @ y for x, y in batches).ravel() / 4
        assert np.abs(found - exact).max() < 2.0**-4
        print("all right", flush=True)
    """
    job = launch("mpi", 2, [*apart("01", code), tmp_path])[0]
    check(job, 2)
    assert job.err.count("compression='auto' chooses '") == 1
    assert job.err.count("compression='bf16' has no effect: gradients of float64 go as they are") == 1


def test_every_way_of_summing_between_hosts_on_two_to_eight_ranks() -> None:
    """Exact where the numbers are integers, and always the same bits on all ranks, and again."""
    code = """
        import numpy as np
        from mpi4py import MPI
        from distgrad.collectives import between_hosts
        world = MPI.COMM_WORLD
        for size in (2, 3, 5, 8):
            ranks = world.Split(int(world.rank < size), world.rank)
            for entries in (0, 1, 7, 5000) if world.rank < size else ():
                for fine in (0, 1 << 30):  # in blocks, or by halves
                    between_hosts.FINE, between_hosts.SMALL = fine, 3
                    assert between_hosts.goes_in_blocks(size, 4 * entries) == (fine == 0 and entries > 0)
                    base = np.arange(entries) % 1000 + 1
                    for dtype in (np.int64, np.float32):
                        vector = (base * (ranks.rank + 1)).astype(dtype)
                        between_hosts.all_sum(ranks, vector, lambda start, stop: None)
                        np.testing.assert_array_equal(vector, base * (size * (size + 1) // 2))
                    uneven = np.random.default_rng(ranks.rank).standard_normal(entries).astype("f4")
                    bits = set()
                    for _ in range(2):
                        vector = uneven.copy()
                        between_hosts.all_sum(ranks, vector, lambda start, stop: None)
                        bits |= set(ranks.allgather(vector.tobytes()))
                    assert len(bits) == 1
        print("all right", flush=True)
    """
    check(launch("mpi", 8, program(code))[0], 8)
