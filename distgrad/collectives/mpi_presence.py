"""Who waits, who works and who is silent, of all MPI ranks: the question of one that waits, and the others' answers.

The watchdogs ask and answer, so that an answer does not wait for what a rank does, and they need no sum for it.
"""

import itertools
import time
from collections.abc import Iterator
from typing import Any

from mpi4py import MPI

from distgrad.liveness.engine_hooks import Elsewhere

QUESTION, ANSWER = 1, 2  # tags of messages
LISTENING = 1.0  # seconds to hear from the others
PAUSE = 0.001  # seconds between two looks


class Presence:
    """One rank's questions and answers.

    Args:
        comm: all ranks.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._comm, self._questions = comm, itertools.count()
        self._sent: list[MPI.Request] = []

    def ask(self) -> Elsewhere:
        """Ask all other ranks, and find those that are silent and those that are at work; for one that waits."""
        number = next(self._questions)
        silent, at_work = set(range(self._comm.size)) - {self._comm.rank}, set[int]()
        for rank in silent:
            self._send(number, rank, QUESTION)
        end = time.monotonic() + LISTENING
        while silent and time.monotonic() < end:
            self.answer(works=False)
            for rank, (asked, works) in self._received(ANSWER):
                if asked == number:  # else it came too late
                    silent.discard(rank)
                    at_work |= {rank} if works else set()
            time.sleep(PAUSE)
        return Elsewhere(sorted(silent), sorted(at_work))

    def answer(self, works: bool) -> None:
        """Tell those that have asked that this rank waits, or that it works."""
        for rank, number in self._received(QUESTION):
            self._send((number, works), rank, ANSWER)

    def _received(self, tag: int) -> Iterator[tuple[int, Any]]:
        message = MPI.Status()
        while self._comm.iprobe(tag=tag, status=message):
            yield message.source, self._comm.recv(source=message.source, tag=tag)

    def _send(self, content: Any, rank: int, tag: int) -> None:
        self._sent = [request for request in self._sent if not request.Test()]  # the others must be kept
        self._sent.append(self._comm.isend(content, rank, tag))
