"""Advice that errors give: what a test expects of one, and all that the product may give."""

import ast
import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import distgrad
from distgrad import errors
from distgrad.errors import DistgradError
from distgrad.launching.engines import ENGINES

PRODUCT, TESTS = Path(distgrad.__file__).parent, Path(__file__).parent.parent
NAMES = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, DistgradError)}
OF_CORE = re.compile(r'Problem\("DG\d+",[^;]*?,\s*"([^"]+)"\);')


@dataclass
class Advice:
    """An error's advice.

    Attributes:
        said: what stood for each {} of it.
    """

    said: tuple[str, ...] = ()


@contextlib.contextmanager
def refused(kind: type[DistgradError], advice: str) -> Iterator[Advice]:
    """Expect an error of this kind with this advice, with {} for what varies. The caller must then follow it."""
    found = Advice()
    with pytest.raises(kind) as caught:
        yield found
    found.said = _match(re.fullmatch(_pattern(advice), caught.value.fix), caught.value.fix)


def advised(said: str, advice: str) -> tuple[str, ...]:
    """Expect that some line of what a process has said is an error with this advice. Returns what stood for each {}."""
    return _match(re.search(f"distgrad: error.*; {_pattern(advice)}$", said, re.MULTILINE), said)


def _match(found: re.Match[str] | None, said: str) -> tuple[str, ...]:
    assert found is not None, said
    return found.groups()


def _pattern(advice: str) -> str:
    return re.escape(advice).replace(r"\{\}", "(.+)")


def all_advice() -> set[str]:
    """Every text of the product that tells what to do about an error, with {} for what varies."""
    found = {engine.fix for engine in ENGINES.values() if engine.fix}
    for path in PRODUCT.rglob("*.py"):
        module = ast.parse(path.read_text())
        calls = (node for node in ast.walk(module) if isinstance(node, ast.Call) and len(node.args) > 1)
        for call in calls:
            if _name(call.func) in {*NAMES, "_unsupported"} or any(one.arg == "everywhere" for one in call.keywords):
                found |= set(_texts(call.args[1], module))
    sources = [path.read_text() for kind in ("*.cpp", "*.h") for path in (PRODUCT / "native").glob(kind)]
    return found | {text for source in sources for text in OF_CORE.findall(source)}


def advice_in_tests() -> set[str]:
    """Every text in the tests that follow advice."""
    sources = [path.read_text() for path in TESTS.rglob("test_*.py")]
    modules = [ast.parse(source) for source in sources if "from support.advice import" in source]
    constants = (node for module in modules for node in ast.walk(module) if isinstance(node, ast.Constant))
    return {constant.value for constant in constants if isinstance(constant.value, str)}


def _name(function: ast.expr) -> str:
    return function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")


def _texts(node: ast.expr, module: ast.Module) -> Iterator[str]:
    """The texts that an expression may be; of a name, those that are assigned to it anywhere in the module.

    Parameters of functions have none: what they are called with is looked at there. So has the advice of an engine.
    """
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
    elif not (isinstance(node, ast.Attribute) and node.attr == "fix"):
        raise TypeError(f"advice that is {ast.unparse(node)}")
