"""The sharded update gives what the unsharded one gives: weights, state, reports, checkpoints, what callbacks see."""

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import optimizers

import distgrad
from distgrad import Communicator, DistributedStep
from distgrad.errors import BadArgument, Drifted, SettingsMismatch
from distgrad.step import sharding
from support.marks import usual_ones
from support.steps import COLLECTIVES, no_flags

ROWS, STEPS = 8, 6
SAID = "each worker updates its own slice of the weights"
by_slices = pytest.mark.usefixtures("slices")


@pytest.fixture
def slices(comm: Communicator) -> None:
    if comm.window is None or comm.window.slices is None:
        pytest.skip("needs workers that share memory")


class Normalized(optimizers.SGD):
    """A rule of a user's own, which looks at a whole variable."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        super().update_step(gradient / (1e-6 + tf.norm(gradient)), variable, learning_rate)


class Halved(optimizers.SGD):
    """A rule of a user's own, which may look at all gradients."""

    def apply_gradients(self, pairs: Any) -> Any:
        return super().apply_gradients([(gradient / 2, variable) for gradient, variable in pairs])


def without_biases() -> optimizers.Optimizer:
    adam = optimizers.AdamW(0.01, weight_decay=0.1)
    adam.exclude_from_weight_decay(var_names=["bias"])
    return adam


def with_average() -> optimizers.Optimizer:
    return optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3)


def scaled() -> optimizers.Optimizer:
    return optimizers.LossScaleOptimizer(optimizers.Adam(0.01), initial_scale=64.0, dynamic_growth_steps=3)


PLAIN = ("SGD", "Adam", "AdamW", "Nadam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Ftrl", "Lion", "Lamb", "Muon")
NAMED = (*PLAIN, "Adafactor", "ScheduleFreeAdamW")  # of which older releases of Keras lack some
OPTIMIZERS: dict[str, Callable[[], optimizers.Optimizer]] = {
    **{name: getattr(optimizers, name) for name in NAMED if hasattr(optimizers, name)},
    "momentum": lambda: optimizers.SGD(0.01, momentum=0.9, nesterov=True),
    "amsgrad": lambda: optimizers.Adam(amsgrad=True),
    "centered": lambda: optimizers.RMSprop(centered=True, momentum=0.5),
    "schedule": lambda: optimizers.Adam(optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)),
    "function": lambda: optimizers.Adam(lambda: 0.01),
    "clipnorm": lambda: optimizers.Adam(clipnorm=0.01),
    "clipvalue": lambda: optimizers.Adam(clipvalue=0.001),
    "global_clipnorm": lambda: optimizers.Adam(global_clipnorm=0.01),
    "accumulated": lambda: optimizers.Adam(gradient_accumulation_steps=3),
    "static scale": lambda: optimizers.Adam(loss_scale_factor=8.0),
    "dynamic scale": scaled,
    "average": with_average,
    "excluded": without_biases,
    "own rule": lambda: Normalized(0.01),
}
EVERYWHERE = pytest.param("Nadam", marks=[pytest.mark.every_engine, pytest.mark.between_hosts])


def model(comm: Communicator, dtype: str | None = None) -> keras.Model:
    """Regularized, constrained, and with entries enough for several slices."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(3 + comm.rank)
    tokens = keras.Input((3,), dtype="int32")
    x = keras.layers.Flatten()(keras.layers.Embedding(40, 5, dtype=dtype)(tokens))
    x = keras.layers.Dense(33, "tanh", kernel_regularizer="l2", dtype=dtype)(x)
    x = keras.layers.Dense(70, "relu", kernel_constraint="max_norm", dtype=dtype)(x)
    return keras.Model(tokens, keras.layers.Dense(3, dtype="float32")(x))


def small(comm: Communicator, _: str | None = None) -> keras.Model:
    keras.utils.clear_session()
    keras.utils.set_random_seed(3 + comm.rank)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(70, "tanh"), keras.layers.Dense(3)])


def rows_of(comm: Communicator, step: int) -> tuple[np.ndarray, np.ndarray]:
    """This worker's rows; in the third step the root's make NaN."""
    rng = np.random.default_rng([comm.rank, step])
    y = rng.normal(size=(ROWS, 3)).astype("float32")
    y[0, 0] = np.nan if step == 2 and comm.is_root else y[0, 0]
    return rng.integers(0, 40, (ROWS, 3)), y


class Trained:
    """A training of a few steps.

    Args:
        optimizer: makes one.
        shard: what is given as `shard_update`.
        build: makes a model of a dtype.
    """

    def __init__(
        self,
        comm: Communicator,
        optimizer: Callable[[], Any],
        shard: Any,
        dtype: str | None = None,
        build: Callable[..., keras.Model] = model,
    ) -> None:
        self.comm, self.model, self.optimizer = comm, build(comm, dtype), optimizer()
        how = {"comm": comm, "log_every": 0, "check_every": 2, "statistics": ["updates"]}
        self.step = DistributedStep(self.model, "mse", self.optimizer, **how, micro_batch_size=3, shard_update=shard)
        self.told: list[Any] = []

    def take(self, steps: range = range(STEPS)) -> "Trained":
        for number in steps:
            if number == 4:  # all workers alike
                self.model.set_weights([value * 0.5 for value in self.model.get_weights()])
            report = self.step(*rows_of(self.comm, number))
            updated = report.updates.by_variable if report.updates else {}
            told = [report.loss, report.gradient_sum, report.gradient_norm, *updated.values()]
            self.told.append(told if report.applied else None)
        return self

    def state(self) -> list[np.ndarray]:
        """The weights on every worker, and on the root all of the optimizer's state."""
        self.step.gather_optimizer()
        variables = [*self.model.variables, *(self.optimizer.variables if self.comm.is_root else [])]
        return [variable.numpy() for variable in variables]


def same(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float = 0) -> None:
    assert len(found) == len(expected) > 3
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@by_slices
@pytest.mark.parametrize("name", [EVERYWHERE, *usual_ones([name for name in OPTIMIZERS if name != "Nadam"], ["Lamb"])])
def test_it_gives_the_same_bits(comm: Communicator, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Trained(comm, OPTIMIZERS[name], False).take()
    assert SAID not in capsys.readouterr().err
    sharded = Trained(comm, OPTIMIZERS[name], True).take()
    assert (SAID in capsys.readouterr().err) == comm.is_root
    # Where the global norm is clipped, it is that of the report, and not Keras's sum of sums.
    same(sharded.state(), whole.state(), 1e-6 if name == "global_clipnorm" else 0)
    assert sharded.step.steps == STEPS
    assert [told is None for told in whole.told] == [number == 2 for number in range(STEPS)]
    told = [[one for report in trained.told if report for one in report] for trained in (sharded, whole)]
    assert told[0] == pytest.approx(told[1], rel=1e-5, nan_ok=True)
    if comm.is_root:
        paths = [[re.sub(r"_\d+", "", v.path) for v in one.optimizer.variables] for one in (sharded, whole)]
        assert paths[0] == paths[1]


@by_slices
@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float64", "float16"])
def test_other_dtypes(comm: Communicator, dtype: str) -> None:
    optimizer = scaled if dtype == "mixed_float16" else with_average
    whole, sharded = (Trained(comm, optimizer, shard, dtype).take() for shard in (False, True))
    same(sharded.state(), whole.state())


@by_slices
def test_a_worker_has_its_share_of_the_state_and_a_step_one_sum_and_one_publication(comm: Communicator) -> None:
    big = keras.Sequential([keras.Input((64,)), keras.layers.Dense(500), keras.layers.Dense(3)])
    adam = optimizers.Adam()
    step = DistributedStep(big, "mse", adam, comm=comm, log_every=0, shard_update=True)
    batch = np.ones((4, 64), "float32"), np.ones((4, 3), "float32")
    before = bytes_of_variables()
    step(*batch)
    step.gather_optimizer()
    assert len(adam.variables) == (2 + 2 * 4 if comm.is_root else 2)
    step(*batch)
    weights = sum(v.numpy().nbytes for v in big.trainable_variables)
    # Two moments and the weights that they move, of a slice; and a few numbers.
    assert bytes_of_variables() - before <= 3 * 1.05 * weights / comm.size
    assert len(adam.variables) == 2
    graph = step.compiled.get_concrete_function(tuple(map(tf.constant, batch)), *no_flags(comm)).graph.as_graph_def()
    ops = [node.op for each in [graph, *graph.library.function] for node in getattr(each, "node_def", graph.node)]
    assert sorted(op for op in ops if op in {*COLLECTIVES, "DistgradPublish"}) == ["DistgradPublish", "DistgradSum"]


def bytes_of_variables() -> int:
    gc.collect()
    alive = [one for one in gc.get_objects() if isinstance(one, keras.Variable)]
    return sum(int(np.prod(one.shape)) * tf.as_dtype(one.dtype).size for one in alive)


@by_slices
def test_it_says_why_it_is_not_done(comm: Communicator, capsys: pytest.CaptureFixture[str]) -> None:
    reasons = {
        Halved: "Halved.apply_gradients may look at all gradients together",
        lambda: optimizers.Adam(global_clipnorm=1.0, gradient_accumulation_steps=2): "is known to no worker",
    }
    for optimizer, reason in reasons.items():
        for wish in (True, "auto"):
            small_step(comm, wish, optimizer())
            lines = [line for line in capsys.readouterr().err.splitlines() if "not sharded" in line]
            assert [reason in line for line in lines] == ([True] if wish is True and comm.is_root else [])


@pytest.mark.every_world
def test_an_engine_without_it_refuses(comm: Communicator) -> None:
    if comm.window is None:
        with pytest.raises(BadArgument, match=f"shard_update=True on {comm.backend}, whose workers share no memory"):
            small_step(comm, True)
    else:
        small_step(comm, True)
    small_step(comm, "auto")


def small_step(comm: Communicator, wish: Any, optimizer: Any = "adam") -> None:
    with comm.scope():
        line = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    DistributedStep(line, "mse", optimizer, comm=comm, log_every=0, shard_update=wish)(np.ones((4, 2)), np.ones((4, 1)))


def test_wishes(comm: Communicator) -> None:
    with pytest.raises(BadArgument, match="""shard_update='yes'; give True, False or "auto\""""):
        DistributedStep(model(comm), "mse", "sgd", comm=comm, shard_update="yes")


@pytest.mark.thorough
@pytest.mark.usefixtures("several_processes")
def test_workers_wish_the_same(comm: Communicator) -> None:
    with pytest.raises(SettingsMismatch, match="shard_update"):
        Trained(comm, optimizers.Adam, comm.is_root).take(range(1))


@by_slices
@pytest.mark.thorough
@pytest.mark.usefixtures("several_processes")
def test_weights_that_differ_are_noticed(comm: Communicator) -> None:
    trained = Trained(comm, optimizers.Adam, True).take(range(3))
    if comm.rank == comm.size - 1:  # of two, the first is taken to be right
        trained.model.trainable_variables[2].assign_add(np.ones(33, "float32"))
    with pytest.raises(Drifted, match=f"variable dense/bias on rank {comm.size - 1}"):
        trained.take(range(3, 4))


@by_slices
def test_a_checkpoint_goes_on_with_and_without_it(comm: Communicator, tmp_path: Path) -> None:
    folder = Path(comm.from_root(str(tmp_path)))
    unbroken = Trained(comm, scaled, False, build=small).take()
    steps = [range(3), range(3, 5), range(5, STEPS)]
    for wish, some in zip((True, False, True), steps, strict=True):
        trained = Trained(comm, scaled, wish, build=small)
        checkpoint = distgrad.Checkpoint(folder, comm)
        assert checkpoint.resume(trained.step) == some.start
        trained.take(some)
        checkpoint.save(trained.step)
        checkpoint.wait()
    same(trained.state(), unbroken.state())


# ---- fit


def fitted(comm: Communicator, wish: Any, folder: Path, optimizer: Any, callbacks: list[Any]) -> keras.Model:
    trained = distgrad.distribute(small(comm), comm, shard_update=wish)
    trained.compile(optimizer, "mse")
    rng = np.random.default_rng(1)
    x, y = (rng.normal(size=(24, 3)).astype("float32") for _ in range(2))
    saving = keras.callbacks.ModelCheckpoint(folder / f"{wish}-{{epoch}}.keras")
    often = keras.callbacks.ModelCheckpoint(folder / f"{wish}-{{epoch}}-{{batch}}.keras", save_freq=4)
    how = {"batch_size": 8, "shuffle": False, "verbose": 0, "validation_data": (x, y)}
    for epochs in (2, 1):
        trained.fit(x, y, epochs=epochs, callbacks=[*callbacks, saving, often], **how)
    return trained


@by_slices
@pytest.mark.parametrize("kind", usual_ones(["averages", "moments"], ["averages"]))
def test_what_callbacks_save_and_fit_leaves(comm: Communicator, tmp_path: Path, kind: str) -> None:
    models = {}
    for wish in (False, True):
        callbacks = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)] if kind == "averages" else []
        optimizer = optimizers.Adam(0.01, use_ema=kind == "averages")
        models[wish] = fitted(comm, wish, tmp_path, optimizer, callbacks)
    files = sorted(path.name.removeprefix("True-") for path in tmp_path.glob("True-*.keras"))
    assert len(files) == (4 if comm.is_root else 0)
    for pair in [models, *({wish: load(tmp_path / f"{wish}-{name}") for wish in (False, True)} for name in files)]:
        found, expected = (
            [*one.get_weights(), *(v.numpy() for v in one.optimizer.variables if comm.is_root)]
            for one in (pair[True], pair[False])
        )
        same(found, expected)


def load(path: Path) -> keras.Model:
    return keras.models.load_model(path)


def wide() -> keras.Model:
    return keras.Sequential([keras.Input((800,)), keras.layers.Dense(700, kernel_initializer="zeros")])


WIDE = np.ones((4, 800), "float32"), np.ones((4, 700), "float32")


@by_slices
@pytest.mark.usefixtures("several_processes")
@pytest.mark.parametrize(
    ("optimizer", "pays", "is_sharded", "variables"),
    [("adam", 1 << 17, True, 2), ("adam", 1 << 20, False, 2 + 2 * 2), ("sgd", 1 << 17, False, 2)],
)
def test_it_is_done_by_itself_where_it_pays(
    comm: Communicator,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
    pays: int,
    is_sharded: bool,
    variables: int,
) -> None:
    monkeypatch.setattr(sharding, "PAYS", pays)
    step = DistributedStep(wide(), "mse", optimizer, comm=comm, log_every=0)
    step(*WIDE)
    said = SAID in capsys.readouterr().err
    assert (said, len(step.optimizer.variables)) == (is_sharded and comm.is_root, variables)


@by_slices
@pytest.mark.thorough
def test_after_a_batch_the_root_has_the_state(comm: Communicator) -> None:
    for wish in (True, "auto"):
        trained = distgrad.distribute(wide(), comm, shard_update=wish)
        trained.compile("adam", "mse")
        trained.train_on_batch(*WIDE)
        assert len(trained.optimizer.variables) == (2 + 2 * 2 if comm.is_root or wish == "auto" else 2)
        assert not comm.is_root or trained.optimizer.variables[2].numpy().all()


def test_a_train_step_of_its_own_says_so(comm: Communicator, capsys: pytest.CaptureFixture[str]) -> None:
    class Own(keras.Model):
        def train_step(self, data: Any) -> Any:
            return super().train_step(data)

    with comm.scope():
        x = keras.Input((2,))
        own = distgrad.distribute(Own(x, keras.layers.Dense(1)(x)), comm, shard_update=True)
        own.compile("sgd", "mse")
    own.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    assert ("not sharded: Own.train_step is the model's own" in capsys.readouterr().err) == comm.is_root
