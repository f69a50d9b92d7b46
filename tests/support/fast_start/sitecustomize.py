"""TensorFlow and Keras in half the time, for every program that finds this folder on its PYTHONPATH.

Parts of TensorFlow's API that hardly any program uses are loaded when they are used; and Keras is imported without what
it takes along where it is installed, which can be imported later.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import LazyLoader
from types import ModuleType

# What a training uses is not among them, since LazyLoader does not keep two threads from loading a module at once; nor
# is what loads a package of its own name, such as `tensorflow.lite`, which would take its place.
SELDOM_USED = {
    f"tensorflow._api.v2.{name}"
    for name in (
        "__internal__.distribute.combinations",
        "__internal__.distribute.multi_process_runner",
        "__internal__.feature_column",
        "__internal__.test",
        "compat",
        "data.experimental.service",
        "debugging",
        "feature_column",
        "profiler",
        "quantization",
        "summary",
        "tpu",
    )
}
TAKEN_ALONG = ("matplotlib", "pandas", "scipy", "sklearn")


class Finder:
    """Finds what is loaded in another way."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in SELDOM_USED and name != "keras":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = LazyLoader(spec.loader) if name in SELDOM_USED else KerasLoader(name, spec.loader.path)
        return spec


class KerasLoader(SourceFileLoader):
    """Lets it find nothing of what it would take along, unless that is there already."""

    def exec_module(self, module: ModuleType) -> None:
        hidden = [name for name in TAKEN_ALONG if name not in sys.modules]
        sys.modules.update(dict.fromkeys(hidden))
        super().exec_module(module)
        for name in hidden:
            del sys.modules[name]


sys.meta_path.insert(0, Finder)
