"""What is imported with distgrad, in processes of their own: nothing heavy before it is needed."""

import subprocess
import sys


def imported_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_distgrad_imports_nothing_heavy() -> None:
    assert not imported_by("import distgrad.connect, distgrad.launching.world") & {
        "tensorflow",
        "keras",
        "mpi4py",
        "horovod",
    }


def test_the_command_line_is_there_at_once() -> None:
    assert not imported_by("import distgrad.cli") & {"tensorflow", "keras", "numpy", "mpi4py", "horovod"}


def test_a_step_imports_no_foreign_engine() -> None:
    modules = imported_by("import distgrad; distgrad.DistributedStep; distgrad.connect('solo')")
    assert "tensorflow" in modules
    assert not modules & {"mpi4py", "horovod"}
