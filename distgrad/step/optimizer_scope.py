"""The optimizer under tf.distribute: it belongs to the scope it was created in, as variables do."""

import keras
import tensorflow as tf

from distgrad.collectives.communicator import Communicator
from distgrad.errors import BadArgument


def optimizer_in_scope(
    comm: Communicator, optimizer: keras.optimizers.Optimizer, model: keras.Model
) -> keras.optimizers.Optimizer:
    """Return the optimizer to use for a model: under tf.distribute one that was created in `comm.scope()`.

    An optimizer from elsewhere is created again in the scope. Engines without a scope take any optimizer as it is.

    Raises:
        BadArgument: the model was built elsewhere, or the optimizer was and has state that a new one would lack.
    """
    if comm.backend != "tf":
        return optimizer
    elsewhere = [variable.path for variable in model.variables if not _is_distributed(variable)]
    if elsewhere or (optimizer.built and not _is_distributed(optimizer.iterations)):
        culprit = f"variable {elsewhere[0]}" if elsewhere else f"optimizer {optimizer.name}"
        raise BadArgument(
            f"{culprit} was built outside comm.scope()",
            "build the model, and compile it if you do, inside `with comm.scope():`",
            everywhere=True,
        )
    if _is_distributed(optimizer.iterations):
        return optimizer
    with comm.scope():
        return type(optimizer).from_config(optimizer.get_config())


def _is_distributed(variable: keras.Variable) -> bool:
    return isinstance(variable.value, tf.distribute.DistributedValues)
