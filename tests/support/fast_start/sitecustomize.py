"""TensorFlow and Keras in half the time, for every program that finds this folder on its PYTHONPATH.

Each part of TensorFlow's API, such as `tf.lite`, is loaded when it is used, which most never are; and Keras is imported
without what it takes along where it is installed, which can be imported later.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import LazyLoader
from types import ModuleType

PARTS_OF_THE_API = "tensorflow._api.v2."
OLD_API = "tensorflow._api.v2.compat."  # takes its own modules' places while it is loaded, which must be in one go
TAKEN_ALONG = ("matplotlib", "pandas", "scipy", "sklearn")


class Finder:
    """Finds what is loaded in another way."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        is_keras = name == "keras"
        if not is_keras and (not name.startswith(PARTS_OF_THE_API) or name.startswith(OLD_API)):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec and isinstance(spec.loader, SourceFileLoader):
            spec.loader = KerasLoader(name, spec.loader.path) if is_keras else LazyLoader(spec.loader)
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
