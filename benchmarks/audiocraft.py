"""Modules of AudioCraft from a clone of its repository, without the packages that import everything else.

They need the package einops. What their optional imports would give is replaced by stand-ins.
"""

import importlib
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

# Packages whose own code would import half of PyPI: only their modules are reached.
_BARE = ("", ".losses", ".models", ".solvers", ".utils", ".utils.samples")
_ABSENT = ("transformers", "xformers", "xformers.ops")


class StandIn(types.ModuleType):
    """A module in which every name is a class."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *args, **options: None})


def import_audiocraft(clone: Path, names: Iterable[str], *, without: Iterable[str] = ()) -> list[Any]:
    """Its modules `names`, below `audiocraft`; those in `without` are stand-ins to them."""
    for name in _BARE:
        kind = StandIn if name == ".models" else types.ModuleType  # the solver names classes of it
        package = kind(f"audiocraft{name}")
        package.__path__ = [str(clone / "audiocraft" / name.strip(".").replace(".", "/"))]
        sys.modules[package.__name__] = package
    for name in (*_ABSENT, *(f"audiocraft.{name}" for name in without)):
        sys.modules[name] = StandIn(name)
    ops = sys.modules["xformers.ops"]
    ops.__dict__["unbind"], sys.modules["xformers"].__dict__["ops"] = torch.unbind, ops
    return [importlib.import_module(f"audiocraft.{name}") for name in names]
