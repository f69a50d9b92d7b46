"""Examples in the README, in the guides of distgrad's folders and in docstrings run; links lead to what is there."""

import doctest
import importlib
import pkgutil
import re
import sys
import textwrap
from pathlib import Path

import pytest

import distgrad
from support.launching import AS_IT_IS, ROOT, launch, run

BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
README = (ROOT / "README.md").read_text()
GUIDES = sorted(ROOT.glob("distgrad/*/README.md"))  # whose examples go on from the README's
EXAMPLES = [README, *(guide.read_text() for guide in GUIDES)]
PROGRAM = "\n".join(textwrap.dedent(body) for page in EXAMPLES for _, body in BLOCK.findall(page))
PAGES = [*ROOT.glob("*.md"), *GUIDES, *ROOT.glob("launch/*.md"), *ROOT.glob("docker/*.md"), *ROOT.glob("tests/*.md")]
LINK = re.compile(r"\]\(((?!http)[^)]+)\)")
LINKS = sorted({(str(page.relative_to(ROOT)), link) for page in PAGES for link in LINK.findall(page.read_text())})


def program(folder: Path) -> str:
    """All examples, in a folder of their own."""
    return f"import os\nos.chdir({str(folder)!r})\n{PROGRAM}"


def test_the_examples_run_in_order(tmp_path: Path) -> None:
    assert PROGRAM.count("distgrad.") >= 4
    job = run([sys.executable, "-W", "error::UserWarning", "-c", program(tmp_path)], env=AS_IT_IS)
    assert job.status == 0, job.err
    assert "workers 1" in job.out
    assert "max |entry|" in job.out


def test_and_on_two_workers(tmp_path: Path) -> None:
    job = launch("mpi", 2, ["-c", program(tmp_path)])[0]
    assert job.status == 0, job.err
    assert "workers 2" in job.out


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_links_lead_to_what_is_there(page: str, link: str) -> None:
    assert ((ROOT / page).parent / link).exists()


@pytest.mark.parametrize("command", sorted(set(re.findall(r"\./launch/\S+?(?=[`\s])", README))))
def test_the_readme_s_commands_are_there(command: str) -> None:
    assert (ROOT / command).stat().st_mode & 0o111


def modules() -> list[str]:
    names = [module.name for module in pkgutil.walk_packages(distgrad.__path__, "distgrad.")]
    theirs = ("hvd", "keras_horovod", "torch_ddp")  # which need the peer
    return [name for name in names if not name.endswith((*theirs, "native.core"))]  # the core is no Python module


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_docstring_examples() -> None:
    finder = doctest.DocTestFinder()
    found = [test for name in modules() for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 3
