"""The start of a step or an evaluation: before anything is summed, all workers must mean the same thing."""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import keras
import tensorflow as tf

from distgrad.collectives import agreement
from distgrad.collectives.communicator import Communicator
from distgrad.data.batch import row_count, spec_with_any_rows, spec_with_some_rows
from distgrad.errors import BadArgument, UnsupportedModel, VersionMismatch
from distgrad.keras_internals import flat_layers
from distgrad.objective.forward import built_in_rows, call_as_keras_does
from distgrad.objective.trace import trace


def build_model(comm: Communicator, model: keras.Model, x: Any) -> None:
    """Build what is not built yet of the model, for inputs like `x` (b, ...). Every worker calls it.

    As Keras does, on symbolic tensors: no row passes through the model, and nothing in it counts one.
    """
    if not all(layer.built for layer in flat_layers(model)):
        specs = tf.nest.map_structure(spec_with_any_rows, x)
        with comm.scope():
            trace(lambda x: call_as_keras_does(model, x, training=False), specs)


def begin(comm: Communicator) -> None:
    """Let workers know one another before the first step or evaluation. Every worker calls it.

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


def require_same_settings(comm: Communicator, settings: Sequence[str]) -> None:
    """Check that all workers have the same settings, each as "name=value", and the same versions of the libraries.

    Raises:
        SettingsMismatch, VersionMismatch: they have not.
    """
    agreement.require_same_settings(comm, settings)
    versions = [f"tensorflow={tf.__version__}", f"keras={keras.__version__}", f"distgrad={version('distgrad')}"]
    agreement.require_same(comm, versions, "version", VersionMismatch)


def compile_for_any_rows(
    run: Callable[..., Any], model: keras.Model, batch: tuple[Any, ...], *others: tf.TensorSpec
) -> tuple[Any, Any]:
    """Compile a step or an evaluation, `run(batch, *others)`, and trace it.

    Returns:
        (the compiled function, its first trace). That takes any number of rows, so that a short last batch needs no
        second one, unless the model is built for a certain number.
    """
    compiled = tf.function(run, reduce_retracing=True, autograph=False)
    return compiled, compiled.get_concrete_function(batch_specs(model, batch), *others)


def batch_specs(model: keras.Model, batch: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the types of batches like one: with any number of rows, or with that which the model is built for."""
    spec = spec_with_any_rows if built_in_rows(model) is None else spec_with_some_rows
    return tuple(tf.nest.map_structure(spec, batch))


def require_built_in_rows(
    comm: Communicator, model: keras.Model, batch: tuple[Any, ...], micro_batch_size: int | None
) -> None:
    """Check that a model which is built for a certain number of rows gets it. Every worker calls it.

    Raises:
        UnsupportedModel: a worker's share, or a micro-batch, has another number of rows.
    """
    expected = built_in_rows(model)
    if expected is None:
        return
    rows = [int(text) for text in comm.exchange(str(int(row_count(batch)))).values()]
    if micro_batch_size not in (None, expected) or any(count != expected * comm.span for count in rows):
        cut = f"shares of {rows} rows" if micro_batch_size is None else f"micro-batches of {micro_batch_size}"
        raise UnsupportedModel(
            f"model {model.name!r} is built for batches of {expected} rows, and cannot take {cut}",
            f"leave micro_batch_size out, and let a global batch have {expected * comm.size} rows, {expected} a worker",
            everywhere=True,
        )
