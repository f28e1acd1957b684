"""Modules that are named like their one function and can be called like it."""

import inspect
import sys
import types
from collections.abc import Callable
from typing import Any


def make_callable(name: str, function: Callable) -> None:
    """Calls `function` where the module of this name is called.

    `import dlmjax.train` makes `dlmjax.train` the module, whatever it was before: only so is `dlmjax.train(config, workdir)` the same
    before and after.
    """

    class Module(types.ModuleType):
        """A module that can be called."""

        __signature__ = inspect.signature(function)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

    sys.modules[name].__class__ = Module
