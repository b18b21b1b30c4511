"""Finds experiments and files that are not where today's configuration or a path that was written down has them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dora.main import DecoratedMain
from dora.xp import XP

from audiotok.experiments.frozen import FROZEN_FILE
from audiotok.launchers.engine import job_of
from audiotok.status import read_json


def xp_of_sig(main: DecoratedMain, sig: str) -> XP:
    """The experiment of a signature, even one that the configuration of today cannot make any more.

    Dora asks for those that left a grid, to cancel them; that needs no configuration.
    """
    folder = Path(main.dora.dir) / main.dora.xps / sig
    frozen = read_json(folder / FROZEN_FILE) or {}
    if isinstance(frozen.get("delta"), list) and isinstance(frozen.get("argv"), list):
        return _bare_xp(main, sig, frozen["argv"], frozen["delta"])
    try:
        xp = main.get_xp_from_sig(sig)
    except Exception:
        if job_of(folder) is None:
            raise
        return _bare_xp(main, sig, [], [])
    return xp if xp.sig == sig else _bare_xp(main, sig, xp.argv, xp.delta or [])


def find_moved(path: Path, dora_dir: Path, *, xps: str) -> Path:
    """Where a file of a Dora folder is now, which may have been moved since its path was written down.

    Args:
        path: as it was written down.
        dora_dir: the Dora folder.
        xps: name of the folder of experiments in it.
    """
    if path.exists():
        return path
    for name in ("submissions", xps, "local"):
        if name in path.parts:
            place = len(path.parts) - 1 - path.parts[::-1].index(name)
            moved = dora_dir.joinpath(*path.parts[place:])
            if moved.parent.exists():
                return moved
    return path


def _bare_xp(main: DecoratedMain, sig: str, argv: Sequence[str], delta: Sequence[Any]) -> XP:
    """An experiment without its configuration."""
    xp = XP(main.dora, None, list(argv), sig=sig)
    xp.delta = [(key, value) for key, value in delta]  # not given above: Dora would import torch to look at it
    return xp
