"""The argument `compression` of a step: what of it has an effect, and what is said of it."""

import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.collectives.compression import Compression
from distgrad.errors import note


def compression_for(comm: Communicator, mode: str, dtype: tf.DType) -> Compression | None:
    """Return the way of a step's gradients between hosts, None where they go as they are. Every worker calls it.

    Args:
        mode: "none", "bf16" or "auto".
        dtype: of the gradients' flat vector.
    """
    if mode == "none":
        return None
    found = comm.window.compression(mode == "auto") if comm.window is not None and dtype == tf.float32 else None
    if found is None and mode == "bf16" and comm.is_root:
        reason = "gradients of float64 go as they are" if dtype != tf.float32 else "no sum goes between hosts over MPI"
        note(f"compression='bf16' has no effect: {reason}")
    return found


def take_next_step(comm: Communicator, compression: Compression) -> None:
    """End a step; the root tells what was decided after it. Every worker calls it."""
    found = compression.next_step(comm)
    if found is None or not comm.is_root:
        return
    chosen = "bf16" if found.rounds else "none"
    times = f"a sum between hosts takes {found.exact_ms:.3g} ms as it is and {found.rounded_ms:.3g} ms as bf16"
    note(f"compression='auto' chooses {chosen!r}: {times}")
