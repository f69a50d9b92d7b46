"""The interleaved rounds of a case, and the times that come of them."""

import contextlib
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from distgrad.bench.cases import DISTGRAD, KERAS, TABLES, WITHOUT_COMMUNICATION, Contestant, Difference
from distgrad.bench.jobs import Jobs, TurnFailed

TOLERANCE = 1e-3  # of the oracle's largest number: what float32 may differ from float64 in a deep model
WARM_UP_SECONDS = 0.2  # calls that are taken before the timed ones, but no more calls than those
Evidence: TypeAlias = Sequence[float] | None  # see worker.Prepared


class Budget(NamedTuple):
    """The time that is spent on a case.

    Attributes:
        rounds: at least so many.
        turn: seconds of one turn, about.
        tries: how often a void case is measured.
        extra_seconds: how long rounds go on beyond `rounds`; where turns are short, there is time for more of them.
        most_rounds: no more than these.
    """

    rounds: int
    turn: float
    tries: int
    extra_seconds: float = 0.0
    most_rounds: int = 120

    def divided(self, parts: int) -> "Budget":
        """Return the budget of one of several equal parts of the rounds."""
        return self._replace(
            rounds=math.ceil(self.rounds / parts),
            most_rounds=math.ceil(self.most_rounds / parts),
            extra_seconds=self.extra_seconds / parts,
        )


QUICK, FULL = Budget(30, 0.02, 1), Budget(30, 0.03, 2, 100.0)


@dataclass
class Measurements:
    """The measurements of one contestant in one case.

    Attributes:
        name: the contestant.
        label: the contestant with its configuration.
        repetitions: timed calls of a turn.
        warm: calls before them.
        seconds: of one call, the slowest rank's, by round.
        cpu, faults: CPU seconds and page faults of one call, summed over the ranks, by round.
        peak: bytes resident, the largest rank's, since its job began.
    """

    table: str
    case: str
    name: str
    label: str
    repetitions: int = 1
    warm: int = 1
    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    faults: list[float] = field(default_factory=list)
    peak: int = 0

    @property
    def median(self) -> float:
        """Seconds of one call."""
        return statistics.median(self.seconds)

    def clear(self) -> None:
        """Drop all rounds."""
        self.seconds, self.cpu, self.faults = [], [], []

    def add(self, answers: Sequence[dict[str, Any]]) -> None:
        """Add one round's answers, by rank."""
        self.seconds.append(max(answer["seconds"] for answer in answers))
        self.cpu.append(sum(answer["cpu"] for answer in answers))
        self.faults.append(sum(answer["faults"] for answer in answers))
        self.peak = max(answer["peak"] for answer in answers)


def no_progress(_: str) -> None:
    """Show no progress."""


class CaseRun:
    """The run of one case of a table: its contestants are prepared and measured.

    Args:
        jobs: the running jobs.
        table, case: the names of both.
        contestants: those whose jobs are running.

    Attributes:
        failed: why contestants could not take part, by their labels.
    """

    def __init__(self, jobs: Jobs, table: str, case: str, contestants: Iterable[Contestant]) -> None:
        self._jobs, self._table, self._case = jobs, table, case
        self._measured = {one: Measurements(table, case, one.name, one.label) for one in contestants}
        self._used_jobs = {one.job for one in self._measured}
        self._random = random.Random(0)
        self._first = 0  # number of the contestant that is built first; those before it come last
        self.failed: dict[str, str] = {}

    def prepare(self, budget: Budget, progress: Callable[[str], None] = no_progress) -> None:
        """Build what each contestant needs and check that its result is right.

        Args:
            budget: `turn` determines the calls of a turn.
            progress: gets a few words about each thing that is done.
        """
        try:
            oracle = self._oracle()
        except TurnFailed as error:
            self.failed |= dict.fromkeys((one.label for one in self._measured), f"there is no oracle: {error}")
            self._measured.clear()
            return
        contestants = list(self._measured)
        for contestant in contestants[self._first :] + contestants[: self._first]:
            self._attempt(contestant, lambda one: self._prepare(one, oracle, budget.turn))
            progress(f"prepared {contestant.label}")

    def measure(self, budget: Budget, progress: Callable[[str], None] = no_progress) -> list[Measurements]:
        """Take turns, round by round. Where the table rotates, contestants are built anew in each order of building.

        Returns:
            The measurements of all contestants, and of the table's differences.
        """
        for one in self._measured.values():
            one.clear()
        orders = max(1, len(self._measured)) if TABLES[self._table].rotates else 1
        budget_of_order = budget.divided(orders)
        for number in range(orders):
            if number:
                self._first = (self._first + 1) % orders  # a second try goes on from the order that is prepared
                self.clear()
                self.prepare(budget_of_order)
            self._take_rounds(budget_of_order, progress)
        measured = list(self._measured.values())
        names = {one.name for one in measured}
        complete = [one for one in TABLES[self._table].differences if {one.longer, one.shorter} <= names]
        return measured + [_difference(measured, one) for one in complete]

    def clear(self) -> None:
        """Free what was prepared."""
        for job in self._used_jobs:
            with contextlib.suppress(TurnFailed):  # where the job is lost, its contestants have been named as failed
                self._jobs.ask(job, do="clear")

    def _take_rounds(self, budget: Budget, progress: Callable[[str], None]) -> None:
        """Take rounds, each in its own order: a contestant would inherit the caches of one that always came before."""
        rounds, end = 0, time.monotonic() + budget.extra_seconds
        while rounds < budget.rounds or (rounds < budget.most_rounds and time.monotonic() < end):
            for contestant in self._random.sample(list(self._measured), len(self._measured)):
                self._attempt(contestant, self._take_turn)
            rounds += 1
            if rounds <= budget.rounds:  # how many more there will be is not known
                progress(f"round {rounds}")

    def _attempt(self, contestant: Contestant, act: Callable[[Contestant], None]) -> None:
        """Act for a contestant; if it fails, it takes no further part in this case."""
        try:
            act(contestant)
        except (TurnFailed, ArithmeticError) as error:
            self.failed[contestant.label] = str(error)
            self._measured.pop(contestant)

    def _prepare(self, contestant: Contestant, oracle: Evidence, seconds: float) -> None:
        """Prepare a contestant, and determine how many calls its turns have from the time of two calls."""
        for answer in self._ask(contestant, "prepare"):
            _require_agreement(contestant, answer["evidence"], oracle)
        call = max(answer["seconds"] for answer in self._ask(contestant, "time", repetitions=2, warm=2))
        measurements, period = self._measured[contestant], TABLES[self._table].period
        measurements.repetitions = period * max(1, round(seconds / call / period))
        measurements.warm = max(1, round(seconds / call), min(measurements.repetitions, round(WARM_UP_SECONDS / call)))

    def _take_turn(self, contestant: Contestant) -> None:
        measurements = self._measured[contestant]
        calls = {"repetitions": measurements.repetitions, "warm": measurements.warm}
        measurements.add(self._ask(contestant, "time", **calls))

    def _ask(self, contestant: Contestant, do: str, **order: Any) -> list[dict[str, Any]]:
        return self._jobs.ask(contestant.job, do=do, table=self._table, case=self._case, turn=contestant.turn, **order)

    def _oracle(self) -> Evidence:
        """Return what a step must do to the weights; None for sums, each of which is checked where it is computed.

        Of fits, return the losses of Keras's.
        """
        if self._table == "cores":
            keras = next(one for one in self._measured if one.peer == KERAS)
            return self._ask(keras, "prepare")[0]["evidence"]
        if self._table not in ("step", "stats"):
            return None
        return self._jobs.ask(DISTGRAD, do="prepare", table="step", case=self._case, turn="oracle")[0]["evidence"]


def _difference(measured: Sequence[Measurements], wanted: Difference) -> Measurements:
    longer, shorter = (next(one for one in measured if one.name == name) for name in (wanted.longer, wanted.shorter))
    seconds = [(a - b) / wanted.times for a, b in zip(longer.seconds, shorter.seconds, strict=True)]
    return replace(longer, name=wanted.name, label=wanted.name, seconds=seconds, cpu=[], faults=[])


def _require_agreement(contestant: Contestant, evidence: Evidence, oracle: Evidence) -> None:
    if evidence is None or oracle is None or contestant.name in WITHOUT_COMMUNICATION:
        return
    worst = float(np.abs(np.subtract(evidence, oracle)).max() / np.abs(oracle).max())
    if not worst <= TOLERANCE:
        raise ArithmeticError(f"{contestant.label} is wrong: its step differs from the oracle's by {worst:.1e}")
