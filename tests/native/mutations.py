"""Faults that are put into copies of the core's sources, one at a time. The harness must notice each of them.

    PYTHONPATH=tests python -m native.mutations

Prints a line for each fault and ends with status 1 if one of them was not noticed. Takes twelve minutes.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from native import harness
from native.harness import CORE, MEMORY, THREADS, Build

SECONDS = 40  # after which ranks that wait for one another for ever are taken for a fault that is noticed


class Mutation(NamedTuple):
    """A fault: one text of one file replaced, and how the harness is run to notice it."""

    name: str
    file: str
    text: str
    replacement: str
    build: Build
    words: tuple[object, ...]


MUTATIONS = (
    Mutation(
        "the arrival at a meeting is no release",
        "meeting.cpp",
        "own.arrived.store(meeting, std::memory_order_seq_cst);",
        "own.arrived.store(meeting, std::memory_order_relaxed);",
        THREADS,
        ("threads", 3),
    ),
    Mutation(
        "who sees an arrival does not acquire",
        "meeting.cpp",
        "seat.arrived.load(std::memory_order_acquire)",
        "seat.arrived.load(std::memory_order_relaxed)",
        THREADS,
        ("threads", 3),
    ),
    Mutation(
        "the end of a lease is no release",
        "shared_memory.cpp",
        "fetch_sub(1, std::memory_order_release)",
        "fetch_sub(1, std::memory_order_relaxed)",
        THREADS,
        ("threads", 3, 2000),
    ),
    Mutation(
        "who finds a result free does not acquire",
        "shared_memory.cpp",
        "leases_[result].load(std::memory_order_acquire)",
        "leases_[result].load(std::memory_order_relaxed)",
        THREADS,
        ("threads", 3, 2000),
    ),
    Mutation(
        "a result that is lent is written again",
        "window.cpp",
        "kLendable : free_result(lent);",
        "kLendable : 0;",
        MEMORY,
        ("processes", 3),
    ),
    Mutation(
        "no meeting before the shards are added",
        "window.cpp",
        "published_->lent_results() : 0;\n  meet();",
        "published_->lent_results() : 0;",
        MEMORY,
        ("processes", 3),
    ),
    Mutation(
        "no meeting behind the shards",
        "window.cpp",
        "sum_shard(request);\n    meet();",
        "sum_shard(request);",
        MEMORY,
        ("processes", 3),
    ),
    Mutation(
        "small vectors of sums in a row stand in one place",
        "window.cpp",
        "turn_ = (turn_ + 1) % kTurns;",
        "",
        THREADS,
        ("threads", 3),
    ),
    Mutation(
        "a vector that is lent is published into again",
        "window.cpp",
        "published_number_ = free_result(lent_published);",
        "published_number_ = 0;",
        MEMORY,
        ("processes", 3),
    ),
    Mutation(
        "no meeting behind the parts of a publication",
        "publication.cpp",
        "  meet();\n",
        "",
        MEMORY,
        ("processes", 3),
    ),
    Mutation(
        "rows stay touched after a sum",
        "sparse_variable.cpp",
        "for (std::int64_t row : touched_) positions_[row] = 0;",
        "",
        MEMORY,
        ("processes", 2),
    ),
    Mutation(
        "a gradient of any size is added",
        "accumulate.cpp",
        "if (entries == 0 || entries == place.entries) return;",
        "return;",
        MEMORY,
        ("checks",),
    ),
    Mutation(
        "the row behind the last one is a row",
        "sparse_variable.cpp",
        "touched[i] < rows",
        "touched[i] <= rows",
        MEMORY,
        ("checks",),
    ),
    Mutation(
        "a second thread does not wait",
        "window.cpp",
        "    use.lock();\n",
        "",
        THREADS,
        ("checks",),
    ),
    Mutation(
        "a second thread of one of several ranks is let in",
        "window.cpp",
        "if (has_others_) overlapped_ = true;",
        "",
        MEMORY,
        ("checks",),
    ),
)


def is_noticed(mutation: Mutation, objects: list[Path], folder: Path) -> bool:
    """Whether the harness fails with this fault in it.

    Args:
        objects: of the sources as they are, by which all but one file are linked.
        folder: where the faulty file and program go.
    """
    source = (CORE / mutation.file).read_text()
    assert source.count(mutation.text) == 1, f"{mutation.name}: the text is not in {mutation.file} once"
    faulty = folder / mutation.file
    faulty.write_text(source.replace(mutation.text, mutation.replacement))
    made = harness.compile_file(mutation.build, faulty, folder)
    others = [path for path in objects if path.name != made.name]
    program = harness.link(mutation.build, [*others, made], folder)
    try:
        return harness.run(mutation.build, program, *mutation.words, seconds=SECONDS).returncode != 0
    except subprocess.TimeoutExpired:
        return True


def unnoticed() -> list[str]:
    """The names of the faults that the harness does not notice; prints a line for each fault."""
    missed = []
    with tempfile.TemporaryDirectory(prefix="distgrad-mutations-") as name:
        objects = {}
        for build in (THREADS, MEMORY):
            folder = Path(name, build.name)
            folder.mkdir()
            objects[build] = harness.compiled(build, folder)
        for number, mutation in enumerate(MUTATIONS):
            folder = Path(name, str(number))
            folder.mkdir()
            noticed = is_noticed(mutation, objects[mutation.build], folder)
            print(f"{'noticed' if noticed else 'MISSED'}: {mutation.name}", flush=True)
            missed += [] if noticed else [mutation.name]
    return missed


if __name__ == "__main__":
    sys.exit(bool(unnoticed()))
