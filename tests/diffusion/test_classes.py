"""Classes of dlmjax.diffusion are abstract or final, and no subclass switches a field of its parent off."""

import dataclasses
import importlib
import inspect
import pkgutil

import dlmjax.diffusion

MODULES = [importlib.import_module(found.name) for found in pkgutil.walk_packages(dlmjax.diffusion.__path__, "dlmjax.diffusion.")]
CLASSES = {cls for module in MODULES for cls in vars(module).values() if inspect.isclass(cls) and cls.__module__ == module.__name__}


def test_a_class_is_abstract_or_final():
    assert len(CLASSES) > 60
    parents = {parent for cls in CLASSES for parent in cls.__bases__ if parent in CLASSES}
    concrete = {cls.__name__ for cls in parents if not inspect.isabstract(cls) and not getattr(cls, "_is_protocol", False)}
    assert not concrete, "these have subclasses and can be instantiated"


def test_no_subclass_switches_a_field_off():
    records = [cls for cls in CLASSES if dataclasses.is_dataclass(cls)]
    fields = {(cls.__name__, field.name) for cls in records for field in dataclasses.fields(cls) if not field.init}
    assert not fields, "a field that cannot be given is not a field of this class"
