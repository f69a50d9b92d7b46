"""The documents name what is there, and every example in a docstring runs."""

import doctest
import importlib
import pkgutil
import re

import pytest

import distgrad
from support.launching import ROOT, horovod_installed

README = (ROOT / "README.md").read_text()
GUIDES = sorted(ROOT.glob("distgrad/*/README.md"))  # whose examples go on from the README's
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob(".github/*.md"),
    *GUIDES,
    *ROOT.glob("launch/*.md"),
    *ROOT.glob("docker/*.md"),
    *ROOT.glob("tests/*.md"),
]
LINK = re.compile(r"\]\(((?!http)[^)]+)\)")
LINKS = sorted({(str(page.relative_to(ROOT)), link) for page in PAGES for link in LINK.findall(page.read_text())})


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_links_lead_to_what_is_there(page: str, link: str) -> None:
    assert ((ROOT / page).parent / link).exists()


@pytest.mark.parametrize("command", sorted(set(re.findall(r"\./launch/\S+?(?=[`\s])", README))))
def test_the_readme_s_commands_are_there(command: str) -> None:
    assert (ROOT / command).stat().st_mode & 0o111


def modules() -> list[str]:
    names = [module.name for module in pkgutil.walk_packages(distgrad.__path__, "distgrad.")]
    theirs = ("torch_ddp", *([] if horovod_installed() else ["horovod"]))  # which need the peer
    return [name for name in names if not name.endswith((*theirs, "native.core"))]  # the core is no Python module


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_docstring_examples() -> None:
    finder = doctest.DocTestFinder()
    found = [test for name in modules() for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 3
