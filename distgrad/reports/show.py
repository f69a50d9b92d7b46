"""`distgrad report`: a log file in a few words, as an HTML page, as a picture."""

import sys
from pathlib import Path

from distgrad.errors import BadArgument, EngineMissing, print_line

try:
    from distgrad.reports.history import read
    from distgrad.reports.html_report import summary, write_html, write_png
except ImportError as failure:
    raise EngineMissing(f"no report without {failure.name}", "pip install 'distgrad[report]'") from None


def show(file: Path, html_file: Path | None, png_file: Path | None) -> None:
    """Read a log file, print a summary on one line, and write a page and a picture if their files are given.

    Raises:
        BadArgument: there are no steps in it.
        OSError: a file cannot be read or written.
    """
    run = read(file)
    if not run.lines:
        raise BadArgument(f"{file} holds no steps, and {run.damaged} damaged lines", "give a file that log_file= wrote")
    print_line(" | ".join(f"{name} {value}" for name, value in summary(run).items()), sys.stdout)
    if html_file is not None:
        write_html(html_file, file.name, run)
    if png_file is not None:
        write_png(png_file, run)
