"""Every optimizer, loss, metric and layer of Keras on the workers, against Keras alone.

    mpirun -np 2 python tests/measure/sweep.py [--only optimizers|losses|metrics|layers] [--name NAME ...]
    distgrad run -np 2 tests/measure/sweep.py

Each class trains a small model for two epochs (support/sweep_zoo.py). Weights, logs and `evaluate` must be those of one
process. One line a class says whether they are, and what distgrad has printed; a table of those that differ comes last.
The status is 1 if something differs, or fails, and distgrad has not said so.
"""

import argparse
import gc
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # however this is launched

import distgrad
from support.sweep_zoo import BASES, DIFFERS, ERROR, OK, SKIPPED, Case, Outcome, cases, run


def lines(case: Case, outcome: Outcome) -> Iterator[str]:
    """Say what came of a case."""
    size = "" if outcome.status in (ERROR, SKIPPED) else f" {outcome.difference:.1e}"
    yield f"{outcome.status}{size} {case.kind} {case.title}{'' if outcome.status == OK else f': {outcome.text}'}"
    yield from (f"    {note}" for note in outcome.notes)


def table(found: list[tuple[Case, Outcome]]) -> Iterator[str]:
    """Draw those that differ."""
    yield "| class | what | difference | reason that distgrad prints |\n|---|---|---|---|"
    for case, outcome in found:
        size = outcome.status if outcome.status == ERROR else f"{outcome.difference:.1e}"
        reason = "; ".join(note.removeprefix("distgrad: ") for note in outcome.notes)
        cells = [f"{case.kind} {case.title}", outcome.text, size, reason or ("itself" if outcome.is_told else "none")]
        yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(BASES))
    parser.add_argument("--name", nargs="+", default=(), help="of classes; errors are shown with their traceback")
    given = parser.parse_args()
    comm = distgrad.connect()
    began, found = time.perf_counter(), []
    for kind in [given.only] if given.only else BASES:
        for case in cases(kind, given.name):
            gc.freeze()  # what is imported, and what TensorFlow keeps of other cases, is not looked through any more
            outcome = run(comm, case)
            found.append((case, outcome))
            if comm.is_root:
                print("\n".join([*lines(case, outcome), *([outcome.trace] if given.name else [])]), flush=True)
    silent = sum(outcome.is_silent for _, outcome in found)
    if comm.is_root:
        print("\n".join(table([pair for pair in found if pair[1].status in (DIFFERS, ERROR)])))
        counts = [
            f"{sum(one.status == status for _, one in found)} {status}" for status in (OK, DIFFERS, ERROR, SKIPPED)
        ]
        print(f"{', '.join(counts)}, {silent} of them silently, in {time.perf_counter() - began:.0f} s", flush=True)
    comm.barrier()
    comm.close()
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
