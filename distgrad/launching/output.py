"""What workers and launchers print, passed on in whole lines, without what nobody needs to read.

TensorFlow greets every worker with some ten lines, and a launcher explains at length that a worker has failed, which
distgrad has said in one line. `distgrad run --verbose` shows all of it.
"""

import contextlib
import os
import re
import selectors
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

PARTIAL_LINE_WAIT = 0.1  # seconds after which the beginning of a line is passed on by itself
# Information that TensorFlow logs, in the two forms that its versions have, and what surrounds it.
INFORMATION = re.compile(
    rb"I\d{4} [\d:.]+ +\d+ \S+:\d+\]|\d{4}-\d\d-\d\d [\d:.]+: I \S+:\d+\]"
    rb"|WARNING: All log messages before absl::InitializeLog\(\)|To enable the following instructions: "
)
NO_GPU = re.compile(rb".*failed call to cuInit")  # logged as an error; none where there is no GPU
RULE = re.compile(rb"-{70,}\r?\n")  # the first and the last line of an explanation of Open MPI's
EXPLANATION = re.compile(
    rb"(Primary job +terminated normally, but|MPI_ABORT was invoked on rank|mpirun (noticed|detected) that"
    rb"|prterun (noticed|detected) that)"
)
COUNT = re.compile(rb"\[\S+\] (\d+ more process(es)? ha(s|ve) sent help message|Set MCA parameter )")

PassOn = Callable[[list[bytes]], None]


def pass_on(streams: Mapping[IO[bytes], PassOn]) -> None:
    """Read streams until they end, and give their lines, each with its end, to what is to be done with them."""
    partial = dict.fromkeys(streams, b"")  # the beginning of each stream's next line
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ, stream)
        while selector.get_map():
            ready = [key.data for key, _ in selector.select(PARTIAL_LINE_WAIT if any(partial.values()) else None)]
            for stream in ready or streams:
                data = os.read(stream.fileno(), 65536) if ready else b""
                lines, partial[stream] = _split_lines(partial[stream] + data, flush=not data)
                streams[stream](lines)
                if ready and not data:
                    selector.unregister(stream)


def _split_lines(data: bytes, flush: bool) -> tuple[list[bytes], bytes]:
    """Split into whole lines, also at a progress bar's carriage returns, and the beginning of the next.

    Args:
        flush: True makes that beginning a line, too.
    """
    lines = data.splitlines(keepends=True)
    partial = lines.pop() if lines and not flush and not lines[-1].endswith((b"\n", b"\r")) else b""
    return lines, partial


def write(target: IO[bytes], lines: list[bytes]) -> None:
    """Write lines in one call, so that nobody else's line comes between."""
    if lines:
        with contextlib.suppress(OSError):  # nobody reads it any more
            target.write(b"".join(lines))
            target.flush()


def without_greetings(lines: list[bytes]) -> list[bytes]:
    """Leave out what TensorFlow logs for information."""
    has_gpu = Path("/dev/nvidiactl").exists()
    return [line for line in lines if not INFORMATION.match(line) and (has_gpu or not NO_GPU.match(line))]


class Explanations:
    """Holds back what Open MPI's launcher explains of a failed worker.

    Attributes:
        held: the lines of it, to be shown if nobody else has said why the job failed.
    """

    def __init__(self) -> None:
        self.held: list[bytes] = []
        self._block: list[bytes] = []  # that a rule has begun

    def without(self, lines: list[bytes]) -> list[bytes]:
        """Return the other lines."""
        return [one for line in lines for one in self._after(line)]

    def rest(self) -> list[bytes]:
        """Return, at the end of the output, what looked like the beginning of an explanation."""
        block, self._block = self._block, []
        return block

    def _after(self, line: bytes) -> list[bytes]:
        """Return what can be shown once a line has come."""
        is_rule, before = RULE.fullmatch(line) is not None, self._block
        if not before and not is_rule:
            if not COUNT.match(line):
                return [line]
            self.held.append(line)
            return []
        if len(before) == 1 and is_rule:  # the first was the last line of something else
            self._block = [line]
            return before
        self._block = [*before, line]
        if len(before) == 1 and not EXPLANATION.match(line):
            return self.rest()
        if before and is_rule:
            self.held.extend(self.rest())
        return []
