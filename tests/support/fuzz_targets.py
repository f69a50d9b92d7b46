"""What is fuzzed: each target makes one case from a seeded generator and checks what comes of it.

A case must end with the right result or with one clear error of distgrad's, in bounded time and memory.
"""

import json
import random
import re
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

import distgrad
from distgrad.checkpoint import training_state
from distgrad.checkpoint.directory import CheckpointDirectory
from distgrad.checkpoint.fit_progress import FitProgress
from distgrad.checkpoint.metadata import array_name
from distgrad.errors import (
    BadArgument,
    BadEnvironment,
    CheckpointMismatch,
    DistgradError,
    HostileCheckpoint,
    NoValidCheckpoint,
    WorldMismatch,
)
from distgrad.fit.order import RowOrder
from distgrad.launching.hosts import MOST_SLOTS, parse_hosts, visible_gpus
from distgrad.launching.world import LAUNCHER_VARIABLES, World
from distgrad.reports import history
from distgrad.reports.html_report import summary, write_html
from support import checkpoints
from support.fuzz_mutations import (
    ODD_TEXTS,
    as_text,
    changed_bytes,
    changed_entries,
    changed_headers,
    changed_tree,
    odd_value,
)
from support.logs import line

LONGEST = 2.0  # seconds of this process for a case
LONGEST_LINE = 1200  # characters of an error


@contextmanager
def bounded(most_bytes: int | None = None) -> Iterator[None]:
    """Check what a case costs, also one that raises; memory, which is slow to count, only where a bound is given."""
    began = time.process_time()
    if most_bytes is not None:
        tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        seconds = time.process_time() - began
        assert seconds < LONGEST, f"{seconds:.1f} s"
        assert peak <= (most_bytes or 0), f"{peak / 1e6:.0f} MB"


def require_clear(error: DistgradError) -> None:
    """Check that it is one line that a terminal can show."""
    text = str(error)
    assert text.isprintable(), ascii(text)
    assert len(text) < LONGEST_LINE, len(text)


# ---- checkpoints


class Checkpoints:
    """Files that are resumed from, into a small model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "checkpoints"
        self._folder.mkdir()
        self._path = self._folder / "step-0000000003.npz"
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dropout(0.5)])
        model.add(keras.layers.Dense(4, dtype="bfloat16"))
        comm = distgrad.connect("solo")
        self._step = distgrad.DistributedStep(model, "mse", "adam", comm=comm, log_every=0)
        data = np.arange(18, dtype="float32").reshape(6, 3)
        for _ in range(3):
            self._step(data, np.ones((6, 4), "float32"))
        saved = training_state.capture(self._step, None)
        assert saved is not None
        fit = {"epoch": 1, "batch": 2, "logs": {"loss": 0.5}, "over": False, "order": [7, 2]}
        self._metas = [saved.meta, saved.meta | {"fit": fit}]
        self._arrays = saved.arrays
        self._checkpoint = distgrad.Checkpoint(self._folder, comm)
        self._plain = self._written(saved.meta)

    def _written(self, meta: dict[str, Any]) -> bytes:
        checkpoints.seal(self._path, self._entries(meta))
        return self._path.read_bytes()

    def _entries(self, meta: dict[str, Any]) -> list[checkpoints.Entry]:
        arrays = [(f"{name}.npy", checkpoints.npy(array)) for name, array in self._arrays.items()]
        return [("meta.json", json.dumps(meta).encode()), *arrays]

    def __call__(self, rng: random.Random) -> None:
        makes = [self._damaged, self._resealed, self._restructured, self._rebuilt, self._edited]
        make = self._overlapping if rng.random() < 0.02 else rng.choice(makes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile's of doubled names
            make(rng)
        whole = make == self._damaged and self._path.read_bytes() == self._plain
        counts_memory = make == self._overlapping or rng.random() < 0.1
        self._check(may_be_read=make != self._damaged or whole, counts_memory=counts_memory)

    def _damaged(self, rng: random.Random) -> None:
        self._path.write_bytes(rng.choice([changed_bytes, changed_headers])(rng, self._plain))

    def _resealed(self, rng: random.Random) -> None:
        checkpoints.reseal(self._path, changed_bytes(rng, self._plain).ljust(100, b"\0"))

    def _restructured(self, rng: random.Random) -> None:
        checkpoints.reseal(self._path, changed_headers(rng, self._plain))

    def _rebuilt(self, rng: random.Random) -> None:
        checkpoints.seal(self._path, changed_entries(rng, self._entries(self._metas[0])))

    def _edited(self, rng: random.Random) -> None:
        meta = rng.choice(self._metas)
        text = as_text(rng, changed_tree(rng, meta))
        entries = self._entries(meta)
        checkpoints.seal(self._path, [("meta.json", text.encode(errors="surrogatepass")), *entries[1:]])

    def _overlapping(self, rng: random.Random) -> None:
        data = bytes(rng.choice([300_000, 600_000]))
        checkpoints.seal_overlapping(self._path, json.dumps(self._metas[0]), rng.randint(2, 40), data)

    def _check(self, *, may_be_read: bool, counts_memory: bool) -> None:
        before = self._values()
        most_bytes = 3_000_000 + 10 * self._path.stat().st_size if counts_memory else None
        try:
            with bounded(most_bytes), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NumPy's, of odd headers
                content = CheckpointDirectory(self._folder, 1).read_newest()
        except (HostileCheckpoint, NoValidCheckpoint) as error:
            require_clear(error)
            return
        assert may_be_read, "a damaged file was read"
        assert content is not None
        try:
            self._checkpoint.resume(self._step)
        except CheckpointMismatch as error:
            require_clear(error)
            _same(self._values(), before)
        else:
            described = enumerate(content.meta["variables"])
            _same(self._values(), [content.arrays[array_name("variables", *each)] for each in described])
        self._go_on(content.meta)

    def _values(self) -> list[np.ndarray]:
        return [variable.numpy() for variable in self._step.variables()]

    def _go_on(self, meta: dict[str, Any]) -> None:
        """Use what was restored: a generator that was set to a wrong state would read beyond its end."""
        np.random.rand(700)
        random.random()
        assert 0 <= self._step.steps == meta["step"]
        if meta["fit"] is not None:
            try:
                FitProgress(self._step, RowOrder(6, 2, True, 0)).go_to(meta["fit"], None)
            except CheckpointMismatch as error:
                require_clear(error)


def _same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Compare weights and optimizer state, but not the dropout's random numbers, which are the worker's own."""
    pairs = zip(found, expected, strict=True)
    assert all(one.tobytes() == other.tobytes() for one, other in pairs if one.shape != (2,)), "other weights"


# ---- logs

DRAWN = 100  # one of so many logs is drawn


class Reports:
    """Log files that are read, and now and then drawn."""

    def __init__(self, folder: Path) -> None:
        self._path, self._page = folder / "log", folder / "page.html"
        self._cases = 0
        variables = {f"m/{name}": {"gradient_norm": 1.0, "gradient_sum": 0.0} for name in ("kernel", "bias")}
        self._good = json.loads(
            line(
                7,
                variables=variables,
                by_worker=[{"gradient_norm": 2.0}, {"gradient_norm": None}],
                noise={"trace": 1.0, "squared_norm": 2.0, "scale": 0.5},
                times={"compute": 0.1, "reduce": 0.2, "apply": 0.3},
            )
        )

    def __call__(self, rng: random.Random) -> None:
        lines = [self._line(rng) for _ in range(rng.randint(1, 12))]
        data = b"\n".join(lines) + rng.choice([b"", b"\n"])
        self._path.write_bytes(data)
        with bounded(20_000_000 if rng.random() < 0.05 else None), warnings.catch_warnings():
            warnings.simplefilter("error")
            run = history.read(self._path, limit=rng.choice([2, 1000]))
        written = sum(bool(one.strip()) for one in data.split(b"\n"))
        assert run.lines + run.damaged == written, (run.lines, run.damaged, written)
        assert np.nanmax(np.abs([run.low, run.mean, run.high]), initial=0) <= history.LARGEST
        self._cases += 1
        if run.lines and self._cases % DRAWN == 1:
            self._draw(run)

    def _line(self, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return line(rng.randint(1, 10**6)).encode()
        text = as_text(rng, changed_tree(rng, self._good)).encode(errors="surrogatepass")
        text = changed_bytes(rng, text) if text and rng.random() < 0.1 else text
        return text.replace(b"\n", b" ")

    def _draw(self, run: history.History) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert all(value.isprintable() for value in summary(run).values())
            write_html(self._page, "log\x1b[31m", run)
        assert not re.search("[\x00\x1b\u202e]|<script", self._page.read_text())


# ---- environments and hosts


class Environments:
    """TF_CONFIG and the variables of launchers, alone and together."""

    def __init__(self, folder: Path) -> None:  # noqa: ARG002 (all targets are made alike)
        addresses = [*(f"h{n // 2}:{n}" for n in range(5)), "[::1]:80"]
        self._config = {"cluster": {"worker": addresses, "chief": ["h0:99"]}, "task": {"type": "worker", "index": 3}}

    def __call__(self, rng: random.Random) -> None:
        environment: dict[str, str] = {}
        if rng.random() < 0.6:
            environment["TF_CONFIG"] = as_text(rng, changed_tree(rng, self._config))
        for launcher in rng.sample(LAUNCHER_VARIABLES, rng.choice([0, 0, 1, 1, 2, 3])):
            environment |= _launched(rng, launcher)
        with bounded():
            try:
                world = World.from_environment(environment)
            except (BadEnvironment, WorldMismatch) as error:
                require_clear(error)
                return
        assert type(world.rank) is int
        assert 0 <= world.rank < world.size, world
        assert 0 <= world.local_rank < world.local_size <= world.size, world
        _require_said(world, environment)


def _launched(rng: random.Random, launcher: Any) -> dict[str, str]:
    size = rng.choice([1, 2, 4])
    rank = rng.randrange(size)
    numbers = {launcher.rank: rank, launcher.size: size, launcher.local_rank: rank, launcher.local_size: size}
    said = {name: str(number) for name, number in numbers.items()}
    if launcher.launcher == "srun":
        said |= {"SLURM_NODEID": str(rng.randrange(3)), launcher.local_size: rng.choice(["4", "4(x3)", "4,4(x2)"])}
    if rng.random() < 0.5:
        name = rng.choice(list(said))
        odd = [lambda: rng.choice(ODD_TEXTS), lambda: str(odd_value(rng))[:9000], lambda: str(rng.randint(-3, 6))]
        said[name] = rng.choice(odd)()
    if rng.random() < 0.2:
        del said[rng.choice(list(said))]
    return said


def _require_said(world: World, environment: dict[str, str]) -> None:
    """A world of several is one that a launcher has named; nobody else has named another one."""
    said = [
        (int(environment[one.rank]), int(environment[one.size]))
        for one in LAUNCHER_VARIABLES
        if {one.rank, one.size} <= set(environment) and one.launcher not in ("srun", "MPICH")
    ]
    if "TF_CONFIG" in environment:
        task = json.loads(environment["TF_CONFIG"])["task"]["index"]
        assert world.launcher == "TF_CONFIG"
        assert task <= world.rank <= task + 1
    assert all(place == (world.rank, world.size) or place[1] == 1 for place in said), (world, said)


ALPHABETS = ["abh12.-_@:,", "ab:,0123456789", "".join(map(chr, range(0x20, 0x7F))), "h1:,\x00\x1b\n\u202e\u0661"]


class Hosts:
    """Lists of hosts, and of GPUs."""

    def __init__(self, folder: Path) -> None:
        pass

    def __call__(self, rng: random.Random) -> None:
        alphabet = rng.choice(ALPHABETS)
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(14)))
        if rng.random() < 0.4:
            text = (
                rng.choice(["h1:2,", "me@h1:4,", ""]) + rng.choice([text, *ODD_TEXTS]) + rng.choice(["", ":2", ",h2"])
            )
        with bounded():
            self._parse(text)
            try:
                gpus = visible_gpus({"CUDA_VISIBLE_DEVICES": text}) or []
            except BadEnvironment as error:
                require_clear(error)
            else:
                assert len(set(gpus)) == len(gpus)
                assert all(gpu.isascii() and gpu.isprintable() and " " not in gpu for gpu in gpus)

    @staticmethod
    def _parse(text: str) -> None:
        try:
            hosts = parse_hosts(text)
        except BadArgument as error:
            require_clear(error)
            return
        parts = [part.strip() for part in text.split(",")]
        for host, part in zip(hosts, parts, strict=True):
            assert re.sub(":0+", ":", part) in {str(host), host.name}
            assert 1 <= host.slots <= MOST_SLOTS
            assert all(re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_.-]*", word) for word in host.name.split("@")), host


TARGETS: dict[str, Callable[[Path], Callable[[random.Random], None]]] = {
    "checkpoints": Checkpoints,
    "reports": Reports,
    "environments": Environments,
    "hosts": Hosts,
}


def generator(target: str, seed: int) -> random.Random:
    """The generator of one case."""
    return random.Random(f"{target} {seed}")
