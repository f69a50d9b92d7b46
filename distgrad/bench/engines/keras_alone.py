"""Keras's own fit in one process that has all cores: what a user has without distgrad."""

import tensorflow as tf

from distgrad.bench.engines import keras_fit
from distgrad.bench.worker import Prepared


class KerasAlone:
    """The one rank of the job."""

    rank, size = 0, 1

    def barrier(self) -> None:
        """Wait for nobody."""

    def prepare(self, table: str, turn: str, case: str) -> Prepared:
        return keras_fit.on_arrays(case, turn)

    def clear(self) -> None:
        tf.keras.backend.clear_session()


join = KerasAlone
