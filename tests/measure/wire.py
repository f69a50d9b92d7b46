"""How near the sum between two hosts comes to what their cable carries: PYTHONPATH=tests python -m measure.wire

The hosts are network namespaces, one worker on each, joined by a cable of 1 Gbit/s each way (support/hosts.py).
distgrad over MPI, with and without rounding to bfloat16, and Horovod over MPI take turns in summing one float32 vector
of 100 MB within a TensorFlow graph; a plain TCP connection, used both ways at once, shows what the cable yields. Of n
hosts each must send 2(n-1)/n of the vector, for two hosts all of it, and the wire limit is the time that those bytes
take, as float32, at the cable's full speed.
"""

import os
import socket
import statistics
import sys
import threading
import time

from support.hosts import ADDRESSES, Hosts, joined_hosts

MEGABITS = 1000
BYTES = 100_000_000
LIMIT = 1000 * BYTES * 8 / (MEGABITS * 1e6)  # ms
ROUNDS = 4
SUMS = 8  # in a round, after one that does not count
NAMES = {"tcp": "plain TCP", "horovod": "Horovod over MPI", "mpi": "distgrad over MPI", "bf16": "distgrad, bf16"}


def sums(rounds: bool) -> None:
    """Print how many ms each sum takes.

    Args:
        rounds: True to send it as bfloat16.
    """
    import tensorflow as tf  # noqa: PLC0415 (in the workers only)

    import distgrad  # noqa: PLC0415
    from distgrad.collectives.vectors import Division  # noqa: PLC0415

    comm = distgrad.connect()
    vector = tf.fill([BYTES // 4], float(comm.rank + 1))
    if rounds:
        compression = comm.window.compression(False)
        division = Division(0, tf.constant([1.0], tf.float64), describe=False, compression=compression.number)
        add = tf.function(lambda: comm.sum_and_divide(lambda: vector, (), division).blocks[0], autograph=False)
    else:
        add = tf.function(lambda: comm.sum_over_workers(lambda: vector, (), borrow=True), autograph=False)
    for number in range(1 + SUMS):
        comm.barrier()
        began = time.perf_counter()
        total = add()
        seconds = time.perf_counter() - began
        assert float(total[0]) == float(total[-1]) == 3
        if comm.is_root and number:
            print(f"ms {1000 * seconds}", flush=True)
    comm.close()


def transfers() -> None:
    """Print how many ms it takes to send that many bytes and to receive as many, without adding anything."""
    rank = int(os.environ["OMPI_COMM_WORLD_RANK"])
    connection = _connection(rank)
    data, room = bytearray(BYTES), bytearray(1 << 20)
    for _ in range(SUMS):
        began = time.perf_counter()
        sender = threading.Thread(target=connection.sendall, args=[data])
        sender.start()
        left = BYTES
        while left:
            left -= connection.recv_into(room, min(left, len(room)))
        sender.join()
        if rank == 0:
            print(f"ms {1000 * (time.perf_counter() - began)}", flush=True)


def _connection(rank: int) -> socket.socket:
    address = (ADDRESSES[0], 7777)
    if rank == 0:
        return socket.create_server(address).accept()[0]
    for _ in range(100):
        try:
            return socket.create_connection(address)
        except ConnectionRefusedError:
            time.sleep(0.1)  # until the other worker listens
    raise TimeoutError


def measure(hosts: Hosts, what: str) -> list[float]:
    """The times, in ms, that one job takes for each."""
    job = hosts.run(1, [__file__, what], backend="mpi" if what == "bf16" else what)
    assert job.status == 0, job.err[-3000:]
    return [float(line.split()[1]) for line in job.lines("ms")]


def main() -> None:
    times: dict[str, list[float]] = {what: [] for what in NAMES}
    with joined_hosts(MEGABITS) as hosts:
        for _ in range(ROUNDS):
            for what, taken in times.items():
                taken.extend(measure(hosts, what))
    medians = {what: statistics.median(taken) for what, taken in times.items()}
    print(f"| of {ROUNDS * SUMS} | median | least | wire limit / median | Horovod / median |\n|---|---|---|---|---|")
    for what, name in NAMES.items():
        ms = medians[what]
        shares = f"{LIMIT / ms:.3f} | {medians['horovod'] / ms:.3f}"
        print(f"| {name} | {ms:.0f} ms | {min(times[what]):.0f} ms | {shares} |")


if __name__ == "__main__":
    if sys.argv[1:] == ["tcp"]:
        transfers()
    elif sys.argv[1:]:
        sums(sys.argv[1] == "bf16")
    else:
        main()
