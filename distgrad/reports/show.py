"""`distgrad report`: a log file in a few words, as an HTML page, as a picture."""

import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from distgrad.errors import BadArgument, EngineMissing, print_line, shown

try:
    from distgrad.reports.history import read
    from distgrad.reports.html_report import summary, write_html, write_png
except ImportError as failure:
    raise EngineMissing(f"no report without {failure.name}", "pip install 'distgrad[report]'") from None


def show(file: Path, html_file: Path | None, png_file: Path | None) -> None:
    """Read a log file, print a summary on one line, and write a page and a picture if their files are given.

    Raises:
        BadArgument: there are no steps in it, or a file cannot be read or written.
    """
    with _named_errors(file):
        run = read(file)
    if not run.lines:
        raise BadArgument(
            f"{_name(file)} holds no steps, and {run.damaged} damaged lines", "give a file that log_file= wrote"
        )
    print_line(" | ".join(f"{name} {value}" for name, value in summary(run).items()), sys.stdout)
    for path, write in ((html_file, partial(write_html, name=file.name)), (png_file, write_png)):
        if path is not None:
            with _named_errors(path):
                write(path, run=run)


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into one line that names the file."""
    try:
        yield
    except OSError as error:
        cause = f"{_name(path)} cannot be read or written ({error.strerror})"
        raise BadArgument(cause, "give another file") from None


def _name(path: Path) -> str:
    """Return a path as a terminal may show it."""
    return str(path) if str(path).isprintable() else shown(str(path))
