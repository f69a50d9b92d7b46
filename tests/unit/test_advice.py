"""What errors advise, followed: then it works. See also the files of this name in workers/ and jobs/."""

import ast
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

import distgrad
from distgrad import cli, native
from distgrad.errors import (
    BadArgument,
    BadEnvironment,
    CheckpointMismatch,
    CheckpointNotWritten,
    DistgradError,
    EngineMissing,
    ForeignOptimizer,
    GradientMismatch,
    HostileCheckpoint,
    NoCheckpointDirectory,
    NonFiniteGradient,
    NoSamples,
    NoValidCheckpoint,
    ReportExpired,
    TooManySkipped,
    UnknownBackend,
    UnsupportedDtype,
    UnsupportedLoss,
    UnsupportedModel,
)
from distgrad.launching.hosts import Host, reachable_hosts
from distgrad.launching.world import World
from distgrad.reports.tensorboard import TensorBoard
from support.advice import advice_in_tests, advised, all_advice, refused
from support.checkpoints import entries_of, seal


def test_all_advice_is_followed_by_a_test() -> None:
    assert all_advice() - advice_in_tests() == set()


# ---- a step and its batches


@pytest.fixture(scope="module")
def comm() -> Iterator[distgrad.Communicator]:
    with distgrad.connect("solo") as found:
        yield found


X, Y = np.ones((4, 3), "float32"), np.ones((4, 1), "float32")


def model(**options: Any) -> keras.Model:
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, **options)])


def step(comm: distgrad.Communicator, loss: Any = "mse", **options: Any) -> distgrad.DistributedStep:
    return distgrad.DistributedStep(
        options.pop("model", None) or model(), loss, "sgd", comm=comm, log_every=0, **options
    )


# For each option of a step: a wrong value, what is advised, and a right value.
OPTIONS = {
    "micro_batch_size": (0, "1 or more", 1),
    "reduction": ("average", '"mean" or "sum"', "sum"),
    "on_nonfinite": ("ignore", '"skip", "raise" or "apply"', "apply"),
    "log_format": ("xml", '"text", "json" or "live"', "json"),
    "max_skipped": (0, "1 or more, or None", None),
    "compression": ("fp16", '"none", "bf16" or "auto"', "bf16"),
    "check_every": (-1, "0 or more", 0),
    "log_every": (-1, "0 or more", 0),
    "shard_update": ("yes", 'True, False or "auto"', True),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_a_step(comm: distgrad.Communicator, name: str) -> None:
    wrong, allowed, right = OPTIONS[name]
    with refused(BadArgument, "give {}") as advice:
        distgrad.DistributedStep(model(), "mse", "sgd", comm=comm, **{name: wrong})
    assert advice.said == (allowed,)
    assert distgrad.DistributedStep(model(), "mse", "sgd", comm=comm, **{name: right})(X, Y).applied


def test_groups_and_statistics(comm: distgrad.Communicator) -> None:
    with refused(BadArgument, "give a regular expression"):
        step(comm, groups={"kernels": "("})
    with refused(BadArgument, "give some of {}, or 'all'") as advice:
        step(comm, statistics=["noize"])
    named = ast.literal_eval(advice.said[0])
    assert step(comm, groups={"kernels": "kernel"}, statistics=named)(X, Y).applied
    assert step(comm, statistics="all")(X, Y).applied


def test_batches(comm: distgrad.Communicator) -> None:
    taking = step(comm)
    with refused(BadArgument, "give arrays whose first axis counts the same examples"):
        taking(X, Y[:3])
    assert taking(X, Y).applied
    with refused(NoSamples, "check the dataset's filters and that its batches have rows"):
        taking(X[:0], Y[:0])
    with refused(BadArgument, "wrap arrays with tf.data.Dataset.from_tensor_slices(...).batch(...)"):
        comm.shard((X, Y))  # type: ignore[arg-type]
    (report,) = taking.epoch(comm.shard(tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)))
    assert report.examples == 4


def test_a_step_within_the_scope() -> None:
    with distgrad.connect("tf") as comm:
        advice = "build the model, and compile it if you do, inside `with comm.scope():`"
        with refused(BadArgument, advice):
            step(comm)(X, Y)
        with comm.scope():
            built = model()
            taking = step(comm, model=built)
            with refused(BadArgument, "build the model in there, and call them outside of it"):
                taking(X, Y)
        assert taking(X, Y).applied


def test_a_step_within_a_function(comm: distgrad.Communicator) -> None:
    taking, variable = step(comm), tf.Variable(1.0)
    with refused(
        BadArgument,
        "call it outside, it is compiled already; or use distgrad.all_reduce_gradients within the function",
    ):
        tf.function(lambda: taking(X, Y), autograph=False)()
    assert taking(X, Y).applied

    @tf.function(autograph=False)
    def by_hand() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.square(variable)
        return distgrad.all_reduce_gradients(tape.gradient(loss, [variable]), 1, comm=comm).gradients[0]

    assert by_hand().numpy() == 2


def test_losses(comm: distgrad.Communicator) -> None:
    slope = tf.Variable(1.0)
    with refused(
        UnsupportedLoss, "return one loss per example, shape (b,) or (b, ...), and leave the reduction to distgrad"
    ):
        distgrad.sum_gradients(lambda x, y: tf.reduce_mean(x * slope - y), [slope], (X, Y), comm=comm)
    assert distgrad.sum_gradients(lambda x, y: x[:, 0] * slope - y[:, 0], [slope], (X, Y), comm=comm).weight == 4
    with refused(UnsupportedLoss, "give one name, function or keras.losses.Loss, as to compile()"):
        step(comm, 7)
    assert step(comm, keras.losses.MeanAbsoluteError())(X, Y).applied
    trained = distgrad.distribute(model(), comm)
    trained.compile("sgd")
    with refused(UnsupportedLoss, "give compile() one, or let a layer add one"):
        trained.fit(X, Y, verbose=0)
    trained.compile("sgd", "mse")
    trained.fit(X, Y, verbose=0)
    added = distgrad.distribute(model(activity_regularizer="l2"), comm)
    added.compile("sgd")
    added.fit(X, verbose=0)


def test_what_is_not_finite(comm: distgrad.Communicator) -> None:
    nan = np.full_like(X, np.nan)
    with refused(NonFiniteGradient, "lower the learning rate or clip, or let on_nonfinite='skip' leave such steps out"):
        step(comm, on_nonfinite="raise")(nan, Y)
    assert not step(comm, on_nonfinite="skip")(nan, Y).applied
    with refused(
        TooManySkipped, "lower the learning rate, clip, or look for NaN in the data; max_skipped=None goes on for ever"
    ):
        few = step(comm, max_skipped=2)
        for _ in range(4):
            few(nan, Y)
    endless = step(comm, max_skipped=None)
    assert not any(endless(nan, Y).applied for _ in range(40))
    assert endless(X, Y).applied


def test_a_table_that_is_gone(comm: distgrad.Communicator) -> None:
    taking = step(comm)
    report = taking(X, Y)
    taking(X, Y)
    with refused(ReportExpired, "read table() before the next step"):
        report.table()
    assert len(taking(X, Y).table()) == 2


# ---- models, variables and gradients


def test_variables(comm: distgrad.Communicator) -> None:
    class Counting(keras.layers.Layer):
        def __init__(self, trainable: bool) -> None:
            super().__init__()
            self.count = self.add_weight(shape=(2,), dtype="int32", trainable=trainable, initializer="zeros")

        def call(self, x: Any) -> Any:
            return x

    with refused(UnsupportedDtype, "make it non-trainable or leave it out"):
        step(comm, model=keras.Sequential([keras.Input((3,)), Counting(True), keras.layers.Dense(1)]))(X, Y)
    assert step(comm, model=keras.Sequential([keras.Input((3,)), Counting(False), keras.layers.Dense(1)]))(X, Y).applied
    with refused(UnsupportedDtype, "cast it to one of {}"):
        comm.sum_over_workers(lambda: tf.ones(3, tf.float16), ())
    assert comm.sum_over_workers(lambda: tf.cast(tf.ones(3, tf.float16), tf.float32), ()).numpy().sum() == 3


class Odd(keras.layers.Layer):
    """A layer whose own gradient is of another shape than its variable, or not."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def build(self, _: Any) -> None:
        self.kernel = self.add_weight(shape=(3, 1), initializer="zeros")

    def call(self, x: Any) -> Any:
        kernel = tf.custom_gradient(lambda kernel: (kernel, lambda up: tf.zeros((self.rows, 1)) + tf.reduce_sum(up)))
        return x @ kernel(self.kernel.value)


def test_gradients(comm: distgrad.Communicator) -> None:
    fix = "give it the variable's shape, where a tf.custom_gradient or code of your own makes it"
    with refused(GradientMismatch, fix):
        step(comm, model=keras.Sequential([keras.Input((3,)), Odd(2)]))(X, Y)
    assert step(comm, model=keras.Sequential([keras.Input((3,)), Odd(3)]))(X, Y).applied
    ones = tf.ones((2, 3))
    with refused(BadArgument, 'give "mean" or "sum"'):
        distgrad.all_reduce_gradients([ones], 1, comm=comm, reduction="average")
    assert distgrad.all_reduce_gradients([ones], 1, comm=comm, reduction="sum").gradients[0].shape == (2, 3)
    with refused(BadArgument, "check that the loss depends on the variables"):
        distgrad.all_reduce_gradients([None], 1, comm=comm)

    @tf.function(input_signature=[tf.TensorSpec((None, 3))], autograph=False)
    def reduced(gradient: tf.Tensor) -> tf.Tensor:
        return distgrad.all_reduce_gradients([gradient], 1, comm=comm).gradients[0]

    @tf.function(input_signature=[tf.TensorSpec((None, 3))], autograph=False)
    def told(gradient: tf.Tensor) -> tf.Tensor:
        return distgrad.all_reduce_gradients([tf.ensure_shape(gradient, (2, 3))], 1, comm=comm).gradients[0]

    with refused(GradientMismatch, "give it its variable's shape with tf.ensure_shape"):
        reduced(ones)
    assert (told(ones).numpy() == 1).all()


def test_synchronized_normalisation(comm: distgrad.Communicator) -> None:
    def normalized(synchronized: bool) -> keras.Model:
        layers = [keras.layers.BatchNormalization(synchronized=synchronized), keras.layers.Dense(1)]
        return keras.Sequential([keras.Input((3,)), *layers])

    with refused(
        BadArgument,
        "leave micro_batch_size out, or build the layer with synchronized=False to normalise each micro-batch",
    ):
        step(comm, model=normalized(True), micro_batch_size=2)(X, Y)
    assert step(comm, model=normalized(True))(X, Y).applied
    assert step(comm, model=normalized(False), micro_batch_size=2)(X, Y).applied


def test_models_of_their_own_kind(comm: distgrad.Communicator) -> None:
    class Own(keras.Sequential):
        def fit(self, *args: Any, **how: Any) -> Any:
            return super().fit(*args, **how)

    own = Own([keras.Input((3,)), keras.layers.Dense(1)])
    with refused(UnsupportedModel, "leave it to Keras, or train in a loop of your own with distgrad.DistributedStep"):
        distgrad.distribute(own, comm)
    assert step(comm, model=own)(X, Y).applied

    def in_twos() -> keras.Model:
        x = keras.Input(batch_shape=(2, 3))
        rows = keras.layers.LSTM(2, stateful=True)(keras.layers.Reshape((3, 1))(x))
        return keras.Model(x, keras.layers.Dense(1)(rows))

    with refused(UnsupportedModel, "leave micro_batch_size out, and let a global batch have {} rows, {} a worker"):
        step(comm, model=in_twos())(X, Y)
    assert step(comm, model=in_twos())(X[:2], Y[:2]).applied


def test_an_optimizer_of_another_model(comm: distgrad.Communicator) -> None:
    used, trained = keras.optimizers.SGD(), distgrad.distribute(model(), comm)
    used.build(model().trainable_variables)
    trained.compile(used, "mse")
    with refused(ForeignOptimizer, "give compile() an optimizer of this model's own"):
        trained.fit(X, Y, verbose=0)
    trained.compile(keras.optimizers.SGD(), "mse")
    trained.fit(X, Y, verbose=0)


def test_warming_up(comm: distgrad.Communicator) -> None:
    def fit(rate: Any, *callbacks: keras.callbacks.Callback) -> None:
        trained = distgrad.distribute(model(), comm)
        trained.compile(keras.optimizers.SGD(rate), "mse")
        trained.fit(X, Y, verbose=0, callbacks=callbacks)

    warm_up = distgrad.WarmUp(0.1, 2, 10)
    with refused(BadArgument, "give the optimizer a number, or put the warm-up into the schedule"):
        fit(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5), warm_up)
    fit(0.1, warm_up)
    fit(keras.optimizers.schedules.CosineDecay(0.1, 10, warmup_target=0.2, warmup_steps=10))


# ---- checkpoints


def saved(comm: distgrad.Communicator, folder: Path) -> Path:
    """A checkpoint of a loop in a new folder."""
    folder.mkdir(exist_ok=True)
    taking, checkpoint = step(comm), distgrad.Checkpoint(folder, comm)
    taking(X, Y)
    checkpoint.save(taking)
    checkpoint.wait()
    return folder / "step-0000000001.npz"


def resumed(comm: distgrad.Communicator, folder: Path, **options: Any) -> int:
    folder.mkdir(exist_ok=True)
    return distgrad.Checkpoint(folder, comm).resume(step(comm, **options))


def test_folders_for_checkpoints(comm: distgrad.Communicator, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with refused(NoCheckpointDirectory, "create it: mkdir -p {}") as advice:
        distgrad.Checkpoint(folder, comm)
    subprocess.run(["mkdir", "-p", *advice.said], check=True)
    with refused(BadArgument, "give 1 or more"):
        distgrad.Checkpoint(folder, comm, keep=0)
    distgrad.Checkpoint(folder, comm, keep=1)
    with refused(NoCheckpointDirectory, "make it writable, or give another directory"):
        distgrad.Checkpoint("/proc", comm)
    with refused(BadArgument, "call save() after a step"):
        distgrad.Checkpoint(folder, comm).save(step(comm, model=keras.Sequential([keras.layers.Dense(1)])))
    assert saved(comm, folder).exists()


def test_no_room_for_a_checkpoint(comm: distgrad.Communicator, tmp_path: Path) -> None:
    taking, checkpoint = step(comm), distgrad.Checkpoint(tmp_path, comm)
    taking(X, Y)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # longer files cannot be written
    try:
        with refused(CheckpointNotWritten, "make room for it; the last complete checkpoint is {}"):
            checkpoint.save(taking)
            checkpoint.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    checkpoint.save(taking)
    checkpoint.wait()
    assert resumed(comm, tmp_path) == 1


def test_files_that_are_no_checkpoints(comm: distgrad.Communicator, tmp_path: Path) -> None:
    path = saved(comm, tmp_path / "a")
    copy = shutil.copy(path, tmp_path / "copy")
    path.write_bytes(b"\0" * 100)
    with refused(NoValidCheckpoint, "bring back a copy of one, or begin again in another directory"):
        resumed(comm, path.parent)
    assert resumed(comm, tmp_path / "b") == 0
    shutil.copy(copy, path)
    assert resumed(comm, path.parent) == 1
    other = path.with_name("step-0000000002.npz")
    other.write_bytes(b"cos\nsystem\n(S'touch unpickled'\ntR.")
    with refused(HostileCheckpoint, "find out who put it there, and remove it"):
        resumed(comm, path.parent)
    other.unlink()
    assert resumed(comm, path.parent) == 1


def test_checkpoints_of_something_else(comm: distgrad.Communicator, tmp_path: Path) -> None:
    path = saved(comm, tmp_path / "a")
    wide = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with refused(CheckpointMismatch, "resume with the model and optimizer that were saved, or give another directory"):
        resumed(comm, path.parent, model=wide)
    assert resumed(comm, tmp_path / "b", model=wide) == 0
    (_, meta), *arrays = entries_of(path)
    fields = json.loads(meta)
    fields["random"][0]["own"] = [[1, 2]]
    other = path.with_name("step-0000000002.npz")
    seal(other, [("meta.json", json.dumps(fields).encode()), *arrays])
    with refused(CheckpointMismatch, "resume with the model that was saved, or give another directory"):
        resumed(comm, path.parent)
    shutil.copy(path, other)
    assert resumed(comm, path.parent) == 1
    kept = np.random.get_state(legacy=False)
    try:
        np.random.set_bit_generator(np.random.PCG64(1))
        advice = "call numpy.random.set_bit_generator(numpy.random.{}()) before resume()"
        with refused(CheckpointMismatch, advice) as found:
            resumed(comm, path.parent)
        np.random.set_bit_generator(getattr(np.random, found.said[0])())
        assert resumed(comm, path.parent) == 1
    finally:
        np.random.set_state(kept)


def test_checkpoints_of_fit(comm: distgrad.Communicator, tmp_path: Path) -> None:
    def fit(folder: Path, data: Any, distributed: bool = True) -> None:
        folder.mkdir(exist_ok=True)
        trained = distgrad.distribute(model(), comm) if distributed else model()
        trained.compile("sgd", "mse")
        trained.fit(*data, callbacks=[distgrad.Checkpoint(folder, comm)], verbose=0)

    with refused(BadArgument, "call distgrad.distribute(model, comm) before fit()"):
        fit(tmp_path / "a", (X, Y), distributed=False)
    fit(tmp_path / "a", (X, Y))
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(2)
    with refused(CheckpointMismatch, "give arrays, a PyDataset or a dataset as before, or another directory"):
        fit(tmp_path / "a", (dataset,))
    fit(tmp_path / "a", (X, Y))
    fit(tmp_path / "b", (dataset,))
    with refused(CheckpointMismatch, "give another directory"):
        fit(saved(comm, tmp_path / "c").parent, (X, Y))
    fit(tmp_path / "d", (X, Y))


# ---- the compiled core


def test_two_threads(comm: distgrad.Communicator) -> None:
    place = {"variables": ["'a'"], "starts": [0], "stops": [16], "sizes": [6]}

    def add(is_first: bool) -> None:
        with comm.liveness.explaining():
            comm.window.run("add", is_first, True, [tf.ones(6)], **place, describes=0)

    with ThreadPoolExecutor(1) as other:
        other.submit(add, True).result()
    with refused(BadArgument, "let one thread take all steps and sums, in the same order on every worker"):
        add(False)
    add(True)
    add(False)


def test_too_large_a_table(comm: distgrad.Communicator) -> None:
    def collect(rows: int) -> None:
        variable = comm.window.sparse_variable("'table'", tf.TensorShape([rows, 1]))
        with comm.liveness.explaining():
            comm.window.run("collect_rows", True, True, tf.ones((1, 1)), [0], variable=variable.address, describes=0)

    with refused(DistgradError, "give the job more memory or train a smaller model"):
        collect(1 << 44)
    collect(1 << 4)


# ---- what is installed


def test_a_core_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    core = native._library()
    monkeypatch.setattr(native, "__file__", str(tmp_path / "__init__.py"))
    with refused(EngineMissing, "install distgrad with pip, which builds it"):
        native._library()
    shutil.copy(core, tmp_path)
    assert native._library() == str(tmp_path / Path(core).name)


def test_tensorboard_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(tf.summary, "scalar")
        with refused(EngineMissing, "pip install 'distgrad[tensorboard]'"):
            TensorBoard(tmp_path)
    TensorBoard(tmp_path)


def test_backends() -> None:
    with refused(UnknownBackend, "did you mean {}?") as advice:
        distgrad.connect("sollo")
    distgrad.connect(ast.literal_eval(advice.said[0])).close()
    with refused(UnknownBackend, "choose one of them"):
        distgrad.connect("zzz")
    distgrad.connect("solo").close()


# ---- what a job is launched with


def test_the_command_that_reaches_hosts() -> None:
    hosts, name = [Host("h1", 1)], "OMPI_MCA_plm_rsh_agent"
    with refused(BadEnvironment, "correct {}, or unset it"):
        reachable_hosts(hosts, {name: "ssh '"})
    assert reachable_hosts(hosts, {name: "true"}) == tuple(hosts)


def launch(words: str, **env: str) -> Any:
    """`distgrad run --dry-run`, as from a shell."""
    return CliRunner().invoke(cli.main, ["run", "--dry-run", *words.split()], env=env)


# Advice, what it is given for, and what takes it.
LAUNCHES = [
    ("write -H h1:2,h2:2, with 1 to {} on each", "-H h1:x true", "-H h1:2,h2:2 --backend mpi true"),
    (
        "ask for at most -np {}, name more room with {}, or say --oversubscribe",
        "-np 3 -H localhost:2 true",
        "-np 3 -H localhost:3 true",
    ),
    ("name a .py file, or a program that is on PATH", "nowhere", "true"),
    ("name the script that every worker runs", "nowhere.py", __file__),
    ("name one that is installed, or that the working directory has", "-m nowhere.train", "-m keras"),
    ("say -np {}, or leave out --expect-size", "-np 1 --expect-size 2 true", "-np 2 --expect-size 2 true"),
    (
        "start one on each host as launch/clusters/tf_workers shows, or choose --backend mpi or horovod",
        "--backend tf -H h1,h2 true",
        "--backend mpi -H h1,h2 true",
    ),
    ("leave out --backend, or say -np 1", "-np 2 --backend solo true", "-np 1 --backend solo true"),
]


@pytest.mark.parametrize(("advice", "wrong", "right"), LAUNCHES)
def test_what_is_launched(advice: str, wrong: str, right: str) -> None:
    failed = launch(wrong)
    assert failed.exit_code >= os.EX_USAGE
    advised(failed.stderr, advice)
    done = launch(right)
    assert done.exit_code == 0, done.output


SHARED = "run {} here, or set CUDA_VISIBLE_DEVICES= to compute on the CPU"
AROUND = [
    ("say so with -np", "", {"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7"}),
    ("launch either with it or with distgrad run", "-np 2", {"RANK": "1", "WORLD_SIZE": "4"}, {}),
    ("name GPUs as 0,1", "-np 2", {"CUDA_VISIBLE_DEVICES": "0,?"}, {"CUDA_VISIBLE_DEVICES": "0,1"}),
    ("name each GPU once", "-np 2", {"CUDA_VISIBLE_DEVICES": "0,0"}, {"CUDA_VISIBLE_DEVICES": "0,1"}),
    (SHARED, "-np 2", {"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": ""}),
]


def test_fewer_workers_on_few_gpus() -> None:
    gpus = {"CUDA_VISIBLE_DEVICES": "3"}
    (workers,) = advised(launch("-np 2 true", **gpus).stderr, SHARED)
    assert launch(f"-np {workers} true", **gpus).exit_code == 0


@pytest.mark.parametrize(("advice", "words", "wrong", "right"), AROUND)
def test_around_what_is_launched(advice: str, words: str, wrong: dict[str, str], right: dict[str, str]) -> None:
    failed = launch(f"{words} true", **wrong)
    assert failed.exit_code >= os.EX_USAGE
    advised(failed.stderr, advice)
    done = launch(f"{words or '-np 2'} true", **right)
    assert done.exit_code == 0, done.output


TASK = {"type": "worker", "index": 0}
CLUSTER = {"worker": ["localhost:1", "localhost:2"]}
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
SLURM = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "2"}
ENVIRONMENTS = [
    (
        'set it to {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}',
        {"TF_CONFIG": "{"},
        {"TF_CONFIG": json.dumps({"cluster": CLUSTER, "task": TASK})},
    ),
    (
        "run distgrad on tasks of type chief or worker, from index 0",
        {"TF_CONFIG": json.dumps({"cluster": CLUSTER, "task": TASK | {"type": "ps"}})},
        {"TF_CONFIG": json.dumps({"cluster": CLUSTER, "task": TASK})},
    ),
    (
        "give every worker its own port",
        {"TF_CONFIG": json.dumps({"cluster": {"worker": ["localhost:1", "localhost:1"]}, "task": TASK})},
        {"TF_CONFIG": json.dumps({"cluster": CLUSTER, "task": TASK})},
    ),
    (
        "no host has more workers than there are; unset all that the launcher has set to run alone",
        TORCHRUN | {"LOCAL_WORLD_SIZE": "3"},
        {},
    ),
    ("ranks go from 0 to {}-1; unset all that the launcher has set to run alone", TORCHRUN | {"RANK": "2"}, {}),
    ("let the launcher set {}, or unset it", TORCHRUN | {"RANK": "x"}, {}),
    ("let the launcher set {}, or unset it", SLURM | {"SLURM_STEP_TASKS_PER_NODE": "x"}, SLURM),
    (
        "launch with one of them alone; unset {}, or {}, if another job has left them",
        SLURM | TORCHRUN | {"RANK": "1", "LOCAL_RANK": "1"},
        SLURM,
    ),
]


@pytest.mark.parametrize(("advice", "wrong", "right"), ENVIRONMENTS)
def test_environments(advice: str, wrong: dict[str, str], right: dict[str, str]) -> None:
    with pytest.raises(distgrad.DistgradError) as caught:
        World.from_environment(wrong)
    advised(str(caught.value), advice)
    assert World.from_environment(right).size == (2 if right else 1)


def test_numbers_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTGRAD_TIMEOUT", "soon")
    with refused(BadEnvironment, "set {} to a number above 0, or unset it"):
        distgrad.connect("solo")
    monkeypatch.setenv("DISTGRAD_TIMEOUT", "60")
    distgrad.connect("solo").close()
