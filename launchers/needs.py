"""What experiments need of each other, and which of a grid are to be submitted and wait, for those or for room.

The latter stand in the record of the grid's last launch, `<dora.dir>/plans/<grid>.json` (see `launchers.plan`).
"""

import re
from collections.abc import Iterable
from pathlib import Path

from audiotok.status import read_json, write_json

WAITS = "not submitted: waits for room"
_OF_SIG = re.compile(r"""['"]?(?://pretrained/)?//sig/([0-9a-zA-Z_-]+)/?['"]?""")  # value of an override


def needed_by(argv: Iterable[str]) -> list[str]:
    """Signatures of the experiments whose checkpoints these overrides name, such as `continue_from=//sig/SIG`."""
    values = dict(argument.partition("=")[::2] for argument in argv)
    return [match[1] for match in map(_OF_SIG.fullmatch, values.values()) if match]


def record_path(root: Path, grid: str) -> Path:
    """File of the last launch of a grid; `root` is `dora.dir`."""
    return root / "plans" / f"{grid}.json"


def waiting_in(root: Path, grid: str) -> set[str]:
    """Signatures of the experiments of a grid that are to be submitted and wait."""
    waiting = (read_json(record_path(root, grid)) or {}).get("waiting")
    return set(map(str, waiting)) if isinstance(waiting, list) else set()


def set_waiting(root: Path, grid: str, sigs: Iterable[str]) -> None:
    """Record which experiments wait; called under the lock of the grid.

    Raises:
        OSError: if the disk refuses.
    """
    path, waiting = record_path(root, grid), sorted(sigs)
    content = read_json(path) or {}
    if waiting != content.get("waiting", []):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**content, "waiting": waiting})


def grids_waiting(root: Path) -> dict[str, str]:
    """The experiments that wait in any grid, by signature, and the name of that grid."""
    grids = [path.name.removesuffix(".json") for path in sorted(record_path(root, "").parent.glob("*.json"))]
    return {sig: grid for grid in grids for sig in waiting_in(root, grid)}
