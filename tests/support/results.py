"""Results of tests that run inside workers, from where they run to where they are shown, one line a result.

A line is written before a test begins and when it has ended, so that it is known of a hang in which test it was.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

import pytest


class Recorder:
    """A plugin of pytest that writes one worker's results as they come."""

    def __init__(self, path: Path) -> None:
        self._file: IO[str] = path.open("w", buffering=1)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(nodeid, "begun", "")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._write(report.nodeid, report.outcome, report.longreprtext)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write(nodeid, "ended", "")

    def pytest_unconfigure(self) -> None:
        self._file.close()

    def _write(self, nodeid: str, outcome: str, text: str) -> None:
        self._file.write(json.dumps([nodeid, outcome, text]) + "\n")


class Result(NamedTuple):
    """What came of one test on all workers.

    Attributes:
        name: the file's name and the test's.
        ran: on how many workers it was run, not skipped.
        complaints: texts of failures, each once, with the ranks it came from; and who has not come to the test's end.
    """

    name: str
    ran: int
    complaints: Sequence[str]


def read(folder: Path, size: int) -> list[Result]:
    """Results of the tests that the workers of a job have begun, in the order in which they were run."""
    by_test: dict[str, dict[int, list[tuple[str, str]]]] = {}
    for path in sorted(folder.iterdir(), key=lambda path: int(path.name)):
        for line in path.read_text().splitlines():
            nodeid, outcome, text = json.loads(line)
            by_test.setdefault(nodeid, {}).setdefault(int(path.name), []).append((outcome, text))
    return [_result(nodeid, by_rank, size) for nodeid, by_rank in by_test.items()]


def _result(nodeid: str, by_rank: dict[int, list[tuple[str, str]]], size: int) -> Result:
    ranks: dict[str, list[int]] = {}
    for rank in range(size):
        lines = by_rank.get(rank, [])
        texts = [text for outcome, text in lines if outcome == "failed"]
        if not lines:
            texts.append("it has not begun")
        elif lines[-1][0] != "ended":
            texts.append("it has not come to its end")
        for text in texts:
            ranks.setdefault(text, []).append(rank)
    ran = sum(any(outcome in ("passed", "failed") for outcome, _ in lines) for lines in by_rank.values())
    complaints = [f"on rank {', '.join(map(str, where))}: {text}" for text, where in ranks.items()]
    return Result(nodeid.rpartition("/")[2], ran, complaints)
