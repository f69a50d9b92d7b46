"""The start of a step or an evaluation: before anything is summed, all workers must mean the same thing."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import keras
import tensorflow as tf

from distgrad.collectives import agreement
from distgrad.collectives.communicator import Communicator
from distgrad.data.batch import one_row_like, spec_with_any_rows
from distgrad.errors import BadArgument, VersionMismatch


def build_model(comm: Communicator, model: keras.Model, x: Any) -> None:
    """Build the model on one row of zeros like `x` (b, ...), if it is not built yet. Every worker calls it.

    Raises:
        BadArgument: it is called within the communicator's scope.
    """
    # Keras's optimizers and TensorFlow's tapes find no replica there.
    if tf.distribute.in_cross_replica_context():
        raise BadArgument(
            "a step, a fit or an evaluate within comm.scope()",
            "build the model in there, and call them outside of it",
            everywhere=True,
        )
    comm.liveness.introduce()
    if not model.built:
        with comm.scope():
            model(one_row_like(x))


def require_same_settings(comm: Communicator, settings: Sequence[str]) -> None:
    """Check that all workers have the same settings, each as "name=value", and the same versions of the libraries.

    Raises:
        SettingsMismatch, VersionMismatch: they have not.
    """
    agreement.require_same_settings(comm, settings)
    versions = [f"tensorflow={tf.__version__}", f"keras={keras.__version__}", f"distgrad={version('distgrad')}"]
    agreement.require_same(comm, versions, "version", VersionMismatch)


def compile_for_any_rows(run: Callable[..., Any], batch: tuple[Any, ...], flags: tf.TensorSpec) -> tuple[Any, Any]:
    """Compile a step or an evaluation, `run(batch, flags)`, and trace it.

    Returns:
        (the compiled function, its first trace). That takes any number of rows, so that a short last batch needs no
        second one.
    """
    compiled = tf.function(run, reduce_retracing=True, autograph=False)
    return compiled, compiled.get_concrete_function(tf.nest.map_structure(spec_with_any_rows, batch), flags)
