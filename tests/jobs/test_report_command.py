"""`distgrad report` on a log file."""

from pathlib import Path

import pytest

from support.launching import BIN, run
from support.logs import line, written


def test_the_command_line(tmp_path: Path) -> None:
    path = written(tmp_path / "log", [line(1), "damaged", line(2)])
    job = run([BIN / "distgrad", "report", path, "--png", tmp_path / "log.png", "--html", tmp_path / "log.html"])
    assert (job.status, job.err) == (0, "")
    said = "steps 2 | skipped steps 0 | damaged lines 1 | first loss 1 | last loss 0.5 | median step 500 ms\n"
    assert job.out == said
    assert (tmp_path / "log.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "log.html").read_text().startswith("<!doctype html>")
    empty = run([BIN / "distgrad", "report", written(tmp_path / "empty", ["x"])])
    assert (empty.status, empty.out) == (64, "")
    assert "holds no steps, and 1 damaged lines; give a file that log_file= wrote" in empty.err


@pytest.mark.fault(46)
def test_what_cannot_be_read_or_written(tmp_path: Path) -> None:
    path = written(tmp_path / "l\x1b[31mog", [line(1), "[" * 10_000, line(2, variables=5)])
    job = run([BIN / "distgrad", "report", path, "--html", tmp_path / "missing" / "page"])
    assert job.status == 64
    assert "damaged lines 2" in job.out
    assert job.err.strip().endswith("page cannot be read or written (No such file or directory); give another file")
    job = run([BIN / "distgrad", "report", written(path, ["x"])])
    assert "\\x1b[31mog' holds no steps, and 1 damaged lines" in job.err
