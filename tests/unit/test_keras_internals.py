"""Keras's and TensorFlow's private names: each one is still there, and distgrad knows them in one place only."""

import ast
import copy
import gc
import importlib
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import distgrad
from support.versions import KERAS

DISTGRAD = Path(distgrad.__file__).parent
ROOM = DISTGRAD / "keras_internals.py"
FOREIGN = ("keras.src", "tensorflow.python")
OF_NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}
STANDARD = {"atexit", "os"}  # private names of the standard library are another matter


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[str]:
    """What a file imports of Keras's and TensorFlow's private modules, as `module.name`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(FOREIGN):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith(FOREIGN))


def private_attributes(path: Path) -> set[str]:
    """The private attributes that a file reads or sets, those of its own objects left out."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            found |= {node.attr} if owner not in {"self", "cls", *STANDARD} else set()
    return found - OF_NAMED_TUPLES


def defined(path: Path) -> set[str]:
    """The private names that a file's own classes and functions have."""
    nodes = list(ast.walk(tree(path)))
    names = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    own = {"self", "cls"}
    set_here = [n for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)]
    return names | {node.attr for node in set_here if isinstance(node.value, ast.Name) and node.value.id in own}


# ---- each name is there


def imported() -> dict[str, str]:
    """The private things that the room imports, and what it uses of the modules among them."""
    paths = {path.rpartition(".")[2]: path for path in imports(ROOM)}
    nodes = [node for node in ast.walk(tree(ROOM)) if isinstance(node, ast.Attribute)]
    used = [(node.value.id, node.attr) for node in nodes if isinstance(node.value, ast.Name)]
    of_modules = {f"{owner}.{name}": f"{paths[owner]}.{name}" for owner, name in used if owner in paths}
    return paths | {name: path for name, path in of_modules.items() if not name.endswith(".__new__")}


@pytest.mark.parametrize("name", imported())
def test_a_private_name_can_be_imported(name: str) -> None:
    module, _, attribute = imported()[name].rpartition(".")
    try:
        importlib.import_module(f"{module}.{attribute}")
    except ImportError:
        assert hasattr(importlib.import_module(module), attribute), f"{module} has no {attribute} any more"


def compiled() -> keras.Model:
    inputs = keras.Input((2,))
    model = keras.Model(inputs, [keras.layers.Dense(1, name=name)(inputs) for name in "ab"])
    model.compile("sgd", ["mse", "mae"], run_eagerly=True)
    model.train_on_batch(np.ones((2, 2)), [np.ones((2, 1))] * 2)
    return model


def shuffle() -> tf.data.Dataset:
    return tf.data.Dataset.range(3).shuffle(3, seed=5)


def adapter() -> Any:
    adapters = importlib.import_module("keras.src.trainers.data_adapters")
    return adapters.get_data_adapter(np.ones((3, 2)), np.ones(3))


def excluding() -> keras.optimizers.Optimizer:
    optimizer = keras.optimizers.AdamW()
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


def saving() -> list[Callable[[], Any]]:
    return [lambda: keras.callbacks.ModelCheckpoint("a.keras"), lambda: keras.callbacks.BackupAndRestore("a")]


# Read or set in other ways than as attributes.
SET_BY_NAME = ("_all_reduce_sum_gradients", "_fn", "_keras_mask")
OWNERS: dict[str, list[Callable[[], Any]]] = {
    "_all_reduce_sum_gradients": [keras.optimizers.SGD],
    "_batches_seen_since_last_saving": saving(),
    "_compile_loss": [compiled],
    "_direct_assign": [lambda: keras.Variable(1.0)],
    "_distribute_strategy": [compiled],
    "_exclude_from_weight_decay_cache": [excluding],
    "_flat_losses": [lambda: compiled()._compile_loss] if KERAS >= (3, 7) else [],
    "_flatten_layers": [compiled],
    "_fn": [keras.metrics.MeanSquaredError],
    "_initial_epoch": [compiled],
    "_inputs": [adapter, shuffle],
    "_iterations": [keras.optimizers.SGD],
    "_keras_mask": [lambda: keras.layers.Embedding(3, 1, mask_zero=True)(np.ones((2, 2)))],
    "_last_batch_seen": saving(),
    "_learning_rate": [keras.optimizers.SGD],
    "_loss_tracker": [compiled],
    "_maybe_symbolic_build": [compiled],
    "_metrics": [lambda: compiled()._compile_loss],
    "_moments": [keras.layers.BatchNormalization],
    "_seed": [shuffle],
    "_seed2": [shuffle],
    "_tracker": [keras.optimizers.SGD],
    "_trainable_variables": [lambda: compiled().optimizer],
    "_trainable_variables_indices": [keras.optimizers.SGD],
    "_use_weight_decay": [keras.optimizers.SGD],
    "_value": [lambda: keras.Variable(1.0)],
    "_var_key": [keras.optimizers.SGD],
    "_variables": [keras.optimizers.SGD],
}


@pytest.mark.parametrize("name", OWNERS)
def test_a_private_attribute_is_there(name: str) -> None:
    for make in OWNERS[name]:
        owner = make()
        assert hasattr(owner, name), f"{type(owner).__module__}.{type(owner).__name__} has no {name} any more"


def test_all_of_them_are_tried() -> None:
    assert private_attributes(ROOM) | {*SET_BY_NAME} == set(OWNERS)


# ---- they mean what they are taken for


@pytest.fixture
def internals() -> Any:
    """The room, which is not imported above: where a name is gone, it cannot be, and the tests above say which."""
    return importlib.import_module("distgrad.keras_internals")


def test_layers_and_their_states(internals: Any) -> None:
    inner = keras.layers.Dropout(0.5)
    model = keras.Sequential([keras.Input((1,)), keras.Sequential([inner])])
    assert inner in internals.flat_layers(model)
    assert internals.is_of_keras(inner)
    assert not internals.is_of_keras(type("Own", (keras.layers.Layer,), {})())
    assert [internals.is_random_state(variable) for variable in model.variables] == [True]
    embedding = keras.layers.Embedding(3, 1, mask_zero=True)
    assert internals.keras_mask(embedding(np.array([[0, 1]]))).numpy().tolist() == [[False, True]]
    assert internals.keras_mask(tf.zeros(3)) is None


def test_a_layer_asks_for_its_moments(internals: Any) -> None:
    layer = keras.layers.BatchNormalization()
    asked = []

    def moments(inputs: tf.Tensor, mask: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        asked.append(inputs.shape)
        return internals.own_moments(layer)(inputs, mask)

    internals.replace_moments(layer, moments)
    x = np.arange(6, dtype="float32").reshape(3, 2)
    expected = keras.layers.BatchNormalization()(x, training=True)
    np.testing.assert_array_equal(layer(x, training=True), expected)
    assert asked == [(3, 2)]


def test_assignments_are_told_to_whoever_still_listens(internals: Any) -> None:
    told: list[str] = []

    class Listens:
        def __init__(self, name: str) -> None:
            self.name = name

        def note(self) -> None:
            told.append(self.name)

    layer = keras.layers.Dense(1)
    layer.build((None, 2))
    one, other = Listens("one"), Listens("other")
    for listener in (one, other, one):
        internals.tell_assignments(layer.kernel, listener)
    layer.kernel.assign(np.ones((2, 1)))
    assert sorted(told) == ["one", "other"]
    tf.function(lambda: layer.kernel.assign(np.zeros((2, 1))))()
    assert sorted(told) == ["one", "other"]
    assert float(tf.reduce_sum(layer.kernel.value)) == 0.0
    del other, listener
    gc.collect()
    alike = copy.deepcopy(layer)
    alike.kernel.assign(np.ones((2, 1)))
    assert sorted(told) == ["one", "other"]
    layer.kernel.assign(np.ones((2, 1)))
    assert sorted(told) == ["one", "one", "other"]


def test_losses_are_matched_with_their_outputs(internals: Any) -> None:
    loss = internals.compile_loss(compiled())
    y, y_pred = [np.ones((2, 1)), np.zeros((2, 1))], [np.full((2, 1), 2.0), np.full((2, 1), 3.0)]
    before = [metric.result().numpy() for metric in loss.metrics]
    found = internals.matched_losses(loss, y, y_pred, None)
    assert [float(match.y_pred[0, 0]) for match in found] == [2.0, 3.0]
    assert [float(match.y_true[0, 0]) for match in found] == [1.0, 0.0]
    assert [match.factor for match in found] == [1.0, 1.0]
    assert [match.loss for match in found] == [one for one, _ in internals.weighted_losses(loss)]
    assert [metric.result().numpy() for metric in loss.metrics] == before


def test_a_fit_begins_at_its_initial_epoch(internals: Any) -> None:

    class Later(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
            assert internals.initial_epoch(self.model) == 0
            internals.set_initial_epoch(self.model, 1)

    given = {"epochs": 3, "callbacks": [Later()], "verbose": 0}
    assert compiled().fit(np.ones((2, 2)), [np.ones((2, 1))] * 2, **given).epoch == [1, 2]


def test_random_numbers_without_a_seed(internals: Any) -> None:
    generator, other = keras.random.SeedGenerator(3), keras.random.SeedGenerator(3)
    internals.set_global_seed_generator(generator)
    assert internals.global_seed_generator() is generator
    np.testing.assert_array_equal(keras.random.uniform((3,)), keras.random.uniform((3,), seed=other))


@pytest.mark.parametrize("kind", ["dense", "ragged", "sparse"])
def test_rows_are_gathered_from_any_array(internals: Any, kind: str) -> None:
    dense = np.array([[1, 2], [3, 0], [5, 0]])
    forms = {"dense": dense, "ragged": tf.ragged.constant([[1, 2], [3], [5]]), "sparse": tf.sparse.from_dense(dense)}
    x = forms[kind]
    arrays = internals.arrays_to_gather(internals.data_adapter({"x": x, "y": np.arange(3.0)}))
    found, y = internals.gather_rows(arrays, tf.constant([2, 0]))
    to_dense = {"dense": np.asarray, "ragged": lambda rows: rows.to_tensor(), "sparse": tf.sparse.to_dense}
    np.testing.assert_array_equal(to_dense[kind](found), dense[[2, 0]])
    assert y.numpy().tolist() == [2.0, 0.0]
    assert internals.are_arrays((x, None))
    assert not internals.are_arrays(iter([x]))


def test_shuffles_are_found_and_iterators_counted(internals: Any) -> None:
    dataset = internals.CountedDataset(shuffle(), batches=7)
    (inner,) = internals.inputs_of(dataset)
    assert internals.is_shuffle(inner)
    assert not internals.is_shuffle(dataset)
    assert internals.seeds_of_shuffle(inner)[1] == 5
    assert sorted(number.numpy() for number in dataset) == [0, 1, 2]
    iter(dataset)
    assert dataset.iterators == 2
    assert (len(dataset), dataset.element_spec.dtype) == (7, tf.int64)
    assert internals.CountedDataset(shuffle(), None).cardinality() == tf.data.UNKNOWN_CARDINALITY


def test_an_optimizer_of_slices(internals: Any) -> None:
    optimizer, variables = excluding(), [keras.Variable(np.ones(3), name=name) for name in ("kernel", "bias")]
    optimizer.build(variables)
    twin = internals.optimizer_of_slices(optimizer)
    assert not twin.built
    assert twin.variables == [optimizer.iterations, optimizer.learning_rate]
    assert [internals.decays(twin, variable) for variable in variables] == [True, False]
    part = keras.Variable(np.ones(2), name="kernel")
    twin.build([part])
    internals.set_decays(twin, part, False)
    assert not internals.decays(twin, part)
    twin.apply([np.zeros(2)], [part])
    assert part.numpy().tolist() == [1, 1]
    assert int(optimizer.iterations.numpy()) == 1
    assert {name: len(slots) for name, slots in internals.optimizer_slots(twin).items()} == {
        "_momentums": 1,
        "_velocities": 1,
    }
    assert len(optimizer.variables) == 6
    states = list(map(weakref.ref, optimizer.variables[2:]))
    internals.forget_variables(optimizer)
    gc.collect()
    assert [state() for state in states] == [None] * 4
    optimizer.build(variables[:1])
    assert len(optimizer.variables) == 4


def test_what_else_optimizers_have(internals: Any) -> None:
    rated = keras.optimizers.Adam(lambda: 0.5, beta_1=0.7)
    config = internals.config_with_rate(rated, 0.25)
    assert (config["learning_rate"], config["beta_1"], float(rated.learning_rate)) == (0.25, 0.7, 0.5)
    nadam = keras.optimizers.Nadam()
    nadam.build([keras.Variable(np.ones(2))])
    assert list(internals.optimizer_scalars(nadam)) == ["_u_product"]
    scaling = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    internals.build_scaling(scaling)
    assert (scaling.built, scaling.inner_optimizer.built, int(scaling.step_counter.numpy())) == (True, False, 0)
    assert internals.holds_optimizers(scaling)
    assert not internals.holds_optimizers(nadam)
    own = type("Own", (keras.optimizers.SGD,), {"update_step": lambda *_: None, "more": 3})
    assert internals.replaced_methods(own()) == {"update_step"}
    assert not internals.replaced_methods(nadam)
    nadam.apply = print
    assert internals.replaced_methods(nadam) == {"apply"}


def test_callbacks_that_save_every_so_many_batches(internals: Any, tmp_path: Path) -> None:
    callback = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}-{batch}.keras", save_freq=3)
    foretold = []

    class Foretelling(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            foretold.append(internals.saves_after(callback, batch))

    model = compiled()
    how = {"batch_size": 1, "epochs": 2, "verbose": 0, "callbacks": [Foretelling(), callback]}
    model.fit(np.ones((4, 2)), [np.ones((4, 1))] * 2, **how)
    assert foretold == [False, False, True, False, False, True, False, False]
    assert len(list(tmp_path.iterdir())) == 2
    assert not internals.saves_after(keras.callbacks.ModelCheckpoint(tmp_path / "a.keras"), 9)


# ---- and nobody else knows them


def test_no_other_file_knows_a_private_name() -> None:
    others = sorted(path for path in DISTGRAD.rglob("*.py") if path != ROOM)
    own = set().union(*map(defined, others))
    for path in others:
        assert not list(imports(path)), path
        assert not private_attributes(path) & set(OWNERS), path
        assert private_attributes(path) <= own, f"{path} reads what distgrad has not made"
