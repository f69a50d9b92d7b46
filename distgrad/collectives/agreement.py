"""Agreement of all workers on variables, settings and versions, checked before the first sum.

An engine adds up whatever it is given, so workers first exchange texts of a fixed form and compare them. This precedes
the first vector rather than riding in it, because two workers whose models differ have vectors of different lengths:
MPI would add garbage.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

import tensorflow as tf

from distgrad.errors import DistgradError, ModelMismatch, SettingsMismatch

Agreed = TypeVar("Agreed")


class Exchange(Protocol):
    """A communicator, as far as texts are exchanged by it."""

    def exchange(self, text: str) -> Mapping[int, str]:
        """Give every process every process's text, by rank."""
        ...


class Workers(Exchange, Protocol):
    """A communicator, as far as an agreement needs one."""

    _agreed: dict[str, Any]  # what all workers are known to have agreed on, by this worker's text


def require_same_variables(comm: Workers, variables: Sequence[Any]) -> None:
    """Check that every worker has the same variables in the same order.

    Raises:
        ModelMismatch: naming the first rank that differs from rank 0 and its first variable that does.
    """
    require_same(comm, [describe(variable) for variable in variables], "variable", ModelMismatch)


def require_same_variables_once(comm: Workers, variables: Sequence[Any]) -> None:
    """Check variables likewise; inside a graph, once for all its traces.

    Other workers may lack the later traces, so that these must not wait for them.
    """
    lines = json.dumps([describe(variable) for variable in variables])
    if tf.executing_eagerly() or lines not in comm._agreed:
        require_same_variables(comm, variables)
        comm._agreed[lines] = True


def agree_once(comm: Workers, text: str, agree: Callable[[Mapping[int, str]], Agreed]) -> Agreed:
    """Exchange texts, and remember what follows from them for the next time that this worker has the same text.

    Args:
        agree: texts by rank -> what follows from them, the same on every worker.
    """
    if text not in comm._agreed:
        comm._agreed[text] = agree(comm.exchange(text))
    return cast(Agreed, comm._agreed[text])


def require_same_settings(comm: Workers, settings: Sequence[str]) -> None:
    """Check that every worker's settings, each as one text "name=value", are the same.

    Raises:
        SettingsMismatch: naming the first rank that differs from rank 0 and its first setting that does.
    """
    require_same(comm, settings, "setting", SettingsMismatch)


def name_of(variable: Any) -> str:
    """A variable's name as errors show it: in quotes, control characters escaped."""
    return repr(getattr(variable, "path", variable.name))


def describe(variable: Any) -> str:
    """One variable as text: path, dtype, shape."""
    name = getattr(variable, "path", variable.name)
    dtype = getattr(variable.dtype, "name", variable.dtype)
    return f"{name} {dtype} {tuple(variable.shape)}"


def require_same(comm: Workers, lines: Sequence[str], noun: str, error: type[DistgradError]) -> None:
    """Check that every worker has the same lines.

    Digests are compared first, so that agreement costs 64 bytes a worker; only where they differ are the lines sent.

    Args:
        noun: for the message, what each line describes.
        error: the class to raise.

    Raises:
        DistgradError: of class `error`, on every worker, naming the first rank and line that differ from rank 0.
    """
    digest = hashlib.sha256(json.dumps([noun, *lines]).encode()).hexdigest()
    if len(set(comm.exchange(digest).values())) == 1:
        return
    by_rank = {rank: json.loads(text) for rank, text in comm.exchange(json.dumps(lines)).items()}
    rank = next(rank for rank, theirs in by_rank.items() if theirs != by_rank[0])
    raise error(
        _difference(by_rank[0], by_rank[rank], noun, rank),
        "build the same model with the same settings and library versions on every worker",
        rank=rank,
        step=0,
        everywhere=True,
    )


def _difference(expected: list[str], found: list[str], noun: str, rank: int) -> str:
    """The first line of a rank that is not what rank 0 has."""
    for index, (theirs, ours) in enumerate(zip(found, expected, strict=False)):
        if theirs != ours:
            return f"{noun} {index} is {theirs!r} on rank {rank} but {ours!r} on rank 0"
    longer, more = (found, rank) if len(found) > len(expected) else (expected, 0)
    extra = longer[min(len(found), len(expected))]
    return f"rank {rank} has {len(found)} {noun}s, rank 0 has {len(expected)}; {extra!r} is on rank {more} only"
