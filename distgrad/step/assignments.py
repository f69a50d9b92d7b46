"""Weights that a program sets between two steps, perhaps on the root alone: by `load_weights()`, say.

In the next step a worker of which that is true tells the checksum of its weights, in the step's sum (drift.py). Where
the root tells one and the others tell another, or none, nobody applies the step: all take the root's weights, and take
it again. It costs a step nothing while nobody sets weights.
"""

from collections.abc import Sequence

import keras
import tensorflow as tf

from distgrad.keras_internals import tell_assignments


class Assignments:
    """Notes whether variables are assigned outside of a graph.

    Attributes:
        noted: True if one was, since this was last set to False.
    """

    def __init__(self, variables: Sequence[keras.Variable]) -> None:
        self.noted = False
        if tf.config.list_logical_devices("GPU"):
            return  # the values of each step would have to be waited for
        for variable in variables:
            tell_assignments(variable, self)

    def note(self) -> None:
        """Note that a variable is assigned."""
        self.noted = True
