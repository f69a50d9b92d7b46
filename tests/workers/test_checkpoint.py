"""A resumed training is bit for bit one that was never broken, on every engine; and nobody is left behind."""

import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import distgrad
from distgrad import Communicator
from distgrad.errors import BadArgument, CheckpointMismatch, HostileCheckpoint, NoCheckpointDirectory, NoValidCheckpoint
from support.checkpoints import Entry, entries_of, seal
from support.marks import usual_ones

Network = Callable[[], list[keras.layers.Layer]]
RNG = np.random.default_rng(3)
X, Y = RNG.normal(size=(42, 6)).astype("float32"), RNG.integers(0, 3, 42)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
EPOCHS, BATCHES = 3, 6


@pytest.fixture
def folder(comm: Communicator, tmp_path: Path) -> Path:
    """The root's, on every worker."""
    return Path(comm.from_root(str(tmp_path)))


def small() -> list[keras.layers.Layer]:
    return [keras.layers.Dense(4, "relu"), keras.layers.Dropout(0.5), keras.layers.Dense(3)]


def half_precision() -> list[keras.layers.Layer]:
    halves = keras.layers.Dense(8, "relu", dtype="mixed_float16")
    return [halves, keras.layers.BatchNormalization(), *small()[1:]]


def network(comm: Communicator, layers: Network = small, built: bool = True) -> keras.Model:
    keras.utils.set_random_seed(7 + comm.rank)
    tf.random.set_seed(7)  # a part of what shuffling is seeded with
    with comm.scope():
        return keras.Sequential([keras.Input((6,)), *layers()] if built else layers())


def scaled() -> keras.optimizers.Optimizer:
    """Its loss scale doubles every 4 steps."""
    adam = keras.optimizers.Adam(0.01, global_clipnorm=0.5)
    return keras.optimizers.LossScaleOptimizer(adam, initial_scale=64.0, dynamic_growth_steps=4)


def shuffled(comm: Communicator) -> tf.data.Dataset:
    return comm.shard(tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(42, seed=5).batch(7))


def state(step: distgrad.DistributedStep) -> list[np.ndarray]:
    """Everything, and what comes next of the generators of random numbers."""
    drawn = [random.Random(), np.random.RandomState()]
    drawn[0].setstate(random.getstate())
    drawn[1].set_state(np.random.get_state())
    return [*(variable.numpy() for variable in step.variables()), drawn[0].random(), drawn[1].rand()]


def same(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected) > 5
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def scramble() -> None:
    """What another process would find."""
    random.seed(99)
    np.random.seed(99)


# ---- a loop of one's own


class Loop:
    """What a script would do, until its process is gone."""

    def __init__(self, comm: Communicator, layers: Network = small, built: bool = True) -> None:
        model, optimizer = network(comm, layers, built), scaled() if layers is half_precision else "adam"
        self.step = distgrad.DistributedStep(model, LOSS, optimizer, comm=comm, micro_batch_size=2, log_every=0)
        self.data = shuffled(comm)

    def steps(self) -> Iterator[distgrad.StepReport]:
        for _ in range(self.step.epochs, EPOCHS):
            for report in self.step.epoch(self.data):
                random.random()
                np.random.rand()
                yield report


@pytest.fixture(scope="module")
def unbroken(comm: Communicator) -> list[Any]:
    loop = Loop(comm, half_precision)
    assert len(list(loop.steps())) == EPOCHS * BATCHES
    return state(loop.step)


@pytest.mark.fault(32)
@pytest.mark.parametrize(("stop", "built"), [(1, True), (6, True), (10, False)])
def test_a_loop_goes_on_bit_for_bit(
    comm: Communicator, folder: Path, unbroken: list[Any], stop: int, built: bool
) -> None:
    loop = Loop(comm, half_precision, built)
    checkpoint = distgrad.Checkpoint(folder, comm)
    assert checkpoint.resume(loop.step) == 0
    for _ in itertools.islice(loop.steps(), stop):
        checkpoint.save(loop.step)
    checkpoint.wait()
    scramble()
    again = Loop(comm, half_precision, built)
    assert distgrad.Checkpoint(folder, comm).resume(again.step) == stop
    assert [report.step for report in again.steps()] == list(range(stop + 1, EPOCHS * BATCHES + 1))
    same(state(again.step), unbroken)
    assert again.step.epochs == EPOCHS


def test_what_is_there_after_resuming(comm: Communicator, folder: Path) -> None:
    """A built model has its weights at once, and keeps what is changed before the next step."""
    loop, checkpoint = Loop(comm), distgrad.Checkpoint(folder, comm)
    next(loop.steps())
    checkpoint.save(loop.step)
    expected = state(loop.step)
    again = Loop(comm)
    checkpoint.resume(again.step)
    same(state(again.step), expected)
    again.step.optimizer.learning_rate = 0.0
    next(again.steps())
    kernels = [model.layers[0].kernel.numpy() for model in (again.step.model, loop.step.model)]
    np.testing.assert_array_equal(*kernels)
    assert checkpoint.latest == folder / "step-0000000001.npz" or not comm.is_root


def test_a_dataset_made_anew_for_each_epoch(comm: Communicator, folder: Path) -> None:
    def run(stop: int) -> distgrad.DistributedStep:
        step, checkpoint = Loop(comm).step, distgrad.Checkpoint(folder, comm)
        checkpoint.resume(step)
        for epoch in range(step.epochs, EPOCHS):
            data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(42, seed=epoch).batch(7)
            for report in step.epoch(comm.shard(data)):
                if report.step == stop:
                    checkpoint.save(step)
                    checkpoint.wait()
                    return step
        return step

    expected = state(run(0))
    run(6)
    same(state(run(0)), expected)


def test_the_last_ones_are_kept(comm: Communicator, folder: Path) -> None:
    loop, checkpoint = Loop(comm), distgrad.Checkpoint(folder, comm, keep=2)
    for _ in itertools.islice(loop.steps(), 4):
        checkpoint.save(loop.step)
    checkpoint.wait()
    comm.barrier()
    assert sorted(path.name for path in folder.iterdir()) == ["step-0000000003.npz", "step-0000000004.npz"]


# ---- fit


class Batches(keras.utils.PyDataset):
    num_batches = BATCHES

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return X[7 * index : 7 * index + 7], Y[7 * index : 7 * index + 7]


SOURCES: dict[str, tuple[Callable[[Communicator], dict[str, Any]], list[tuple[int, int | None]]]] = {
    "arrays": (lambda _: {"x": X, "y": Y, "batch_size": 7}, [(4, 1), (7, None)]),
    "arrays by batch": (lambda _: {"x": X, "y": Y, "batch_size": 7, "shuffle": "batch"}, [(9, 1)]),
    "PyDataset": (lambda _: {"x": Batches(), "shuffle": True}, [(15, 4)]),
    "dataset": (lambda comm: {"x": shuffled(comm)}, [(6, 1), (13, None)]),
    "endless dataset": (lambda comm: {"x": shuffled(comm).repeat(), "steps_per_epoch": 5}, [(9, 1)]),
    "of unknown length": (lambda comm: {"x": shuffled(comm).filter(lambda *_: True)}, [(6, 1)]),
}


class Gone(Exception):
    """The process, as far as fit can tell."""


def fit(comm: Communicator, source: str, *callbacks: Any, stop: int = 0) -> tuple[keras.Model, dict[str, list[float]]]:
    model = distgrad.distribute(network(comm, built=stop % 2 == 0), comm, micro_batch_size=2)
    model.compile("adam", LOSS, metrics=["accuracy"])

    def end(*_: Any, **__: Any) -> None:
        if stop and int(model.optimizer.iterations.numpy()) == stop:
            raise Gone

    ending = keras.callbacks.LambdaCallback(on_train_batch_end=end)
    given = {"epochs": EPOCHS, "verbose": 0, "validation_data": (X[:8], Y[:8]), **SOURCES[source][0](comm)}
    return model, model.fit(**given, callbacks=[*callbacks, ending]).history


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("source", usual_ones(SOURCES, ["arrays by batch", "PyDataset", "dataset"]))
def test_fit_goes_on_bit_for_bit(comm: Communicator, folder: Path, source: str) -> None:
    model, history = fit(comm, source)
    expected = [variable.numpy() for variable in [*model.variables, *model.optimizer.variables]]
    for stop, every in SOURCES[source][1]:
        directory = folder / str(stop)
        if comm.is_root:
            directory.mkdir()
        with pytest.raises(Gone):
            fit(comm, source, distgrad.Checkpoint(directory, comm, every=every), stop=stop)
        scramble()
        again, rest = fit(comm, source, distgrad.Checkpoint(directory, comm, every=every))
        same([variable.numpy() for variable in [*again.variables, *again.optimizer.variables]], expected)
        for name, values in rest.items():
            assert values == history[name][-len(values) :]


# ---- what it refuses, on every worker alike


@pytest.fixture(scope="module")
def two_steps(comm: Communicator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root's folder with the files of two steps."""
    folder = Path(comm.from_root(str(tmp_path_factory.mktemp("two-steps"))))
    loop, checkpoint = Loop(comm), distgrad.Checkpoint(folder, comm)
    for _ in itertools.islice(loop.steps(), 2):
        checkpoint.save(loop.step)
    checkpoint.wait()
    return folder


@pytest.fixture
def saved(comm: Communicator, folder: Path, two_steps: Path) -> distgrad.Checkpoint:
    """The checkpoints of two steps, in the test's own folder."""
    if comm.is_root:
        shutil.copytree(two_steps, folder, dirs_exist_ok=True)
    comm.barrier()
    return distgrad.Checkpoint(folder, comm)


def damage(comm: Communicator, path: Path, content: bytes) -> None:
    if comm.is_root:
        path.write_bytes(content)
    comm.barrier()


@pytest.mark.fault(29)
def test_damaged_files_give_way_to_the_one_before(
    comm: Communicator, folder: Path, saved: distgrad.Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(comm, folder / "step-0000000002.npz", b"")
    capsys.readouterr()
    assert saved.resume(Loop(comm).step) == 1
    said = "step-0000000002.npz is damaged (it is empty); step-0000000001.npz is used"
    assert capsys.readouterr().err.count(said) == comm.is_root
    damage(comm, folder / "step-0000000001.npz", b"\0" * 100)
    with pytest.raises(NoValidCheckpoint, match="step-0000000001") as caught:
        saved.resume(Loop(comm).step)
    assert (caught.value.status, caught.value.everywhere) == (74, True)


@pytest.mark.fault(31)
def test_what_would_be_unpickled_is_refused(comm: Communicator, folder: Path, saved: distgrad.Checkpoint) -> None:
    damage(comm, folder / "step-0000000002.npz", b"cos\nsystem\n(S'touch unpickled'\ntR.")
    step = Loop(comm).step
    before = state(step)
    with pytest.raises(HostileCheckpoint, match="it is a pickle") as caught:
        saved.resume(step)
    assert (caught.value.status, caught.value.everywhere) == (77, True)
    same(state(step), before)


def edit(comm: Communicator, path: Path, change: Callable[[list[Entry], dict[str, Any]], list[Entry]]) -> None:
    """Change a file's arrays and metadata, and seal it again."""
    if comm.is_root:
        (_, meta), *arrays = entries_of(path)
        fields = json.loads(meta)
        arrays = change(arrays, fields)
        seal(path, [("meta.json", json.dumps(fields).encode()), *arrays])
    comm.barrier()


@pytest.mark.fault(43)
def test_a_sealed_file_without_an_array_is_refused(
    comm: Communicator, folder: Path, saved: distgrad.Checkpoint
) -> None:
    edit(comm, folder / "step-0000000002.npz", lambda arrays, _: arrays[:2])
    step = Loop(comm).step
    before = state(step)
    with pytest.raises(
        HostileCheckpoint, match=r"its checksum holds, but the array 'variables/00002/.*' is missing"
    ) as caught:
        saved.resume(step)
    assert (caught.value.status, caught.value.everywhere) == (77, True)
    same(state(step), before)


@pytest.mark.fault(43)
@pytest.mark.parametrize("own", [[], [[1, 2, 3]], [[-1, 2**70]], [[[1], [2, 3]]], [7]])
def test_random_numbers_of_other_layers_are_refused_on_every_worker(
    comm: Communicator, folder: Path, saved: distgrad.Checkpoint, own: Any
) -> None:
    def change(arrays: list[Entry], meta: dict[str, Any]) -> list[Entry]:
        meta["random"][comm.size - comm.span]["own"] = own
        return arrays

    edit(comm, folder / "step-0000000002.npz", change)
    step = Loop(comm).step
    weights = [variable.numpy() for variable in step.variables()]
    with pytest.raises(CheckpointMismatch, match=rf"worker {comm.size - comm.span}'s layers") as caught:
        saved.resume(step)
    assert caught.value.everywhere
    same([variable.numpy() for variable in step.variables()], weights)


def test_another_kind_of_data(comm: Communicator, folder: Path) -> None:
    fit(comm, "arrays", distgrad.Checkpoint(folder, comm))
    with pytest.raises(CheckpointMismatch, match=r"data of fit.* of another kind") as caught:
        fit(comm, "dataset", distgrad.Checkpoint(folder, comm))
    assert (caught.value.status, caught.value.everywhere) == (65, True)


def test_another_model(comm: Communicator, saved: distgrad.Checkpoint) -> None:
    step = distgrad.DistributedStep(network(comm, half_precision), LOSS, "adam", comm=comm)
    with pytest.raises(CheckpointMismatch, match=r"dense.*/kernel.* \(6, 4\).*dense.*/kernel.* \(6, 8\)") as caught:
        saved.resume(step)
    assert caught.value.everywhere
    step = distgrad.DistributedStep(network(comm), LOSS, "sgd", comm=comm)
    with pytest.raises(CheckpointMismatch, match="model or optimizer"):
        saved.resume(step)


def test_what_cannot_be(comm: Communicator, folder: Path) -> None:
    with pytest.raises(NoCheckpointDirectory, match=r"mkdir -p .*missing") as caught:
        distgrad.Checkpoint(folder / "missing", comm)
    assert (caught.value.status, caught.value.everywhere) == (73, True)
    with pytest.raises(BadArgument, match="keep=0"):
        distgrad.Checkpoint(folder, comm, keep=0)
    with pytest.raises(BadArgument, match="nothing to save"):
        distgrad.Checkpoint(folder, comm).save(Loop(comm, built=False).step)
    plain = keras.Sequential([keras.layers.Dense(1)])
    plain.compile("sgd", "mse")
    with pytest.raises(BadArgument, match="not distributed"):
        plain.fit(X, X[:, :1], callbacks=[distgrad.Checkpoint(folder, comm)], verbose=0)
