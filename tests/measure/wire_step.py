"""Training steps over a slow wire, beside Horovod's: PYTHONPATH=tests python -m measure.wire_step [rounds]

Two hosts (network namespaces, a worker on each) joined by a cable of 1 Gbit/s each way. The model is the bench's wide
one, 5.8 million weights, with 128 rows a worker and SGD. distgrad's step, without micro-batches, sends gradients as
they are or as bfloat16. A step by hand over Horovod, with one all-reduce a tensor, sends them as they are or with
`Compression.fp16`. The jobs take turns; a step's time is the root's, from one barrier to the next.
"""

import statistics
import sys
import time
from collections.abc import Callable

from support.hosts import Hosts, joined_hosts

MEGABITS = 1000
CASE, ROWS = "wide", 128
ROUNDS = 4
STEPS = 10  # in a round, after those that do not count
WARM_UP = 3
CONTESTANTS = {
    "distgrad": ("mpi", "none"),
    "distgrad, bf16": ("mpi", "bf16"),
    "Horovod": ("horovod", "none"),
    "Horovod, fp16": ("horovod", "fp16"),
}


def worker(backend: str, compression: str) -> None:
    """Print how many ms each step takes."""
    import tensorflow as tf  # noqa: PLC0415 (in the workers only)

    import distgrad  # noqa: PLC0415
    from distgrad.bench.data import examples  # noqa: PLC0415

    comm = distgrad.connect(backend)
    x, y = map(tf.constant, examples(CASE, comm.rank, ROWS))
    prepare = by_horovod if backend == "horovod" else by_distgrad
    step = prepare(comm, x, y, compression)
    for number in range(WARM_UP + STEPS):
        comm.barrier()
        began = time.perf_counter()
        step()
        comm.barrier()
        if comm.is_root and number >= WARM_UP:
            print(f"ms {1000 * (time.perf_counter() - began)}", flush=True)
    comm.close()


def by_distgrad(comm, x, y, compression: str) -> Callable[[], object]:
    import distgrad  # noqa: PLC0415
    from distgrad.bench import models  # noqa: PLC0415
    from distgrad.bench.engines.by_hand import sgd  # noqa: PLC0415

    model = models.build(CASE)
    step = distgrad.DistributedStep(model, models.loss(), sgd(model), comm=comm, compression=compression, log_every=0)
    return lambda: step(x, y).loss


def by_horovod(comm, x, y, compression: str) -> Callable[[], object]:
    import horovod.tensorflow as hvd  # noqa: PLC0415
    import tensorflow as tf  # noqa: PLC0415

    from distgrad.bench import models  # noqa: PLC0415
    from distgrad.bench.engines.by_hand import sgd  # noqa: PLC0415

    model, loss, way = models.build(CASE), models.loss(), getattr(hvd.Compression, compression)
    optimizer = sgd(model)

    @tf.function(autograph=False)
    def step() -> None:
        with tf.GradientTape() as tape:
            total = loss(y, model(x, training=True))
        gradients = tape.gradient(total, [variable.value for variable in model.trainable_variables])
        reduced = [hvd.allreduce(g, op=hvd.Average, compression=way, name=f"g{n}") for n, g in enumerate(gradients)]
        optimizer.apply(reduced, model.trainable_variables)

    return step


def measure(hosts: Hosts, backend: str, compression: str) -> list[float]:
    """The times, in ms, that one job takes for each step."""
    job = hosts.run(1, [__file__, backend, compression], backend=backend)
    assert job.status == 0, job.err[-3000:]
    return [float(line.split()[1]) for line in job.lines("ms")]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    times: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    with joined_hosts(MEGABITS) as hosts:
        for _ in range(rounds):
            for name, contestant in CONTESTANTS.items():
                times[name].extend(measure(hosts, *contestant))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    others = [name for name in CONTESTANTS if name.startswith("Horovod")]
    print(f"| of {rounds * STEPS} | median | least | {' | '.join(f'{name} / median' for name in others)} |")
    print("|---" * (3 + len(others)) + "|")
    for name, ms in medians.items():
        ratios = " | ".join(f"{medians[other] / ms:.2f}" for other in others)
        print(f"| {name} | {ms:.0f} ms | {min(times[name]):.0f} ms | {ratios} |")


if __name__ == "__main__":
    worker(*sys.argv[1:]) if len(sys.argv) > 2 else main()
