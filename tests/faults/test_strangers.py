"""Strangers connect to whatever listens while a job runs, send what they like, and the sum stays right."""

import contextlib
import socket
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from support.launching import PATIENCE, finish, program, start_workers
from support.marks import first_as_a_rule
from support.processes import wait_until, with_environment

SUMS = """
    import os, sys
    import distgrad
    comm = distgrad.connect(timeout=20.0)
    import tensorflow as tf

    own = tf.range(1000.0) * (comm.rank + 1)
    add = tf.function(lambda enough: comm.sum_over_workers(lambda: tf.concat([own, [enough]], 0), ()), autograph=False)
    number, enough = 0, 0.0
    while not enough:
        total = add(tf.constant(float(os.path.exists(sys.argv[1] + "/enough")))).numpy()
        assert (total[:-1] == tf.range(1000.0).numpy() * sum(range(comm.size + 1))).all()
        number, enough = number + 1, total[-1]
        if number == 3:
            open(f"{sys.argv[1]}/{comm.rank}.ready", "x").close()
    open(f"{sys.argv[1]}/{comm.rank}.right", "x").close()
    comm.close()
"""
JUNK = (
    b"",
    b"GET / HTTP/1.1\r\nHost: stranger\r\n\r\n",
    bytes(range(256)) * 64,
    bytes(1 << 16),
    b"\xff" * (1 << 16),
    b"OPAL-TCP-BTL" + b"\xff" * 100,
)
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: what was not read is thrown away, and the other side told so


class Listener(NamedTuple):
    program: str
    address: str
    port: int


def listeners(processes: Sequence[int]) -> set[Listener]:
    """All TCP sockets on which these processes take connections."""
    found = set()
    for process in map(psutil.Process, processes):
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in process.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN:
                    found.add(Listener(process.name(), *one.laddr))
    return found


def visit(listener: Listener) -> list[socket.socket]:
    """One connection for each piece of junk; every second one stays open, and the others end without a farewell."""
    stay = []
    for number, junk in enumerate(JUNK):
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listener.address, listener.address)
        stranger = socket.create_connection((address, listener.port), timeout=5)
        with contextlib.suppress(OSError):  # it may hang up
            stranger.sendall(junk)
        if number % 2:
            stay.append(stranger)
        else:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            stranger.close()
    return stay


@pytest.mark.fault(34)
@first_as_a_rule("mpi", "horovod-gloo", "mwms")
def test_junk_changes_nothing(engine: str, tmp_path: Path) -> None:
    mark = {"DISTGRAD_TEST_STRANGERS": str(tmp_path)}
    jobs = start_workers(engine, 2, [*program(SUMS), tmp_path], env=mark)
    wait_until(lambda: len(list(tmp_path.glob("*.ready"))) == 2, PATIENCE)
    found = listeners(with_environment(mark))
    assert found
    stay = [stranger for listener in found for stranger in visit(listener)]
    time.sleep(0.5)
    (tmp_path / "enough").touch()
    wait_until(lambda: len(list(tmp_path.glob("*.right"))) == 2, PATIENCE)
    for stranger in stay:  # until then, Open MPI's launcher waits for the end of what those began to say
        stranger.close()
    ended = [finish(job, 30) for job in jobs]
    assert [job.status for job in ended] == [0] * len(jobs), "".join(job.err[-3000:] for job in ended)
