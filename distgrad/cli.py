"""The command line: `distgrad ...`, or `python -m distgrad ...`."""

from pathlib import Path
from typing import Any

import click

from distgrad.bench.cases import PEERS, TABLES
from distgrad.bench.run import run as run_benchmark


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="distgrad")
def main() -> None:
    """The right global gradient sum for TensorFlow and Keras 3."""


def _peers(context: click.Context, parameter: click.Parameter, text: str) -> list[str]:  # noqa: ARG001 (click's form)
    chosen = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in PEERS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(PEERS)}")
    return chosen


@main.command()
@click.argument("tables", nargs=-1, type=click.Choice(list(TABLES)))
@click.option("--quick", is_flag=True, help="Fewer rounds, cases and configurations of the peers.")
@click.option("--peers", default=",".join(PEERS), show_default=True, callback=_peers, help="Whom to measure beside.")
@click.option("-np", "--num-proc", default=2, show_default=True, type=click.IntRange(2), help="Ranks of every job.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Rows and raw rounds.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path, dir_okay=False), help="A picture of the ratios.")
def bench(tables: tuple[str, ...], num_proc: int, **chosen: Any) -> None:
    r"""Measure distgrad beside its peers and the limits, in one interleaved run. Without TABLES: all of them.

    \b
    sum         one vector summed over the ranks
    step        a whole training step
    accumulate  a further micro-batch against its bare forward and backward pass
    stats       a step with and without its statistics
    """
    run_benchmark(tables or tuple(TABLES), size=num_proc, **chosen)
