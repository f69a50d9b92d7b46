"""The weights of the root on every worker, sent only where they differ."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.keras_internals import is_random_state
from distgrad.objective.states import states_of_rows
from distgrad.step.drift import WORDS, checksums


def share_weights(comm: Communicator, model: keras.Model) -> None:
    """Give every worker the root's weights and states, if any worker has others. Every worker calls it.

    Checksums of the variables decide. A worker's own random numbers, and states that belong to its rows, stay.
    """
    of_rows = {id(variable) for variable in states_of_rows(model)}
    variables = [v for v in model.variables if not is_random_state(v) and id(v) not in of_rows]
    if comm.size > 1 and len(set(comm.exchange(_digest(variables)).values())) > 1:
        comm.broadcast(variables)


def _digest(variables: Sequence[keras.Variable]) -> str:
    """Return the checksums, computed where the variables are; of bytes and bools, their sum."""
    wide = [v for v in variables if tf.as_dtype(v.dtype).size in WORDS]
    small = [v for v in variables if tf.as_dtype(v.dtype).size not in WORDS]
    sums = [tf.reduce_sum(tf.cast(tf.convert_to_tensor(v), tf.int32)) for v in small]
    return ",".join(str(int(checksum)) for checksum in [*checksums(wide), *sums])
