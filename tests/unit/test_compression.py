"""The choice of "auto": what is measured in turns, and decided alike."""

import json

import numpy as np
import pytest

from distgrad.collectives.compression import MEASURED, WARM_UP, WORTHWHILE, Compression, Decision

EXACT = 10.0  # ms


class Kept:
    """Rounded sums that are asked for nothing but to forget."""

    forgotten = 0

    def all_sum(self, *_: object) -> None:
        raise AssertionError

    def forget(self) -> None:
        self.forgotten += 1

    def undo(self) -> None:
        raise AssertionError


class Workers:
    """This worker, one that always comes later and waits for nobody, and one that sums no shard."""

    def __init__(self, share: float) -> None:
        self._share = share

    def exchange(self, text: str) -> dict[int, str]:
        waited = json.loads(text)
        return {0: text, 1: json.dumps([[one * self._share for one in ways] for ways in waited]), 2: "[[], []]"}


def decided(rounded: float, share: float = 0.5) -> tuple[Compression, Decision, list[bool]]:
    """What comes of sums that take so many ms rounded, and EXACT as they are."""
    compression, turns, found = Compression(1, Kept(), measures=True), [], None
    noise = np.random.default_rng(0).uniform(0.97, 1.03, 100)
    while found is None:
        turns.append(compression.rounds)
        is_first = len(turns) <= 2 * WARM_UP
        ms = rounded if compression.rounds else EXACT
        compression.took(ms / 1000 / share * (50 if is_first and compression.rounds else noise[len(turns)]))
        found = compression.next_step(Workers(share))
    return compression, found, turns


@pytest.mark.parametrize(("rounded", "rounds"), [(5.0, True), (8.5, True), (10.0, False), (20.0, False)])
def test_takes_bf16_only_where_it_is_faster(rounded: float, rounds: bool) -> None:
    compression, found, turns = decided(rounded)
    assert compression.rounds == found.rounds == rounds == (rounded < WORTHWHILE * EXACT)
    assert turns == [False, True] * (WARM_UP + MEASURED)
    assert not compression.measures
    assert compression.sums.forgotten == (not rounds)
    assert found.exact_ms == pytest.approx(EXACT, rel=0.05)  # of the worker that came last
    assert found.rounded_ms == pytest.approx(rounded, rel=0.05)
    assert compression.next_step(Workers(1)) is None
    assert compression.rounds == rounds


def test_what_is_given_is_not_measured() -> None:
    compression = Compression(1, Kept(), measures=False)
    assert compression.rounds
    assert compression.next_step(Workers(1)) is None
    assert compression.rounds
