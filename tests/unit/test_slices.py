"""The flat vector of the weights, shared out among workers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from distgrad.gradients.flat_vector import Place
from distgrad.step.slices import GRAIN, Kind, Overlap, Run, overlaps, runs_of, share_out

KINDS = st.sampled_from([Kind("float32"), Kind("float32", decays=True), Kind("float16"), "alone", "whole"])


def kind(number: int, drawn: Kind | str) -> Kind:
    if isinstance(drawn, str):
        return Kind("float32", alone=number, whole=number if drawn == "whole" else None)
    return drawn


@given(
    variables=st.lists(st.tuples(st.integers(0, 3000), KINDS), min_size=1, max_size=12),
    gap=st.integers(0, 20),
    total=st.integers(1, 7),
)
def test_each_entry_that_is_updated_has_one_owner(
    variables: list[tuple[int, Kind | str]], gap: int, total: int
) -> None:
    places, kinds, end = [], [], 0
    for number, (size, drawn) in enumerate(variables):
        places.append(Place(0, end, end + size))
        kinds.append(kind(number, drawn))
        end += size + gap
    slices = share_out(runs_of(places, kinds), total, end)
    owners = np.full(end, -1)
    for owner, runs in enumerate(slices.runs):
        for run in runs:
            assert slices.bounds[owner] <= run.first < run.last <= slices.bounds[owner + 1]
            assert (owners[run.first : run.last] == -1).all()
            owners[run.first : run.last] = owner
            assert {kinds[number] for number, _, _ in overlaps(places, run)} <= {run.kind}
    assert (slices.bounds[0], slices.bounds[-1], len(slices.bounds)) == (0, end, total + 1)
    for place, of_variable in zip(places, kinds, strict=True):
        found = set(owners[place.first : place.last].tolist())
        assert -1 not in found
        assert len(found) <= 1 or of_variable.whole is None


@given(sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=9), total=st.integers(1, 7), may_cut=st.booleans())
def test_slices_are_of_one_size(sizes: list[int], total: int, may_cut: bool) -> None:
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    places = [Place(0, end - size, end) for size, end in zip(sizes, ends, strict=True)]
    kinds = [Kind("float32") if may_cut else Kind("float32", alone=n, whole=n) for n in range(len(sizes))]
    slices = share_out(runs_of(places, kinds), total, ends[-1])
    tolerance = GRAIN if may_cut else max(sizes)
    for runs in slices.runs:
        assert sum(run.size for run in runs) <= ends[-1] / total + tolerance


def test_neighbours_that_are_updated_alike_are_one_run() -> None:
    decaying, other, alone = Kind("float32", decays=True), Kind("float32"), Kind("float32", alone=3)
    places = [Place(0, first, first + 10) for first in (0, 16, 32, 48, 64)]
    runs = runs_of(places, [other, other, decaying, alone, other])
    assert runs == [Run(0, 26, other), Run(32, 42, decaying), Run(48, 58, alone), Run(64, 74, other)]
    assert list(overlaps(places, Run(8, 26, other))) == [
        Overlap(0, slice(8, 10), slice(0, 2)),
        Overlap(1, slice(0, 10), slice(8, 18)),
    ]
