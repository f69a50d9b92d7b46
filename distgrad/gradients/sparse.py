"""Tables: large variables of which a batch looks up a few rows."""

from collections.abc import Sequence

import keras

from distgrad.gradients.flat_vector import LARGE, Layout
from distgrad.keras_internals import flat_layers, is_layer_of_keras


def tables_of(model: keras.Model, variables: Sequence[keras.Variable]) -> list[int]:
    """Which variables may be tables, by number; whether they are, a trace tells.

    They are large, not regularised, and not of a layer of Keras's own that looks no rows up.
    """
    layers = [layer for layer in flat_layers(model) if is_layer_of_keras(layer) and flat_layers(layer) == [layer]]
    others = [layer for layer in layers if not isinstance(layer, keras.layers.Embedding)]
    dense = {id(variable) for layer in others for variable in layer.trainable_variables}
    dense |= {id(variable) for variable in variables if variable.regularizer is not None}
    sizes = zip(variables, Layout(variables).sizes, strict=True)
    return [i for i, (variable, size) in enumerate(sizes) if size >= LARGE and id(variable) not in dense]
