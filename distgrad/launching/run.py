"""`distgrad run`: what a person asked for, made a job, and launched again after a lost worker."""

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from distgrad.errors import BadArgument, BadEnvironment, WorkerLost, WorldMismatch, print_line, warn
from distgrad.launching import hosts as places
from distgrad.launching import worker_wrapper
from distgrad.launching.commands import LAUNCHERS, Command, Order
from distgrad.launching.environment import allocated, for_launcher, for_workers, forwarded, search_path
from distgrad.launching.hosts import Host
from distgrad.launching.job import Job, marked, session
from distgrad.launching.outcome import Verdict
from distgrad.launching.selection import choose
from distgrad.launching.world import World

START_TIMEOUT = 60.0


class Request(NamedTuple):
    """What was asked for.

    Attributes:
        command: a Python script or a program, and its arguments.
        size: how many workers; None: as many as there are slots.
        hosts: where; empty: on this host, or wherever a batch system says.
        backend: see `choice.choose`.
        controller: the same.
        max_restarts: how often the job may be launched again after a worker was lost.
        timeout: seconds that workers wait for each other in a sum; None: what the script says.
        start_timeout: seconds that they wait for each other at the start.
        expect_size: how many workers the script must find.
        oversubscribe: let there be more workers than slots.
        tag_output: begin each line with its worker's rank.
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


def run(request: Request, environment: Mapping[str, str]) -> int:
    """Run it to its end. Gives the exit status: that of the worker which failed first, 0 if none did.

    Raises:
        DistgradError: it cannot be run so; nothing was started.
    """
    plan = _Plan(request, environment)
    for left in range(request.max_restarts, -1, -1):
        verdict = plan.launch()
        _say(verdict)
        if verdict.status != WorkerLost.status or verdict.stopped or not left:
            break
        plan = plan.without_lost_hosts()
        number = request.max_restarts - left + 1
        warn(f"restart {number} of {request.max_restarts}, with {plan.size} workers")
    return verdict.status


def dry_run(request: Request, environment: Mapping[str, str]) -> str:
    """The command lines that do the same by hand, one a line."""
    return _Plan(request, environment).by_hand()


class _Plan:
    """A request that can be met here.

    Raises:
        DistgradError: it cannot.
    """

    def __init__(self, request: Request, environment: Mapping[str, str]) -> None:
        _require_no_launcher_outside(environment)
        self._request, self._environment = request, environment
        self._worker = _worker(request.command, environment)
        self.size = _size(request, environment)
        if request.expect_size is not None and request.expect_size != self.size:
            raise WorldMismatch(
                f"{self.size} workers would be started but {request.expect_size} are expected",
                f"say -np {request.expect_size}, or leave out --expect-size",
            )
        self._choice = choose(request.backend, self.size, request.controller, environment)
        self._require_room()

    def launch(self) -> Verdict:
        with session() as folder:
            environment = marked(self._workers_environment(), folder, self._is_local())
            seen = environment
            if self._choice.backend == "horovod":  # horovodrun writes its environment into command lines
                folder.hand_out(environment)
                others = {} if self._is_local() else {name: environment[name] for name in forwarded(environment)}
                seen = for_launcher(environment) | others
            tag = "tag" if self._request.tag_output else "plain"
            keep = [sys.executable, "-I", "-S", str(worker_wrapper.__file__), str(folder.folder), tag, *self._worker]
            job = Job(
                self._commands(keep, seen),
                self.size,
                folder,
                start_timeout=self._request.start_timeout,
                within_reach=self._is_local(),
                tags=self._choice.launcher.startswith("horovodrun"),
            )
            return job.run(seen)

    def without_lost_hosts(self) -> "_Plan":
        """The same on those hosts that still answer, with fewer workers if there is room for no more."""
        left = places.answering(self._request.hosts, self._environment)
        gone = [host for host in self._request.hosts if host not in left]
        if not gone:
            return self
        warn(f"{', '.join(host.name for host in gone)} does not answer any more")
        size = self.size if self._request.oversubscribe else min(self.size, sum(host.slots for host in left))
        return _Plan(self._request._replace(hosts=left, size=size), self._environment)

    def by_hand(self) -> str:
        settings = self._workers_environment()
        ours = {name: value for name, value in settings.items() if self._environment.get(name) != value}
        commands = self._commands(self._worker, settings)
        lines = [shlex.join(_with(ours | dict(command.environment), command.words)) for command in commands]
        return " &\n".join(lines)

    def _commands(self, worker: Sequence[str], environment: Mapping[str, str]) -> list[Command]:
        names = [] if self._is_local() else forwarded(environment)
        crowd = not self._request.hosts and not allocated(self._environment)
        order = Order(worker, self.size, self._request.hosts, crowd or self._request.oversubscribe, names)
        return LAUNCHERS[self._choice.launcher](order)

    def _workers_environment(self) -> dict[str, str]:
        settings = {"DISTGRAD_BACKEND": self._choice.backend}
        if self._request.timeout is not None:
            settings["DISTGRAD_TIMEOUT"] = f"{self._request.timeout:g}"
        if self._request.expect_size is not None:
            settings["DISTGRAD_EXPECT_SIZE"] = str(self._request.expect_size)
        return for_workers(self._environment, self._fullest(), **settings)

    def _is_local(self) -> bool:
        return all(host.is_local for host in self._request.hosts) and not allocated(self._environment)

    def _fullest(self) -> int:
        """Workers on the host that has most of them."""
        slots = [host.slots for host in self._request.hosts]
        return min(self.size, max(slots)) if slots else self.size

    def _require_room(self) -> None:
        if self._choice.launcher == "TF_CONFIG" and not self._is_local():
            raise BadArgument(
                "TensorFlow's own workers have no launcher that reaches other hosts",
                "start one on each host as launch/clusters/tf_workers shows, or choose --backend mpi or horovod",
            )
        if not self._request.oversubscribe:
            _require_slots(self.size, self._request.hosts, self._environment)
        if self._is_local():
            places.require_gpus(self.size, self._environment)


def _require_slots(size: int, hosts: tuple[Host, ...], environment: Mapping[str, str]) -> None:
    if hosts or not allocated(environment):
        places.require_slots(size, hosts or (Host("localhost", places.cores()),))


def _require_no_launcher_outside(environment: Mapping[str, str]) -> None:
    """Each of several launched workers would launch them all again; a broken environment would break theirs."""
    world = World.from_environment(environment)
    if world.size > 1:
        raise BadEnvironment(
            f"{world.launcher} has launched this already, as worker {world.rank} of {world.size}",
            "launch either with it or with distgrad run",
            rank=world.rank,
        )


def _size(request: Request, environment: Mapping[str, str]) -> int:
    if request.size is not None:
        return request.size
    if request.hosts:
        return sum(host.slots for host in request.hosts)
    if not allocated(environment):
        return places.cores()
    tasks = environment.get("SLURM_NTASKS", "")
    if not tasks.isdecimal():
        raise BadArgument("the batch system does not say how many workers there should be", "say so with -np")
    return int(tasks)


def _worker(command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """A worker's command line: this Python's for a script, else the program's own."""
    program, *arguments = command
    if program.endswith(".py"):
        if not Path(program).is_file():
            raise BadArgument(f"there is no file {program}", "name the script that every worker runs")
        return [sys.executable, program, *arguments]
    path = shutil.which(program, path=search_path(environment))
    if path is None:
        raise BadArgument(f"there is no program {program}", "name a .py file, or a program that is on PATH")
    return [path, *arguments]


def _with(settings: Mapping[str, str], words: Sequence[str]) -> list[str]:
    return ["env", *(f"{name}={value}" for name, value in sorted(settings.items())), *words]


def _say(verdict: Verdict) -> None:
    if verdict.error is not None:
        rank = verdict.error.rank
        last = [f"    [{rank}] {line}" for line in verdict.last_lines]
        print_line("\n".join([str(verdict.error), *last]), sys.stderr)
