"""Whether rounded gradients train as well as exact ones: PYTHONPATH=tests python -m measure.convergence [seeds]

Two hosts (network namespaces, a worker on each) train the digits and the text of launch/, each from several seeds, with
gradients between the hosts as they are and as bfloat16. Of each seed both see the same weights first and the same
batches. The table has the accuracy on the digits' test images, and the loss of the text's last batch.
"""

import statistics
import sys
from pathlib import Path
from typing import NamedTuple

from support.hosts import Hosts, joined_hosts
from support.launching import recipe

SEEDS = 5
MODES = ("none", "bf16")


class Task(NamedTuple):
    """A training: its program, its arguments, and what its result stands behind in what it prints."""

    script: Path
    arguments: tuple[str, ...]
    before: str


TASKS = {
    "digits, test accuracy": Task(recipe("train_digits.py"), (), "test accuracy"),
    "text, last loss": Task(recipe("train_text.py"), ("--steps", "300"), "step 300 | loss"),
}


def result(hosts: Hosts, task: Task, seed: int, mode: str) -> float:
    """The number that one training ends with."""
    words = [str(task.script), *task.arguments, "--seed", str(seed), "--compression", mode]
    job = hosts.run(1, words, timeout=900)
    assert job.status == 0, job.err[-3000:]
    return float(job.out.split(task.before)[1].split()[0])


def main() -> None:
    seeds = range(int(sys.argv[1]) if len(sys.argv) > 1 else SEEDS)
    print("| | " + " | ".join(f"{mode}, mean ± deviation" for mode in MODES) + " | bf16 - none, by seed |")
    print("|---|---|---|---|", flush=True)
    with joined_hosts() as hosts:
        for name, task in TASKS.items():
            found = {mode: [] for mode in MODES}
            for seed in seeds:
                for mode in MODES:
                    found[mode].append(result(hosts, task, seed, mode))
            cells = [f"{statistics.mean(each):.4f} ± {statistics.stdev(each):.4f}" for each in found.values()]
            differences = [f"{after - before:+.4f}" for before, after in zip(*found.values(), strict=True)]
            print(f"| {name} | {' | '.join(cells)} | {', '.join(differences)} |", flush=True)


if __name__ == "__main__":
    main()
