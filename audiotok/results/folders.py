"""Where experiments lie: folders as Dora lays them out, found without Dora, Hydra or torch.

Layout: `ROOT/grids/<grid>/<sig>` are links to `ROOT/xps/<sig>`, which holds `.argv.json` (overrides),
`history.json` (metrics), `frozen.json` or `.hydra/config.yaml`, `status.json`, `job.json` and `task.json`. The pickles
beside them are never opened.
"""

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from audiotok.cluster import output_dir
from audiotok.errors import ResultsError

ROOT_VARIABLE = "AUDIOTOK_OUTPUT_DIR"
_SIGNATURE = re.compile(r"[0-9a-f]{4,64}\Z")
_MAX_LISTED = 20


Root = str | Path | None
Roots = Root | Sequence[str | Path]


def output_root(root: Root = None) -> Path:
    """Folder that holds `grids` and `xps`: the argument, else $AUDIOTOK_OUTPUT_DIR, else that of the cluster's profile.

    Raises:
        ConfigError: if the profile cannot be read.
        ResultsError: if there is no such folder.
    """
    path = Path(root or output_dir(os.environ)).expanduser()
    if not path.is_dir():
        raise ResultsError(f"no results folder {path}; give one with root (--root) or {ROOT_VARIABLE}.")
    return path


def output_roots(roots: Roots = None) -> list[Path]:
    """Results folders, each once; see `output_root`."""
    if roots is None or isinstance(roots, str | Path):
        return [output_root(roots)]
    if not roots:
        raise ResultsError("no results folder: root is an empty list; give one folder or more.")
    return list(dict.fromkeys(map(output_root, roots)))


def list_grids(root: Root = None) -> list[str]:
    """Names of the grids under a results folder, sorted."""
    return folder_names(output_root(root) / "grids")


def grid_signatures(roots: Roots, name: str) -> list[str]:
    """Signatures of a grid, sorted; entries that are not signatures are left out.

    Raises:
        ResultsError: if no results folder has such a grid; the message lists those that exist, the nearest first.
    """
    grids = {base / "grids": folder_names(base / "grids") for base in output_roots(roots)}
    found = [folder / name for folder, names in grids.items() if name in names]  # so ../x does not leave the folder
    if not found:
        every = sorted({other for names in grids.values() for other in names})
        raise ResultsError(f"no grid {name!r} in {' or '.join(map(str, grids))}; {nearest(name, every)}")
    entries = {entry.name for folder in found for entry in os.scandir(folder)}
    return sorted(entry for entry in entries if _SIGNATURE.match(entry))


def experiment_folders(root: Path, sigs: Sequence[str], grid: str | None = None) -> dict[str, Path]:
    """Folders of those signatures that a results folder has.

    `xps/<sig>` of the same root comes first, so that a folder copied from another machine, where the absolute
    links of the grid lead nowhere (or to another copy), is read as it is. The grid's own entry comes second.

    Raises:
        ResultsError: if one is not a signature.
    """
    bad = next((sig for sig in sigs if not _SIGNATURE.match(sig)), None)
    if bad is not None:
        raise ResultsError(f"{bad!r} is not a signature: 4 to 64 characters among 0-9 and a-f are expected.")
    here = set(folder_names(root / "xps"))
    linked = set(folder_names(root / "grids" / grid)) if grid is not None and not here.issuperset(sigs) else set()
    own, links = root / "xps", root / "grids" / (grid or "")
    return {sig: (own if sig in here else links) / sig for sig in sigs if sig in here or sig in linked}


def list_signatures(roots: Roots = None) -> list[str]:
    """Signatures of all experiments under some results folders, sorted."""
    names = {name for base in output_roots(roots) for name in folder_names(base / "xps")}
    return sorted(name for name in names if _SIGNATURE.match(name))


def require_signatures(roots: Roots, sigs: Iterable[str]) -> list[str]:
    """Check that experiments exist; duplicates are dropped, the order is kept.

    Raises:
        ResultsError: naming the first one that does not, and the nearest that do.
    """
    wanted = list(dict.fromkeys(sigs))
    known = list_signatures(roots)
    there = set(known)
    lost = next((sig for sig in wanted if sig not in there), None)
    if lost is not None:
        where = " or ".join(str(base / "xps") for base in output_roots(roots))
        raise ResultsError(f"no experiment {lost!r} in {where}; {nearest(lost, known)}")
    return wanted


def folder_names(folder: Path) -> list[str]:
    """Names of the folders, and links to folders, in a folder; sorted, none if it does not exist."""
    try:
        with os.scandir(folder) as found:
            return sorted(entry.name for entry in found if entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def nearest(name: str, known: Sequence[str]) -> str:
    """Say what there is, what is like `name` first."""
    if not known:
        return "there is none yet."
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.3)
    listed = [*near, *(other for other in known if other not in near)]
    more = f", ... ({len(listed) - _MAX_LISTED} more)" if len(listed) > _MAX_LISTED else ""
    return f"there are: {', '.join(listed[:_MAX_LISTED])}{more}."
