"""`distgrad run`: its options, made a job that is launched, and launched again after a lost worker."""

import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from distgrad.errors import BadArgument, BadEnvironment, WorkerLost, WorldMismatch, print_line, warn
from distgrad.launching.commands import COMMANDS, Command, JobSpec
from distgrad.launching.environment import (
    forwarded_names,
    is_allocated,
    launcher_environment,
    search_path,
    worker_environment,
)
from distgrad.launching.hosts import Host, core_count, reachable_hosts, require_gpus, require_slots
from distgrad.launching.isolated import isolated_command
from distgrad.launching.job import Job, temporary_job_folder, with_job_mark
from distgrad.launching.outcome import Outcome
from distgrad.launching.selection import select
from distgrad.launching.world import World

START_TIMEOUT = 60.0


class RunOptions(NamedTuple):
    """The options of `distgrad run`.

    Attributes:
        command: a Python script, module or program, and its arguments.
        size: how many workers; None: as many as there are slots.
        hosts: where they run; if empty, on this host or wherever a batch system says.
        backend: the engine, see `selection.select`.
        controller: how Horovod's workers meet, see there.
        max_restarts: how often the job may be launched again after a worker was lost.
        timeout: seconds that workers wait for each other in a sum; None: as the script says.
        start_timeout: seconds that they wait for each other at the start.
        expect_size: how many workers the script must find; None: any number.
        oversubscribe: True allows more workers than slots.
        tag_output: True begins each line of output with its worker's rank.
        is_module: True for a module.
        verbose: True shows all that TensorFlow and the launcher print.
    """

    command: Sequence[str]
    size: int | None = None
    hosts: tuple[Host, ...] = ()
    backend: str = "auto"
    controller: str | None = None
    max_restarts: int = 0
    timeout: float | None = None
    start_timeout: float = START_TIMEOUT
    expect_size: int | None = None
    oversubscribe: bool = False
    tag_output: bool = False
    is_module: bool = False
    verbose: bool = False


def run(options: RunOptions, environment: Mapping[str, str]) -> int:
    """Run the job to its end. Returns its exit status: that of the worker which failed first, 0 if none did.

    Raises:
        DistgradError: it cannot be run so; nothing was started.
    """
    plan = _Plan(options, environment)
    for restarts_left in range(options.max_restarts, -1, -1):
        outcome = plan.launch()
        _print_error(outcome)
        if outcome.status != WorkerLost.status or outcome.stopped or not restarts_left:
            break
        plan = plan.without_lost_hosts()
        number = options.max_restarts - restarts_left + 1
        warn(f"restart {number} of {options.max_restarts}, with {plan.size} workers")
    return outcome.status


def dry_run(options: RunOptions, environment: Mapping[str, str]) -> str:
    """Return the command lines that do the same by hand, one a line."""
    return _Plan(options, environment).by_hand()


class _Plan:
    """The job that the options ask for, checked against this machine.

    Raises:
        DistgradError: it cannot be launched here.
    """

    def __init__(self, options: RunOptions, environment: Mapping[str, str]) -> None:
        _require_no_outer_launcher(environment)
        self._options, self._environment = options, environment
        self._worker = (
            _module_command(options.command) if options.is_module else _worker_command(options.command, environment)
        )
        self.size = _job_size(options, environment)
        if options.expect_size is not None and options.expect_size != self.size:
            raise WorldMismatch(
                f"{self.size} workers would be started but {options.expect_size} are expected",
                f"say -np {options.expect_size}, or leave out --expect-size",
            )
        self._selection = select(options.backend, self.size, options.controller, environment)
        self._require_room()

    def launch(self) -> Outcome:
        """Launch the job once."""
        with temporary_job_folder() as folder:
            environment = with_job_mark(self._worker_environment(), folder, self._on_this_host())
            visible = environment
            if self._selection.backend == "horovod":  # horovodrun writes its environment into command lines
                folder.write_environment(environment)
                visible = self._environment_for_horovodrun(environment)
            chosen = {"tag": self._options.tag_output, "verbose": self._options.verbose}
            options = ",".join(name for name, is_chosen in chosen.items() if is_chosen)
            wrapper = isolated_command("distgrad.launching.worker_wrapper", str(folder.path), options, *self._worker)
            job = Job(
                self._commands(wrapper, visible),
                self.size,
                folder,
                start_timeout=self._options.start_timeout,
                on_this_host=self._on_this_host(),
                launcher=self._selection.launcher,
                verbose=self._options.verbose,
            )
            return job.run(visible)

    def without_lost_hosts(self) -> "_Plan":
        """Return the same job on those hosts that still answer, with fewer workers if there is room for no more."""
        left = reachable_hosts(self._options.hosts, self._environment)
        lost = [host for host in self._options.hosts if host not in left]
        if not lost:
            return self
        warn(f"{', '.join(host.name for host in lost)} does not answer any more")
        size = self.size if self._options.oversubscribe else min(self.size, sum(host.slots for host in left))
        return _Plan(self._options._replace(hosts=left, size=size), self._environment)

    def by_hand(self) -> str:
        """Return the command lines without the wrapper, joined by `&`, with the variables that they need."""
        environment = self._worker_environment()
        changed = {name: value for name, value in environment.items() if self._environment.get(name) != value}
        commands = self._commands(self._worker, environment)
        settings = [sorted((changed | dict(command.environment)).items()) for command in commands]
        lines = [
            shlex.join(["env", *(f"{name}={value}" for name, value in its), *command.words])
            for its, command in zip(settings, commands, strict=True)
        ]
        return " &\n".join(lines)

    def _commands(self, worker: Sequence[str], environment: Mapping[str, str]) -> list[Command]:
        names = [] if self._on_this_host() else forwarded_names(environment)
        unlimited = not self._options.hosts and not is_allocated(self._environment)
        oversubscribe = unlimited or self._options.oversubscribe
        job = JobSpec(worker, self.size, self._options.hosts, oversubscribe, names)
        return COMMANDS[self._selection.launcher](job)

    def _worker_environment(self) -> dict[str, str]:
        settings = {"DISTGRAD_BACKEND": self._selection.backend}
        if self._options.timeout is not None:
            settings["DISTGRAD_TIMEOUT"] = f"{self._options.timeout:g}"
        if self._options.expect_size is not None:
            settings["DISTGRAD_EXPECT_SIZE"] = str(self._options.expect_size)
        slots = [host.slots for host in self._options.hosts]
        largest_local_size = min(self.size, max(slots)) if slots else self.size
        return worker_environment(self._environment, largest_local_size, settings)

    def _environment_for_horovodrun(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Leave out what horovodrun does not need; workers on this host read all of it from the job's folder."""
        names = [] if self._on_this_host() else forwarded_names(environment)
        return launcher_environment(environment) | {name: environment[name] for name in names}

    def _on_this_host(self) -> bool:
        return all(host.is_local for host in self._options.hosts) and not is_allocated(self._environment)

    def _require_room(self) -> None:
        if self._selection.launcher == "TF_CONFIG" and not self._on_this_host():
            raise BadArgument(
                "TensorFlow's own workers have no launcher that reaches other hosts",
                "start one on each host as launch/clusters/tf_workers shows, or choose --backend mpi or horovod",
            )
        hosts = self._options.hosts
        if not self._options.oversubscribe and (hosts or not is_allocated(self._environment)):
            require_slots(self.size, hosts or (Host("localhost", core_count()),))
        if self._on_this_host():
            require_gpus(self.size, self._environment)


def _require_no_outer_launcher(environment: Mapping[str, str]) -> None:
    """Check that no launcher has started this process as one of several, each of which would launch all workers.

    Raises:
        BadEnvironment: one has, or its variables are broken, which the workers would inherit.
    """
    world = World.from_environment(environment)
    if world.size > 1:
        raise BadEnvironment(
            f"{world.launcher} has launched this already, as worker {world.rank} of {world.size}",
            "launch either with it or with distgrad run",
            rank=world.rank,
        )


def _job_size(options: RunOptions, environment: Mapping[str, str]) -> int:
    if options.size is not None:
        return options.size
    if options.hosts:
        return sum(host.slots for host in options.hosts)
    if not is_allocated(environment):
        return core_count()
    tasks = environment.get("SLURM_NTASKS", "")
    if not re.fullmatch("[1-9][0-9]{0,8}", tasks):
        raise BadArgument("the batch system does not say how many workers there should be", "say so with -np")
    return int(tasks)


def _worker_command(command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return a worker's command line: this Python's for a script, else the program's own."""
    program, *arguments = command
    if program.endswith(".py"):
        if not Path(program).is_file():
            raise BadArgument(f"there is no file {program}", "name the script that every worker runs")
        return [sys.executable, program, *arguments]
    path = shutil.which(program, path=search_path(environment))
    if path is None:
        raise BadArgument(f"there is no program {program}", "name a .py file, or a program that is on PATH")
    return [path, *arguments]


def _module_command(command: Sequence[str]) -> list[str]:
    """Return a worker's command line for a module, which Python finds in the working directory, too."""
    module = command[0]
    if PathFinder.find_spec(module.partition(".")[0], ["", *sys.path]) is None:
        raise BadArgument(
            f"there is no module {module}", "name one that is installed, or that the working directory has"
        )
    return [sys.executable, "-m", *command]


def _print_error(outcome: Outcome) -> None:
    if outcome.error is not None:
        rank = outcome.error.rank
        last = [f"    [{rank}] {line}" for line in outcome.last_lines]
        print_line("\n".join([str(outcome.error), *last]), sys.stderr)
