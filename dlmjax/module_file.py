"""The Python file of a network of one's own, `model.family="my_module.py:build"`: build(model, vocab, rngs) returns a `flax.nnx` module.

model: the section `model` of the config, of which the function reads what it likes (`model.width`, `model.depth`, `model.dropout`).
vocab: classes of the logits.  rngs: `nnx.Rngs`.

A relative path is beside the config file. The file is run when its config is trained. A workdir has a copy, `FILE`, which is run only for a
caller that says so: a workdir may come from elsewhere. It is one file: what it imports must be installed.
"""

import dataclasses
import hashlib
import pathlib
import sys
import types
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from dlmjax.config import errors_as_lines
from dlmjax.errors import InputError
from dlmjax.models import OwnNetwork, from_nnx
from dlmjax.models.families import own_module
from dlmjax.models.layout import SINGLE, Layout

FILE = "module.py"
STAND_IN = 11  # size of the vocabulary with which shapes are checked before a corpus is opened


@dataclasses.dataclass(frozen=True)
class ModuleFile:
    """A file that was read, and the name of the function in it that builds the network. path: for messages; nothing is read from it."""

    path: pathlib.Path
    function: str
    content: bytes

    @property
    def sha256(self) -> str:
        """Of the content, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    def builder(self) -> Callable:
        """Runs the file and returns its function. Raises InputError: the file fails, or has no such function."""
        path, name = str(self.path), f"dlmjax_module_{self.sha256[:12]}"
        module = types.ModuleType(name)
        module.__file__ = path
        sys.modules[name] = module  # dataclasses look their module up
        with errors_as_lines(path):
            exec(compile(self.content, path, "exec"), vars(module))
        build = vars(module).get(self.function)
        if not callable(build):
            raise InputError(f"model.family: {path} has no function {self.function}(model, vocab, rngs)")
        return build

    def network(self, config: ConfigDict, vocab: int, layout: Layout = SINGLE) -> OwnNetwork:
        """The network of a config. Raises InputError: the function fails, or the module is not one that can be trained."""
        build, model, path = self.builder(), config.model.copy_and_resolve_references(), str(self.path)

        def make(rngs: Any) -> Any:
            with errors_as_lines(path):
                return build(model, vocab, rngs)

        name = f"model.family={self.path.name}:{self.function}"
        network = from_nnx(make, vocab=vocab, length=config.data.length, layout=layout, name=name)
        return dataclasses.replace(network, execution=dataclasses.replace(network.execution, head_chunk=config.execution.head_chunk))


def read(config: ConfigDict) -> ModuleFile | None:
    """The file that `model.family` names, with its network checked on a stand-in vocabulary; None for a family.

    Runs the file: for configs that the user named, not for those of a workdir. Raises InputError: it cannot be read, and as
    `ModuleFile.network`.
    """
    named = own_module(config.model.family)
    if named is None:
        return None
    path = pathlib.Path(named[0])
    try:
        found = ModuleFile(path, named[1], path.read_bytes())
    except OSError as error:
        raise InputError(
            f"model.family: {path} cannot be read ({error.strerror}); give a file beside the config, or its whole path"
        ) from None
    found.network(config, config.model.vocab or STAND_IN)
    return found
