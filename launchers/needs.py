"""What experiments need of each other, and which of a grid are to be submitted and wait, for those or for room.

The latter stand in the record of the grid's last launch, `<dora.dir>/plans/<grid>.json` (see `launchers.plan`).
"""

import re
from collections.abc import Iterable
from pathlib import Path

from audiotok.files import UnreadableError, load_json
from audiotok.status import State, experiment_state, read_json, read_status, write_json
from audiotok.status.amendments import EPOCHS, read_amendments
from audiotok.text import number_in

WAITS = "not submitted: waits for room"
_OF_SIG = re.compile(r"""['"]?(?://pretrained/)?//sig/([0-9a-zA-Z_-]+)/?['"]?""")  # value of an override


def needed_by(argv: Iterable[str]) -> list[str]:
    """Signatures of the experiments whose checkpoints these overrides name, such as `continue_from=//sig/SIG`."""
    values = dict(argument.partition("=")[::2] for argument in argv)
    return [match[1] for match in map(_OF_SIG.fullmatch, values.values()) if match]


def extended_since(folder: Path, sigs: Iterable[str]) -> list[str]:
    """A line for each experiment, of these beside it, whose epochs were raised after the one in a folder began."""
    began: float | None = None
    lines = []
    for sig in sigs:
        times = [number_in(one, "time") or 0.0 for one in read_amendments(folder.parent / sig) if EPOCHS in one["keys"]]
        if times and began is None:
            began = number_in(read_status(folder) or {}, "started") or 0.0
        if times and began is not None and max(times) > began:
            lines.append(f"keeps what it has of {sig} before that was extended")
    return lines


def needing(xps: Path, sig: str) -> dict[str, list[str]]:
    """Signatures of the experiments that need one, by the state of each; `xps` is the folder of all."""
    found: dict[str, list[str]] = {}
    for path in sorted(xps.glob("*/.argv.json")):
        try:
            argv = load_json(path, list)
        except (OSError, UnreadableError):
            continue
        if sig in needed_by(str(argument) for argument in argv):
            verdict = experiment_state(path.parent)
            found.setdefault(str(verdict.state if verdict else State.NOT_STARTED), []).append(path.parent.name)
    return found


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
