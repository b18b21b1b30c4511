"""Files of experiments to records: folders as Dora lays them out, read without Dora, Hydra or torch.

Layout: `ROOT/grids/<grid>/<sig>` are links to `ROOT/xps/<sig>`, which holds `.argv.json` (overrides),
`history.json` (metrics), `.hydra/config.yaml`, `status.json` and `job.json`. The pickles beside them are
never opened. A damaged file is a line in `Experiment.problems`, not an error: the others still count.
"""

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audiotok.errors import ResultsError
from audiotok.results.files import encodable, read_json_file
from audiotok.results.history import History, read_history
from audiotok.results.parameters import parse_overrides
from audiotok.status import JOB_FILE, STATUS_FILE, experiment_state, read_json

ROOT_VARIABLE = "AUDIOTOK_OUTPUT_DIR"
_SIGNATURE = re.compile(r"[0-9a-f]{4,64}\Z")
_MAX_LISTED = 20


@dataclass(frozen=True)
class Experiment:
    """One experiment, as its files tell it.

    Attributes:
        sig: Dora's signature.
        folder: its folder; it may not exist yet.
        overrides: parameters given to it, parsed, by dotted key.
        state: NOT_STARTED, or the verdict of `audiotok.status`: PENDING, RUNNING, STALE, COMPLETED, ...
        reason: why it is in that state; may be empty.
        history: one {stage: {metric: number}} per epoch; epoch 1 comes first.
        status: content of `status.json`, empty when there is none.
        problems: what could not be read, one line each.
    """

    sig: str
    folder: Path
    overrides: dict[str, Any] = field(default_factory=dict)
    state: str = "NOT_STARTED"
    reason: str = ""
    history: History = field(default_factory=list)
    status: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def output_root(root: str | Path | None = None) -> Path:
    """Folder that holds `grids` and `xps`: the argument, else $AUDIOTOK_OUTPUT_DIR, else ./outputs.

    Raises:
        ResultsError: if there is no such folder.
    """
    path = Path(root or os.environ.get(ROOT_VARIABLE) or "outputs").expanduser()
    if not path.is_dir():
        raise ResultsError(f"no results folder {path}; give one with root (--root) or {ROOT_VARIABLE}.")
    return path


def list_grids(root: str | Path | None = None) -> list[str]:
    """Names of the grids under a results folder, sorted."""
    return _folder_names(output_root(root) / "grids")


def grid_signatures(root: str | Path | None, name: str) -> list[str]:
    """Signatures of a grid, sorted; entries that are not signatures are left out.

    Raises:
        ResultsError: if there is no such grid; the message lists those that exist, the nearest first.
    """
    base = output_root(root)
    grids = _folder_names(base / "grids")
    if name not in grids:  # also keeps names such as ../x from leaving the folder
        raise ResultsError(f"no grid {name!r} in {base / 'grids'}; {_nearest(name, grids)}")
    entries = (entry.name for entry in (base / "grids" / name).iterdir())
    return sorted(entry for entry in entries if _SIGNATURE.match(entry))


def experiment_folder(root: str | Path | None, sig: str, grid: str | None = None) -> Path:
    """Folder of a signature.

    `xps/<sig>` of the same root comes first, so that a folder copied from another machine, where the absolute
    links of the grid lead nowhere (or to another copy), is read as it is. The grid's own entry comes second.

    Raises:
        ResultsError: if `sig` is not a signature.
    """
    if not _SIGNATURE.match(sig):
        raise ResultsError(f"{sig!r} is not a signature: 4 to 64 characters among 0-9 and a-f are expected.")
    base = output_root(root)
    folder = base / "xps" / sig
    if grid is not None and not folder.is_dir():
        linked = base / "grids" / grid / sig
        if linked.is_dir():
            return linked
    return folder


def list_signatures(root: str | Path | None = None) -> list[str]:
    """Signatures of all experiments under a results folder, sorted."""
    return [name for name in _folder_names(output_root(root) / "xps") if _SIGNATURE.match(name)]


def require_signatures(root: str | Path | None, sigs: Iterable[str]) -> list[str]:
    """Check that experiments exist; duplicates are dropped, the order is kept.

    Raises:
        ResultsError: naming the first one that does not, and the nearest that do.
    """
    known = list_signatures(root)
    for sig in (wanted := list(dict.fromkeys(sigs))):
        if sig not in known:
            raise ResultsError(f"no experiment {sig!r} in {output_root(root) / 'xps'}; {_nearest(sig, known)}")
    return wanted


def read_experiment(folder: str | Path) -> Experiment:
    """Read what the files of one experiment say; damaged or missing ones become problems, never errors."""
    folder = Path(folder)
    problems: list[str] = []
    if not folder.is_dir():
        return Experiment(sig=folder.name, folder=folder, problems=["no folder for this signature"])
    history = read_history(folder / "history.json", problems)
    status = read_json(folder / STATUS_FILE)
    for name in (STATUS_FILE, JOB_FILE):
        if (folder / name).exists() and read_json(folder / name) is None:
            problems.append(f"{name} cannot be read")
    state, reason = experiment_state(folder) or ("NOT_STARTED", "")
    return Experiment(
        sig=folder.name,
        folder=folder,
        overrides=_read_overrides(folder / ".argv.json", problems),
        state=encodable(state),
        reason=encodable(reason),
        history=history,
        status=dict(status or {}),
        problems=problems,
    )


def _read_overrides(path: Path, problems: list[str]) -> dict[str, Any]:
    argv = read_json_file(path, list, problems)
    if argv is None and not path.exists():
        problems.append(f"{path.name} is missing: parameters unknown")
    return parse_overrides(item for item in argv or [] if isinstance(item, str))


def _folder_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def _nearest(name: str, known: list[str]) -> str:
    if not known:
        return "there is none yet."
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.3)
    listed = [*near, *(other for other in known if other not in near)]
    more = f", ... ({len(listed) - _MAX_LISTED} more)" if len(listed) > _MAX_LISTED else ""
    return f"there are: {', '.join(listed[:_MAX_LISTED])}{more}."
