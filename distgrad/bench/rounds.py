"""The protocol: interleaved rounds, and the rows that follow from them."""

import contextlib
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from distgrad.bench.cases import HOROVODS, LOCAL, OWN, TABLES, Contestant, Difference
from distgrad.bench.jobs import Jobs, TurnFailed

QUIET = (0.97, 1.03)  # where the median ratio of A to A must lie
AGREE = 1e-3  # of the oracle's largest number: what float32 may differ from float64 in a deep model
CONFIDENCE = 0.95
WARM = 0.2  # seconds that a turn's calls are taken for before they are timed, but no more calls than that
BEST_HOROVOD = "best-horovod"
Numbers: TypeAlias = Sequence[float] | None


class Effort(NamedTuple):
    """How long to measure.

    Attributes:
        rounds: of a case, at least.
        turn: about so many seconds.
        tries: how often a void case is tried.
        patience: so many seconds rounds go on beyond the least, up to `most`: short turns leave time for more of them.
    """

    rounds: int
    turn: float
    tries: int
    patience: float = 0.0
    most: int = 120

    def share(self, parts: int) -> "Effort":
        """One of so many parts of it."""
        of_rounds = {"rounds": math.ceil(self.rounds / parts), "most": math.ceil(self.most / parts)}
        return self._replace(**of_rounds, patience=self.patience / parts)


QUICK, FULL = Effort(30, 0.02, 1), Effort(30, 0.03, 2, 100.0)


@dataclass
class Series:
    """All that was measured of one contestant in one case.

    Attributes:
        name: whom the time counts for.
        label: its configuration too.
        repetitions: calls a turn; as many as `warm` go before those that are timed.
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

    def forget(self) -> None:
        """Begin anew."""
        self.seconds, self.cpu, self.faults = [], [], []

    def add(self, answers: Sequence[dict[str, Any]]) -> None:
        """Take in one round's answers, by rank."""
        self.seconds.append(max(answer["seconds"] for answer in answers))
        self.cpu.append(sum(answer["cpu"] for answer in answers))
        self.faults.append(sum(answer["faults"] for answer in answers))
        self.peak = max(answer["peak"] for answer in answers)


class Row(NamedTuple):
    """One comparison: ratio = time of `against` / time of `contestant`, above 1 where the contestant is faster."""

    table: str
    case: str
    contestant: str
    against: str
    ratio: float
    low: float
    high: float


class Trial:
    """One case of a table while it is measured.

    Attributes:
        failed: the contestants that could not take part, by label: why.
    """

    def __init__(self, jobs: Jobs, table: str, case: str, contestants: Iterable[Contestant]) -> None:
        self._jobs, self._table, self._case = jobs, table, case
        self._entrants = {one: Series(table, case, one.name, one.label) for one in contestants}
        self._working = {one.job for one in self._entrants}
        self._order = random.Random(0)
        self._first = 0  # number of the contestant that builds first; those before it come last
        self.failed: dict[str, str] = {}

    def prepare(self, effort: Effort, tick: Callable[[str], None]) -> None:
        """Let everyone build what they need and prove that it is right. `tick` hears what has been done."""
        try:
            oracle = self._oracle()
        except TurnFailed as error:
            self._give_up(f"there is no oracle: {error}")
            return
        contestants = list(self._entrants)
        for contestant in contestants[self._first :] + contestants[: self._first]:
            self._attempt(contestant, lambda one: self._prepare(one, oracle, effort.turn))
            tick(f"prepared {contestant.label}")

    def measure(self, effort: Effort, tick: Callable[[str], None]) -> list[Series]:
        """Let all take their turns, round by round, in the order of building in which they are prepared, or in each."""
        for one in self._entrants.values():
            one.forget()
        orders = max(1, len(self._entrants)) if TABLES[self._table].rotates else 1
        share = effort.share(orders)
        for number in range(orders):
            if number:
                self._first = (self._first + 1) % orders  # a second try goes on from the order that is prepared
                self.clear()
                self.prepare(share, unheard)
            self._take_rounds(share, tick)
        measured = list(self._entrants.values())
        names = {one.name for one in measured}
        complete = [one for one in TABLES[self._table].differences if {one.longer, one.shorter} <= names]
        return measured + [_difference(measured, one) for one in complete]

    def _take_rounds(self, effort: Effort, tick: Callable[[str], None]) -> None:
        """Each round has its own order: whoever always came after the same neighbour would inherit its caches."""
        rounds, end = 0, time.monotonic() + effort.patience
        while rounds < effort.rounds or (rounds < effort.most and time.monotonic() < end):
            for contestant in self._order.sample(list(self._entrants), len(self._entrants)):
                self._attempt(contestant, self._take_turn)
            rounds += 1
            if rounds <= effort.rounds:  # those that are sure to come
                tick(f"round {rounds}")

    def clear(self) -> None:
        """Free what was prepared."""
        for job in self._working:
            with contextlib.suppress(TurnFailed):  # where the job is lost, its contestants have been named as failed
                self._jobs.ask(job, do="clear")

    def _attempt(self, contestant: Contestant, act: Callable[[Contestant], None]) -> None:
        """Who fails is out of this case, and so is everyone else whose job was lost."""
        try:
            act(contestant)
        except (TurnFailed, ArithmeticError) as error:
            self.failed[contestant.label] = str(error)
            self._entrants.pop(contestant)

    def _give_up(self, reason: str) -> None:
        """Nobody can take part."""
        self.failed |= dict.fromkeys((one.label for one in self._entrants), reason)
        self._entrants.clear()

    def _prepare(self, contestant: Contestant, oracle: Numbers, seconds: float) -> None:
        for answer in self._ask(contestant, "prepare"):
            _require_agreement(contestant, answer["evidence"], oracle)
        trial = max(answer["seconds"] for answer in self._ask(contestant, "time", repetitions=2, warm=2))
        series, whole = self._entrants[contestant], TABLES[self._table].period
        series.repetitions = whole * max(1, round(seconds / trial / whole))
        series.warm = max(1, round(seconds / trial), min(series.repetitions, round(WARM / trial)))

    def _take_turn(self, contestant: Contestant) -> None:
        series = self._entrants[contestant]
        series.add(self._ask(contestant, "time", repetitions=series.repetitions, warm=series.warm))

    def _ask(self, contestant: Contestant, do: str, **order: Any) -> list[dict[str, Any]]:
        return self._jobs.ask(contestant.job, do=do, table=self._table, case=self._case, turn=contestant.turn, **order)

    def _oracle(self) -> Numbers:
        """What a step must do to the weights; sums know their answer themselves."""
        if self._table not in ("step", "stats"):
            return None
        return self._jobs.ask(OWN, do="prepare", table="step", case=self._case, turn="oracle")[0]["evidence"]


def unheard(done: str) -> None:
    """Nobody watches."""


def rows(table: str, measured: Sequence[Series]) -> list[Row]:
    """Compare each subject of the table with everyone else in its case, each at their best configuration."""
    found = []
    for name in TABLES[table].subjects:
        subject = best(measured, [name])
        names = dict.fromkeys(one.name for one in measured if one.name not in (name, *_parts(table)))
        for against in (*names, BEST_HOROVOD):
            other = best(measured, members(against))
            if subject is not None and other is not None:
                found.append(_row(subject, against, other))
    return found


def members(against: str) -> Sequence[str]:
    """The contestants whose best a row's `against` stands for."""
    return HOROVODS if against == BEST_HOROVOD else (against,)


def best(measured: Sequence[Series], names: Sequence[str]) -> Series | None:
    """The fastest configuration of these contestants, by median; None if none was measured."""
    return min((one for one in measured if one.name in names), key=lambda one: one.median, default=None)


def is_void(found: Sequence[Row]) -> bool:
    """Whether A against A shows that the machine was not quiet enough to tell anything."""
    control = [row.ratio for row in found if (row.contestant, row.against) == (OWN, f"{OWN} again")]
    return not all(QUIET[0] <= ratio <= QUIET[1] for ratio in control)


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median and a 95 % interval of the median that assumes nothing about the distribution.

    Between the k-th smallest and the k-th largest of n values the true median lies with probability
    1 - 2·P(Binomial(n, 1/2) < k); k is the largest that leaves 95 % (Conover, Practical Nonparametric Statistics).

    >>> median_interval([float(value) for value in range(1, 31)])
    (15.5, 10.0, 21.0)
    """
    ordered, n = sorted(values), len(values)
    outside, k = 0.5**n, 0
    while 2 * outside <= 1 - CONFIDENCE:
        k += 1
        outside += math.comb(n, k) * 0.5**n
    k = max(k, 1)  # with 5 values and fewer no interval reaches 95 %; then it is all of them
    return statistics.median(ordered), ordered[k - 1], ordered[-k]


def _row(subject: Series, against: str, other: Series) -> Row:
    # Rounds in which a difference came out as zero or less say nothing about a ratio.
    pairs = [(a, b) for a, b in zip(other.seconds, subject.seconds, strict=True) if a > 0 and b > 0]
    ratios = [a / b for a, b in pairs]
    return Row(subject.table, subject.case, subject.name, against, *median_interval(ratios))


def _parts(table: str) -> set[str]:
    """Contestants that are there for their differences only."""
    return {part for one in TABLES[table].differences for part in (one.longer, one.shorter)}


def _difference(measured: Sequence[Series], wanted: Difference) -> Series:
    longer, shorter = (next(one for one in measured if one.name == name) for name in (wanted.longer, wanted.shorter))
    seconds = [(a - b) / wanted.times for a, b in zip(longer.seconds, shorter.seconds, strict=True)]
    return replace(longer, name=wanted.name, label=wanted.name, seconds=seconds, cpu=[], faults=[])


def _require_agreement(contestant: Contestant, evidence: Numbers, oracle: Numbers) -> None:
    if evidence is None or oracle is None or contestant.name in LOCAL:
        return
    worst = float(np.abs(np.subtract(evidence, oracle)).max() / np.abs(oracle).max())
    if not worst <= AGREE:
        raise ArithmeticError(f"{contestant.label} is wrong: its step differs from the oracle's by {worst:.1e}")
