"""Sparse variables: large ones of which a batch looks up a few rows."""

from collections.abc import Sequence

import keras

from distgrad.gradients.flat_vector import LARGE, FlatLayout
from distgrad.gradients.micro_batch import is_regularized
from distgrad.keras_internals import flat_layers, is_of_keras


def may_be_sparse(model: keras.Model, variables: Sequence[keras.Variable]) -> list[int]:
    """Return the numbers of the variables that may be sparse; a trace of the gradients tells if they are.

    They are large, not regularized, and not of a layer of Keras's own that looks no rows up.
    """
    layers = [layer for layer in flat_layers(model) if is_of_keras(layer) and flat_layers(layer) == [layer]]
    others = [layer for layer in layers if not isinstance(layer, keras.layers.Embedding)]
    dense = {id(variable) for layer in others for variable in layer.trainable_variables}
    dense |= {id(variable) for variable in variables if is_regularized(variable)}
    sizes = zip(variables, FlatLayout(variables).sizes, strict=True)
    return [i for i, (variable, size) in enumerate(sizes) if size >= LARGE and id(variable) not in dense]
