"""Advice that errors give: what a test expects of one, and all that the product may give."""

import ast
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import distgrad
from distgrad import errors
from distgrad.errors import DistgradError
from distgrad.launching.engines import ENGINES

PRODUCT, TESTS = Path(distgrad.__file__).parent, Path(__file__).parent.parent
NAMES = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, DistgradError)}


@contextlib.contextmanager
def refused(kind: type[DistgradError], advice: str) -> Iterator[None]:
    """Expect an error of this kind that gives this advice, with {} for what varies; the test then takes it."""
    with pytest.raises(kind) as caught:
        yield
    assert re.fullmatch(_pattern(advice), caught.value.fix), caught.value.fix


def advised(said: str, advice: str) -> None:
    """Expect that some line of what a process has said is an error that gives this advice."""
    assert re.search(f"distgrad: error.*; {_pattern(advice)}$", said, re.MULTILINE), said


def _pattern(advice: str) -> str:
    return re.escape(advice).replace(r"\{\}", ".+")


def all_advice() -> set[str]:
    """Every text of the product that tells what to do about an error, with {} for what varies."""
    found = {engine.fix for engine in ENGINES.values() if engine.fix}
    for path in PRODUCT.rglob("*.py"):
        module = ast.parse(path.read_text())
        calls = (node for node in ast.walk(module) if isinstance(node, ast.Call) and len(node.args) > 1)
        for call in calls:
            is_error = isinstance(call.func, ast.Name) and call.func.id in NAMES
            if is_error or any(keyword.arg == "everywhere" for keyword in call.keywords):
                found |= set(_texts(call.args[1], module))
    return found


def advice_in_tests() -> set[str]:
    """Every text in the tests that take advice."""
    modules = (ast.parse(path.read_text()) for path in TESTS.rglob("test_advice.py"))
    constants = (node for module in modules for node in ast.walk(module) if isinstance(node, ast.Constant))
    return {constant.value for constant in constants if isinstance(constant.value, str)}


def _texts(node: ast.expr, module: ast.Module) -> Iterator[str]:
    """The texts that an expression may be; of a name, those that are assigned to it anywhere in the module."""
    if isinstance(node, ast.Name):
        for one in ast.walk(module):
            if isinstance(one, ast.Assign) and any(isinstance(to, ast.Name) and to.id == node.id for to in one.targets):
                yield from _texts(one.value, module)
    elif isinstance(node, ast.IfExp):
        yield from (text for one in (node.body, node.orelse) for text in _texts(one, module))
    elif isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
