"""The tables of the benchmark: their cases, their contestants, and the jobs that these run in."""

from collections.abc import Mapping
from typing import NamedTuple

DISTGRAD, LIMIT, KERAS = "distgrad", "limit", "keras"
HOROVODS = ("horovod-mpi", "horovod-gloo")
PEERS = ("mpi", *HOROVODS, "mwms", "ddp", "memcpy")
WITHOUT_COMMUNICATION = ("no-communication", "by-hand-no-communication")  # their steps are not the global one


class Job(NamedTuple):
    """A job whose ranks live through the whole run.

    Attributes:
        engine: the module of `engines` that the ranks run.
        launcher: the launcher that starts them.
        environment: variables to add to their environment.
        can_pause: False where the ranks take each other for dead after some seconds of silence.
        has_all_cores: True for a job of one rank that computes with as many threads as there are cores.
    """

    engine: str
    launcher: str
    environment: Mapping[str, str] = {}
    can_pause: bool = True
    has_all_cores: bool = False


class Contestant(NamedTuple):
    """One way to do the work of a case.

    Attributes:
        name: the name in the table; one with several configurations is compared in its fastest.
        job: the job whose ranks do the work.
        turn: the turn of the job's engine.
    """

    name: str
    job: str
    turn: str

    @property
    def peer(self) -> str:
        """The one of PEERS that it belongs to, or DISTGRAD, LIMIT or KERAS."""
        return self.name if self.name in (*PEERS, LIMIT) else self.job.split()[0]

    @property
    def label(self) -> str:
        """The name with its configuration."""
        return f"{self.name}: {self.turn} ({self.job})"


class Case(NamedTuple):
    """One case of a table.

    Attributes:
        name: the size of the sum, or the model.
        quick: True if it is part of a quick run.
    """

    name: str
    quick: bool = True


class Difference(NamedTuple):
    """A contestant whose time is the difference of two others' in the same round, divided by `times`."""

    name: str
    longer: str
    shorter: str
    times: int


class Table(NamedTuple):
    """A table of comparisons.

    Attributes:
        cases: the cases.
        contestants: who takes part in them.
        subjects: names of the contestants that are compared with all others.
        differences: contestants whose times are differences.
        period: each turn takes a multiple of so many calls, of which one may cost more than the others.
        rotates: True where contestants differ by less than the few percent that come of having been built first; then
            each is built first once.
    """

    cases: tuple[Case, ...]
    contestants: tuple[Contestant, ...]
    subjects: tuple[str, ...]
    differences: tuple[Difference, ...] = ()
    period: int = 1
    rotates: bool = False


def _algorithm(number: int) -> dict[str, str]:
    return {"OMPI_MCA_coll_tuned_use_dynamic_rules": "1", "OMPI_MCA_coll_tuned_allreduce_algorithm": str(number)}


def _cycle(milliseconds: str) -> dict[str, str]:
    # Gloo's own limit is 30 s, and its ranks may wait longer than that for their turn.
    return {"HOROVOD_CYCLE_TIME": milliseconds, "HOROVOD_GLOO_TIMEOUT_SECONDS": "600"}


JOBS = {
    DISTGRAD: Job("keras_mpi", "mpirun"),
    "mpi default": Job("plain_mpi", "mpirun"),
    "mpi recursive doubling": Job("plain_mpi", "mpirun", _algorithm(3)),
    "mpi ring": Job("plain_mpi", "mpirun", _algorithm(4)),
    "mpi Rabenseifner": Job("plain_mpi", "mpirun", _algorithm(6)),
    "mpi copies through shared memory": Job(
        "plain_mpi", "mpirun", {"OMPI_MCA_btl_vader_single_copy_mechanism": "none"}
    ),
    "horovod-mpi 1 ms": Job("keras_horovod", "horovodrun --mpi", _cycle("1")),
    "horovod-mpi 0.1 ms": Job("keras_horovod", "horovodrun --mpi", _cycle("0.1")),
    "horovod-gloo 1 ms": Job("keras_horovod", "horovodrun --gloo", _cycle("1")),
    "horovod-gloo 0.1 ms": Job("keras_horovod", "horovodrun --gloo", _cycle("0.1")),
    "mwms": Job("keras_mwms", "TF_CONFIG", can_pause=False),
    "ddp": Job("torch_ddp", "torch"),
    f"{KERAS} in one process": Job("keras_alone", "none", has_all_cores=True),
}

HOROVOD_JOBS = tuple(job for job in JOBS if job.startswith(HOROVODS))
SHORT_CYCLE_JOBS = tuple(job for job in HOROVOD_JOBS if job.endswith(" 0.1 ms"))
FULL_MPI_JOBS = ("mpi recursive doubling", "mpi Rabenseifner", "mpi copies through shared memory")
MPI_JOBS = tuple(job for job in JOBS if JOBS[job].engine == "plain_mpi")


def _horovod(*turns: str) -> tuple[Contestant, ...]:
    return tuple(Contestant(job.split()[0], job, turn) for job in HOROVOD_JOBS for turn in turns)


MEGABYTE = 1_000_000
SUM_BYTES = {"4 KB": 4096, "64 KB": 65536} | {f"{n} MB": n * MEGABYTE for n in (1, 16, 64, 100, 256)}
LOGGED_EVERY = 10  # steps
TENSORS = 50  # that a vector is split into
FEW_MICRO_BATCHES, MANY_MICRO_BATCHES = 4, 12
SHORT_FIT, LONG_FIT = 1, 5  # steps
FIT_ALONE = f"{DISTGRAD} fit alone"
# The fits by contestant, as their turns name them.
FITS = {f"{DISTGRAD} fit": "workers", FIT_ALONE: "one", "keras fit alone": "Keras"}
MODELS = ("small", "deep", "wide", "cnn", "transformer")
MLPS = ("small", "deep", "wide")
WITH_ADAM = "wide with Adam"  # the same model, with an optimizer whose update costs more than the sum
# Of the fits on all cores: the rows of a global batch, and the steps of a fit.
FITTED = {
    "MLP 64": (64, 60),
    "MLP 512": (512, 40),
    "wide MLP 256": (256, 5),
    "CNN 128": (128, 5),
    "LSTM 128": (128, 8),
    "transformer 64": (64, 6),
}
# Rows of the embedding. A step uses 2048 of them, or fewer where an index occurs twice: at most a tenth.
EMBEDDINGS = {"embedding 20k": 20_000, "embedding 200k": 200_000, "embedding 1M": 1_000_000}

TABLES = {
    "sum": Table(
        (
            *(Case(name, quick=name in ("4 KB", "1 MB", "100 MB")) for name in SUM_BYTES),
            Case(f"100 MB in {TENSORS} tensors"),
        ),
        (
            Contestant(DISTGRAD, DISTGRAD, "graph"),
            Contestant(f"{DISTGRAD} again", DISTGRAD, "graph again"),
            Contestant(f"{DISTGRAD} core", DISTGRAD, "core"),
            *(Contestant("mpi", job, turn) for job in MPI_JOBS for turn in ("Allreduce", "Allreduce in place")),
            *_horovod("flat", "per tensor", "grouped"),
            *(Contestant(f"{DISTGRAD} on {job.split()[0]}", job, "graph") for job in HOROVOD_JOBS),
            Contestant("mwms", "mwms", "flat"),
            Contestant("mwms", "mwms", "packed"),
            Contestant("memcpy", "mpi default", "memcpy"),
            Contestant(LIMIT, DISTGRAD, "limit"),
            Contestant(f"{DISTGRAD} one tensor", DISTGRAD, "one tensor"),
        ),
        (DISTGRAD, f"{DISTGRAD} core"),
    ),
    "step": Table(
        (
            *(Case(model) for model in MODELS),
            Case(WITH_ADAM),
            *(Case(name, quick="200k" in name) for name in EMBEDDINGS),
        ),
        (
            Contestant(DISTGRAD, DISTGRAD, "step"),
            Contestant(f"{DISTGRAD} again", DISTGRAD, "step again"),
            Contestant(f"{DISTGRAD} densified", DISTGRAD, "step densified"),
            Contestant(f"{DISTGRAD} sharded", DISTGRAD, "step sharded"),
            Contestant(WITHOUT_COMMUNICATION[0], DISTGRAD, "step alone"),
            Contestant(WITHOUT_COMMUNICATION[1], DISTGRAD, "by hand"),
            *_horovod("flat", "per tensor", "grouped"),
            *(Contestant(f"{DISTGRAD} on {job.split()[0]}", job, "step") for job in HOROVOD_JOBS),
            Contestant("mwms", "mwms", "flat"),
            Contestant("mwms", "mwms", "packed"),
            Contestant(f"{DISTGRAD} on mwms", "mwms", "step"),
            Contestant("ddp", "ddp", "step"),
            *(
                Contestant(f"{name} of {steps}", DISTGRAD, f"{fit} fits of {steps}")
                for name, fit in FITS.items()
                for steps in (SHORT_FIT, LONG_FIT)
            ),
        ),
        (DISTGRAD, FIT_ALONE),
        # What a fit costs whatever its length is not part of a step.
        tuple(
            Difference(name, f"{name} of {LONG_FIT}", f"{name} of {SHORT_FIT}", LONG_FIT - SHORT_FIT) for name in FITS
        ),
    ),
    "accumulate": Table(
        tuple(Case(model) for model in MODELS),
        (
            *(
                Contestant(f"{count} {what}", DISTGRAD, f"{count} {what}")
                for what in ("micro-batches", "micro-batches again", "bare micro-batches")
                for count in (FEW_MICRO_BATCHES, MANY_MICRO_BATCHES)
            ),
        ),
        (DISTGRAD,),
        tuple(
            Difference(
                name,
                f"{MANY_MICRO_BATCHES} {what}",
                f"{FEW_MICRO_BATCHES} {what}",
                MANY_MICRO_BATCHES - FEW_MICRO_BATCHES,
            )
            for name, what in (
                (DISTGRAD, "micro-batches"),
                (f"{DISTGRAD} again", "micro-batches again"),
                ("bare", "bare micro-batches"),
            )
        ),
    ),
    "stats": Table(
        tuple(Case(model) for model in MODELS),
        (
            Contestant(DISTGRAD, DISTGRAD, "step"),
            Contestant(f"{DISTGRAD} again", DISTGRAD, "step again"),
            Contestant("no-statistics", DISTGRAD, "step without statistics"),
            Contestant("all-statistics", DISTGRAD, "step with all statistics"),
            Contestant("no-guards", DISTGRAD, "step without guards"),
            Contestant("compared-each-step", DISTGRAD, "step compared"),
        ),
        (DISTGRAD,),
        period=LOGGED_EVERY,
        rotates=True,
    ),
    "cores": Table(
        tuple(Case(name) for name in FITTED),
        tuple(
            Contestant(f"{name}, {length}", job, f"{length} fit{again}")
            for name, job, again in (
                (DISTGRAD, DISTGRAD, ""),
                (f"{DISTGRAD} again", DISTGRAD, " again"),
                (KERAS, f"{KERAS} in one process", ""),
            )
            for length in ("long", "short")
        ),
        (DISTGRAD,),
        # What a fit costs whatever its length is not part of a step.
        tuple(
            Difference(name, f"{name}, long", f"{name}, short", 1) for name in (DISTGRAD, f"{DISTGRAD} again", KERAS)
        ),
    ),
}


def takes_part(table: str, case: str, contestant: Contestant, quick: bool) -> bool:
    """True if this contestant has anything to do in this case and, if the run is quick, is part of quick runs."""
    if table == "cores":
        return True
    has_work = _has_work_in_sum if table == "sum" else _has_work_on_model
    only_in_full = _only_in_full(contestant) or " fits of " in contestant.turn
    return has_work(case, contestant) and not (quick and only_in_full)


def _has_work_in_sum(case: str, contestant: Contestant) -> bool:
    for_tensors = ("per tensor", "grouped", "packed", "one tensor")  # with one tensor they do what "flat" does
    for_one = ("core", "Allreduce", "Allreduce in place", "memcpy", "limit")
    if contestant.turn in (for_one if "tensors" in case else for_tensors):
        return False
    if case == "256 MB" and contestant.job in (*FULL_MPI_JOBS, *SHORT_CYCLE_JOBS):
        return False  # all jobs of a case are in memory at once
    # A small sum waits for the other ranks, not for memory.
    return not (contestant.name == LIMIT and SUM_BYTES[case] < 16 * MEGABYTE)


def _has_work_on_model(case: str, contestant: Contestant) -> bool:
    if contestant.name == "ddp":
        return case in MLPS  # there is no torch twin of the other models
    if " fits of " in contestant.turn:
        return case in ("small", "wide")
    if contestant.turn == "step sharded":
        return case == WITH_ADAM  # elsewhere it does what the step does
    if contestant.turn == "step densified":
        return case in EMBEDDINGS  # elsewhere it does what the step does
    return case != "embedding 1M" or contestant.job == DISTGRAD  # all jobs of a case are in memory at once


def _only_in_full(contestant: Contestant) -> bool:
    """True if it has never been the fastest of its kind here, and needs a job or much tracing of its own."""
    full_turns = ("packed", "per tensor")
    full_jobs = (*FULL_MPI_JOBS, "horovod-gloo 0.1 ms")
    return contestant.job in full_jobs or contestant.turn in full_turns or contestant.name.startswith(f"{DISTGRAD} on ")
