"""What `distgrad run` passes on of the output of workers and launchers."""

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distgrad.launching.output import Explanations, pass_on, without_greetings

GREETINGS = b"""WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795797341.834404   29665 port.cc:153] oneDNN custom operations are on.
To enable the following instructions: AVX2 AVX512F FMA, in other operations, rebuild TensorFlow.
2024-11-27 16:35:41.834404: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.
"""
WORDS = b"""Traceback (most recent call last):
I0000 is a user's own word
W0000 00:00:1795797341.834404   29665 port.cc:153] a warning
E0000 00:00:1795797341.834404   29665 port.cc:153] an error
2024-11-27 16:35:41.834404: W tensorflow/core/util/port.cc:153] a warning
"""
RULE = b"-" * 74 + b"\n"
EXPLAINED = [
    RULE,
    b"Primary job  terminated normally, but 1 process returned\n",
    b"a non-zero exit code. Per user-direction, the job has been aborted.\n",
    RULE,
    RULE,
    b"MPI_ABORT was invoked on rank 0 in communicator MPI_COMM_WORLD\n",
    b"\n",
    RULE,
    b"[host:32266] 1 more process has sent help message help-mpi-api.txt / mpi-abort\n",
    b'[host:32266] Set MCA parameter "orte_base_help_aggregate" to 0 to see all help / error messages\n',
]
OWN = [b"loss 1\n", RULE, b"a table of the user's\n", b"1 2 3\n", RULE, b"loss 2\n"]


def test_what_tensorflow_says_for_information_is_left_out() -> None:
    lines = (GREETINGS + WORDS).splitlines(keepends=True)
    assert b"".join(without_greetings(lines)) == WORDS


@given(st.lists(st.integers(0, len(EXPLAINED) + len(OWN))), st.integers(0, len(OWN) + 1))
def test_explanations_are_held_back_wherever_the_lines_are_cut(cuts: list[int], place: int) -> None:
    """Among a user's own lines; not within a table, whose lines might be those of an explanation."""
    place = place if place in (0, 1, len(OWN) - 1) else len(OWN)
    lines = [*OWN[:place], *EXPLAINED, *OWN[place:]]
    ends = sorted({0, *cuts, len(lines)})
    explanations = Explanations()
    shown = [line for first, last in itertools.pairwise(ends) for line in explanations.without(lines[first:last])]
    assert [*shown, *explanations.rest()] == OWN
    assert explanations.held == EXPLAINED


def test_an_explanation_that_does_not_end_is_shown_at_the_end() -> None:
    explanations = Explanations()
    assert explanations.without(EXPLAINED[:3]) == []
    assert explanations.rest() == EXPLAINED[:3]
    assert explanations.held == []


@pytest.mark.parametrize("pieces", [[b"a\nb", b"c\r", b"\nd"], [b"", b"a\n\n", b"bc\r\nd"]])
def test_lines_are_whole_however_they_come(pieces: list[bytes]) -> None:
    readable, writable = os.pipe()
    found: list[bytes] = []
    for piece in pieces:
        os.write(writable, piece)
    os.close(writable)
    with os.fdopen(readable, "rb", buffering=0) as stream:
        pass_on({stream: found.extend})
    assert found == b"".join(pieces).splitlines(keepends=True)
