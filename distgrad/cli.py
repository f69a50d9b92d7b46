"""The command line: `distgrad ...`, or `python -m distgrad ...`."""

import os
import sys
from pathlib import Path
from typing import Any

import click

from distgrad.bench.cases import PEERS, TABLES
from distgrad.errors import DistgradError, print_line
from distgrad.launching.hosts import MOST_SLOTS, parse_hosts
from distgrad.launching.run import START_TIMEOUT, RunOptions, dry_run
from distgrad.launching.run import run as run_job

PER_HOST = click.IntRange(1, MOST_SLOTS)


class _Commands(click.Group):
    """A command group whose errors end the process with distgrad's exit statuses."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except click.UsageError as error:
            error.show()
            context.exit(os.EX_USAGE)
        except DistgradError as error:
            print_line(str(error), sys.stderr)
            context.exit(error.status)


FIRST = """\
distgrad run -np 4 train.py    train with 4 workers, by whatever is installed here
distgrad doctor                find out what is wrong here, and whether the sums are exact
distgrad report run.jsonl      show a run that was logged, --html page.html as a page
distgrad --help                all commands"""


@click.group(cls=_Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="distgrad")
@click.pass_context
def main(context: click.Context) -> None:
    """The right global gradient sum for TensorFlow and Keras 3."""
    if context.invoked_subcommand is None:
        print_line(FIRST, sys.stdout)


@main.command(context_settings={"allow_interspersed_args": False})
@click.option("-np", "-n", "--num-proc", "size", type=click.IntRange(1), help="Workers in all; else one a slot.")
@click.option("--nproc-per-node", "--nproc_per_node", "per_host", type=PER_HOST, help="Workers of each host.")
@click.option("-H", "--host", "--hosts", "host_list", metavar="H1:2,H2:2", help="Hosts and their slots; else this one.")
@click.option("--backend", default="auto", show_default=True, help="auto, mpi, horovod, tf or solo.")
@click.option("--controller", type=click.Choice(["mpi", "gloo"]), help="How Horovod's workers meet.")
@click.option("--max-restarts", default=0, show_default=True, type=click.IntRange(0), help="After lost workers (75).")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), help="Seconds to wait for a worker in a sum.")
@click.option(
    "--start-timeout", type=click.FloatRange(0, min_open=True), help="And at the start; else --timeout, or 60."
)
@click.option("--expect-size", type=click.IntRange(1), help="Refuse to train with another number of workers (76).")
@click.option("--oversubscribe", is_flag=True, help="Allow more workers than slots.")
@click.option("--tag-output", is_flag=True, help="Begin each line with its worker's rank.")
@click.option("-m", "is_module", is_flag=True, help="COMMAND is a module, as `python -m` takes it.")
@click.option("--verbose", is_flag=True, help="Show all that TensorFlow and the launcher print.")
@click.option("--dry-run", "only_print", is_flag=True, help="Print the command that does the same by hand.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    *, per_host: int | None, host_list: str | None, start_timeout: float | None, only_print: bool, **chosen: Any
) -> None:
    r"""Launch n workers of a script, module or program, with whatever is installed here.

    \b
    distgrad run -np 4 train.py --epochs 3
    distgrad run -np 4 -m package.train --epochs 3
    distgrad run -H h1:2,h2:2 --max-restarts 3 train.py
    distgrad run -np 2 --backend horovod --controller gloo train.py

    The exit status is that of the worker which failed first. A job that is told to end (SIGTERM, SIGUSR1, Ctrl-C)
    has 30 seconds to save; a second Ctrl-C ends it at once.
    """
    hosts = parse_hosts(host_list) if host_list is not None else ()
    if per_host is not None:
        hosts = tuple(host._replace(slots=per_host) for host in hosts)
        chosen["size"] = chosen["size"] or per_host * max(1, len(hosts))
    start_timeout = start_timeout or chosen["timeout"] or START_TIMEOUT
    options = RunOptions(hosts=hosts, start_timeout=start_timeout, **chosen)
    if only_print:
        print_line(dry_run(options, os.environ), sys.stdout)
    else:
        sys.exit(run_job(options, os.environ))


@main.command()
@click.option("-np", "-n", "--num-proc", "size", default=2, show_default=True, type=click.IntRange(1), help="Workers.")
@click.option("--quick", is_flag=True, help="Look only: launch no workers, load no TensorFlow.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def doctor(size: int, quick: bool, as_json: bool) -> None:
    """Find out what is wrong here, and whether every engine's sums are exact. Exit status 1 if anything is wrong."""
    from distgrad.doctor import examine  # noqa: PLC0415 (rich, which the other commands do without)

    sys.exit(0 if examine.run(size, quick, as_json) else 1)


@main.command()
def env() -> None:
    """Print what to paste into a bug report; no variables but those known to hold no secrets."""
    from distgrad.doctor import bug_report  # noqa: PLC0415 (importlib.metadata, which is slow)

    print_line(bug_report.describe(os.environ), sys.stdout)


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
@click.option("--case", "cases", multiple=True, help="Only this case; may be given several times.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Rows and raw rounds.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path, dir_okay=False), help="A picture of the ratios.")
def bench(tables: tuple[str, ...], num_proc: int, **chosen: Any) -> None:
    r"""Measure distgrad beside its peers and the limits, in one interleaved run. Without TABLES: all of them.

    \b
    cores       fit by the workers against one Keras process that has all cores
    sum         one vector summed over the ranks
    step        a whole training step
    accumulate  a further micro-batch against its bare forward and backward pass
    stats       a step with and without its statistics
    """
    from distgrad.bench.run import run as run_benchmark  # noqa: PLC0415 (NumPy, which the other commands do without)

    run_benchmark(tables or tuple(TABLES), size=num_proc, **chosen)


@main.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--html", "html_file", type=click.Path(path_type=Path, dir_okay=False), help="A page that needs no network."
)
@click.option("--png", "png_file", type=click.Path(path_type=Path, dir_okay=False), help="The same as one picture.")
def report(file: Path, html_file: Path | None, png_file: Path | None) -> None:
    """Show a run that was logged to FILE, by `log_file=` or as JSON lines."""
    from distgrad.reports.show import show  # noqa: PLC0415 (matplotlib, which the other commands do without)

    show(file, html_file, png_file)
