"""Who meets whom on what: the tables, their cases, the contestants, and the jobs they run in."""

from collections.abc import Mapping
from typing import NamedTuple

OWN, LIMIT = "distgrad", "limit"
HOROVODS = ("horovod-mpi", "horovod-gloo")
PEERS = ("mpi", *HOROVODS, "mwms", "ddp", "memcpy")
LOCAL = ("no-communication", "by-hand-no-communication")  # their steps are not the global one, on purpose


class Job(NamedTuple):
    """Ranks that live through the whole run: which module of `engines` they run, by which launcher, set up how.

    `can_pause` is False where the ranks take each other for dead after some seconds of silence.
    """

    engine: str
    launcher: str
    environment: Mapping[str, str] = {}
    can_pause: bool = True


class Contestant(NamedTuple):
    """One way to do the work: whom its time counts for, the job whose ranks do it, and which of the engine's turns."""

    name: str
    job: str
    turn: str

    @property
    def peer(self) -> str:
        """Whom one leaves out by leaving out this contestant: one of PEERS, or OWN, or LIMIT."""
        return self.name if self.name in (*PEERS, LIMIT) else self.job.split()[0]

    @property
    def label(self) -> str:
        """All of it, to tell one peer's configurations apart."""
        return f"{self.name}: {self.turn} ({self.job})"


class Case(NamedTuple):
    """One line of a table; `quick` runs keep only some."""

    name: str
    quick: bool = True


class Difference(NamedTuple):
    """A contestant whose time is the difference of two others' in the same round, over `times`."""

    name: str
    longer: str
    shorter: str
    times: int


class Table(NamedTuple):
    """What is measured: on which cases, by whom, and which of them are compared with all the others.

    Of `period` calls one may cost more than the others, so each turn takes a multiple of them. Where contestants differ
    by less than the few percent that come of having been built first, the building `rotates`: each is first once.
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
    OWN: Job("keras_mpi", "mpirun"),
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
}

HOROVOD_JOBS = tuple(job for job in JOBS if job.startswith(HOROVODS))
SHORT_CYCLE_JOBS = tuple(job for job in HOROVOD_JOBS if job.endswith(" 0.1 ms"))
FULL_MPI_JOBS = ("mpi recursive doubling", "mpi Rabenseifner", "mpi copies through shared memory")
MPI_JOBS = tuple(job for job in JOBS if JOBS[job].engine == "plain_mpi")


def _horovod(*turns: str) -> tuple[Contestant, ...]:
    return tuple(Contestant(job.split()[0], job, turn) for job in HOROVOD_JOBS for turn in turns)


MEGABYTE = 1_000_000
SUM_BYTES = {"4 KB": 4096, "64 KB": 65536} | {f"{n} MB": n * MEGABYTE for n in (1, 16, 64, 100, 256)}
LOGGED = 10  # steps, of which one is logged
MANY = 50  # tensors
FEW, MORE = 4, 12  # micro-batches
SHORT, LONG = 1, 5  # steps of a fit
FIT, FIT_ALONE, KERAS_ALONE = f"{OWN} fit", f"{OWN} fit alone", "keras fit alone"
FITS = {FIT: "workers", FIT_ALONE: "one", KERAS_ALONE: "Keras"}
MODELS = ("small", "deep", "wide", "cnn", "transformer")
MLPS = ("small", "deep", "wide")
# Tables of which a step touches 2048 rows, or some fewer where two numbers are the same: from a tenth of them down.
EMBEDDINGS = {"embedding 20k": 20_000, "embedding 200k": 200_000, "embedding 1M": 1_000_000}

TABLES = {
    "sum": Table(
        (
            *(Case(name, quick=name in ("4 KB", "1 MB", "100 MB")) for name in SUM_BYTES),
            Case(f"100 MB in {MANY} tensors"),
        ),
        (
            Contestant(OWN, OWN, "graph"),
            Contestant(f"{OWN} again", OWN, "graph again"),
            Contestant(f"{OWN} core", OWN, "core"),
            *(Contestant("mpi", job, turn) for job in MPI_JOBS for turn in ("Allreduce", "Allreduce in place")),
            *_horovod("flat", "per tensor", "grouped"),
            *(Contestant(f"{OWN} on {job.split()[0]}", job, "graph") for job in HOROVOD_JOBS),
            Contestant("mwms", "mwms", "flat"),
            Contestant("mwms", "mwms", "packed"),
            Contestant("memcpy", "mpi default", "memcpy"),
            Contestant(LIMIT, OWN, "limit"),
            Contestant(f"{OWN} one tensor", OWN, "one tensor"),
        ),
        (OWN, f"{OWN} core"),
    ),
    "step": Table(
        (*(Case(model) for model in MODELS), *(Case(name, quick="200k" in name) for name in EMBEDDINGS)),
        (
            Contestant(OWN, OWN, "step"),
            Contestant(f"{OWN} again", OWN, "step again"),
            Contestant(f"{OWN} densified", OWN, "step densified"),
            Contestant(LOCAL[0], OWN, "step alone"),
            Contestant(LOCAL[1], OWN, "by hand"),
            *_horovod("flat", "per tensor", "grouped"),
            *(Contestant(f"{OWN} on {job.split()[0]}", job, "step") for job in HOROVOD_JOBS),
            Contestant("mwms", "mwms", "flat"),
            Contestant("mwms", "mwms", "packed"),
            Contestant(f"{OWN} on mwms", "mwms", "step"),
            Contestant("ddp", "ddp", "step"),
            *(
                Contestant(f"{name} of {steps}", OWN, f"{who} fits of {steps}")
                for name, who in FITS.items()
                for steps in (SHORT, LONG)
            ),
        ),
        (OWN, FIT_ALONE),
        # What a fit costs whatever its length is not part of a step.
        tuple(Difference(name, f"{name} of {LONG}", f"{name} of {SHORT}", LONG - SHORT) for name in FITS),
    ),
    "accumulate": Table(
        tuple(Case(model) for model in MODELS),
        (
            *(
                Contestant(f"{count} {what}", OWN, f"{count} {what}")
                for what in ("micro-batches", "micro-batches again", "bare micro-batches")
                for count in (FEW, MORE)
            ),
        ),
        (OWN,),
        tuple(
            Difference(name, f"{MORE} {what}", f"{FEW} {what}", MORE - FEW)
            for name, what in (
                (OWN, "micro-batches"),
                (f"{OWN} again", "micro-batches again"),
                ("bare", "bare micro-batches"),
            )
        ),
    ),
    "stats": Table(
        tuple(Case(model) for model in MODELS),
        (
            Contestant(OWN, OWN, "step"),
            Contestant(f"{OWN} again", OWN, "step again"),
            Contestant("no-statistics", OWN, "step without statistics"),
            Contestant("all-statistics", OWN, "step with all statistics"),
            Contestant("no-guards", OWN, "step without guards"),
            Contestant("compared-each-step", OWN, "step compared"),
        ),
        (OWN,),
        period=LOGGED,
        rotates=True,
    ),
}


def takes_part(table: str, case: str, contestant: Contestant, quick: bool) -> bool:
    """Whether this contestant has anything to do in this case, and is among those of a quick run."""
    has_work = _has_work_in_sum if table == "sum" else _has_work_on_model
    only_in_full = _only_in_full(contestant) or " fits of " in contestant.turn
    return has_work(case, contestant) and not (quick and only_in_full)


def _has_work_in_sum(case: str, contestant: Contestant) -> bool:
    many = "tensors" in case
    of_many = ("per tensor", "grouped", "packed", "one tensor")  # with one tensor they do what "flat" does
    of_one = ("core", "Allreduce", "Allreduce in place", "memcpy", "limit")
    if contestant.turn in (of_one if many else of_many):
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
    if contestant.turn == "step densified":
        return case in EMBEDDINGS  # elsewhere it does what the step does
    return case != "embedding 1M" or contestant.job == OWN  # all jobs of a case are in memory at once


def _only_in_full(contestant: Contestant) -> bool:
    """What has never been the best of its kind here, and needs a job or much tracing of its own."""
    full_turns = ("packed", "per tensor")
    full_jobs = (*FULL_MPI_JOBS, "horovod-gloo 0.1 ms")
    return contestant.job in full_jobs or contestant.turn in full_turns or contestant.name.startswith(f"{OWN} on ")
