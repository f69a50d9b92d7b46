"""Do all workers mean the same thing? Checked before the first sum, since an engine adds up whatever it is given.

Workers exchange texts of a fixed form and compare them. This precedes the first vector rather than riding in its
lanes, because two workers whose models differ have vectors of different lengths: MPI would add garbage.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from distgrad.errors import DistgradError, ModelMismatch, SettingsMismatch

if TYPE_CHECKING:
    from distgrad.collectives.communicator import Communicator


def require_same_variables(comm: "Communicator", variables: Sequence[Any]) -> None:
    """Check that every worker has the same variables in the same order.

    Raises:
        ModelMismatch: naming the first rank that differs from rank 0 and its first variable that does.
    """
    require_same(comm, [describe(variable) for variable in variables], "variable", ModelMismatch)


def require_same_variables_once(comm: "Communicator", variables: Sequence[Any]) -> None:
    """The same inside a graph, where it is asked once: later traces, which others may lack, wait for nobody."""
    lines = json.dumps([describe(variable) for variable in variables])
    if tf.executing_eagerly() or lines not in comm.agreed:
        require_same_variables(comm, variables)
        comm.agreed.add(lines)


def require_same_settings(comm: "Communicator", settings: Sequence[str]) -> None:
    """Check that every worker's settings, each as one text "name=value", are the same.

    Raises:
        SettingsMismatch: naming the first rank that differs from rank 0 and its first setting that does.
    """
    require_same(comm, settings, "setting", SettingsMismatch)


def describe(variable: Any) -> str:
    """One variable as text: path, dtype, shape."""
    name = getattr(variable, "path", variable.name)
    dtype = getattr(variable.dtype, "name", variable.dtype)
    return f"{name} {dtype} {tuple(variable.shape)}"


def require_same(comm: "Communicator", lines: Sequence[str], noun: str, error: type[DistgradError]) -> None:
    """Compare digests first, so that agreement costs 64 bytes a worker; only a difference sends the lines."""
    digest = hashlib.sha256(json.dumps([noun, *lines]).encode()).hexdigest()
    if len({text for text in comm.exchange(digest) if text}) == 1:
        return
    by_rank = {rank: json.loads(text) for rank, text in enumerate(comm.exchange(json.dumps(lines))) if text}
    rank = next(rank for rank, theirs in by_rank.items() if theirs != by_rank[0])
    raise error(
        _difference(by_rank[0], by_rank[rank], noun, rank),
        "build the same model with the same settings and library versions on every worker",
        rank=rank,
        step=0,
        everywhere=True,
    )


def _difference(expected: list[str], found: list[str], noun: str, rank: int) -> str:
    for index, (theirs, ours) in enumerate(zip(found, expected, strict=False)):
        if theirs != ours:
            return f"{noun} {index} is {theirs!r} on rank {rank} but {ours!r} on rank 0"
    longer, more = (found, rank) if len(found) > len(expected) else (expected, 0)
    extra = longer[min(len(found), len(expected))]
    return f"rank {rank} has {len(found)} {noun}s, rank 0 has {len(expected)}; {extra!r} is on rank {more} only"
