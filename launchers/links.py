"""The folder of a grid: a link to each experiment by its signature, and beside it one by its parameters, to read.

The second, such as `losses.mmd=10,rvq.n_q=4-7d863fc7`, is for people: nothing here reads it, and it is replaced when
the parameters that differ in the grid do.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from audiotok.files import write_symlink

_MAX_NAME = 120  # characters before the signature; a file system takes 255
_UNSAFE = re.compile(r"[^A-Za-z0-9._=+,-]+")  # for a shell, or for the tools that copy folders elsewhere


def linked(folder: Path) -> set[str]:
    """Names of the links in the folder of a grid, but for those that are to read."""
    return {name for name, target in _targets(folder).items() if not _is_readable(name, target)}


def write_links(folder: Path, xps: str, sigs: Sequence[str]) -> None:
    """Link experiments by relative paths; links that are there, too, wherever they pointed before."""
    there = linked(folder)
    for name in there | set(sigs):
        link, target = folder / name, Path("../..", xps, name)
        if name not in there or link.readlink() != target:
            write_symlink(link, target)


def write_readable_links(folder: Path, xps: str, names: Mapping[str, str]) -> None:
    """Have a link of its name for each experiment that the folder links, and no others of this kind.

    Args:
        folder: of the grid.
        xps: name of the folder of experiments.
        names: names by signature, any text.
    """
    there = linked(folder)
    own = {readable_name(name, sig): sig for sig, name in names.items() if sig in there}
    for name, target in _targets(folder).items():
        if _is_readable(name, target) and name not in own:
            (folder / name).unlink(missing_ok=True)
    for name, sig in own.items():
        link, target = folder / name, Path("../..", xps, sig)
        if not link.is_symlink() or link.readlink() != target:
            write_symlink(link, target)


def readable_name(text: str, sig: str) -> str:
    """A file name of the name of an experiment and its signature, of ASCII that needs no quotes."""
    plain = re.sub(r"[\[\]'\"]", "", re.sub(r",\s*", "+", text.strip()))
    name = _UNSAFE.sub("_", re.sub(r"\s+", ",", plain))[:_MAX_NAME].strip("._,-")
    return f"{name or 'run'}-{sig}"


def _targets(folder: Path) -> dict[str, Path]:
    """Where the links in a folder lead, by their names; hidden ones are left out."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_symlink() and not entry.name.startswith(".")]
    return {name: (folder / name).readlink() for name in names}


def _is_readable(name: str, target: Path) -> bool:
    return name.endswith(f"-{target.name}")
