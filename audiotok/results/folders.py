"""Folders of experiments as Dora lays them out, and the audio in them, found without Dora, Hydra or torch.

Layout: `ROOT/grids/<grid>/<sig>` are symlinks to `ROOT/xps/<sig>`, which holds `.argv.json` (overrides),
`history.json` (metrics), `frozen.json` (configuration), `status.json`, `job.json`, `task.json`, and
`samples/reference/*` and `samples/epoch_0025/*` of the generate stage. Pickles are never opened.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from audiotok.cluster import output_dir
from audiotok.errors import ResultsError
from audiotok.results.read import encodable
from audiotok.text import nearest_first

_SIGNATURE = re.compile(r"[0-9a-f]{4,64}\Z")
_EPOCH = re.compile(r"epoch_([0-9]{1,9})\Z")
_AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3"})
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
        raise ResultsError(f"no results folder {path}; give one with root (--root) or AUDIOTOK_OUTPUT_DIR.")
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
    return _folder_names(output_root(root) / "grids")


def grid_signatures(roots: Roots, name: str) -> list[str]:
    """Signatures of a grid, sorted; entries that are not signatures are left out.

    Raises:
        ResultsError: if no results folder has such a grid; the message lists those that exist, the nearest first.
    """
    grids = {base / "grids": _folder_names(base / "grids") for base in output_roots(roots)}
    found = [folder / name for folder, names in grids.items() if name in names]  # so ../x does not leave the folder
    if not found:
        every = sorted({other for names in grids.values() for other in names})
        raise ResultsError(f"no grid {name!r} in {' or '.join(map(str, grids))}; {_nearest(name, every)}")
    try:
        entries = {entry.name for folder in found for entry in os.scandir(folder)}
    except OSError as error:
        raise ResultsError(f"cannot read the grid {name}: {error}.") from error
    return sorted(entry for entry in entries if _SIGNATURE.match(entry))


def experiment_folders(root: Path, sigs: Sequence[str], grid: str | None = None) -> dict[str, Path]:
    """Folders of those signatures that a results folder has.

    `xps/<sig>` of the same root comes first, so that a copy is read as it is, even if links of its grid are absolute
    and lead to the original; the grid's own entry second.

    Raises:
        ResultsError: if one is not a signature.
    """
    bad = next((sig for sig in sigs if not _SIGNATURE.match(sig)), None)
    if bad is not None:
        raise ResultsError(f"{bad!r} is not a signature: 4 to 64 characters among 0-9 and a-f are expected.")
    here = set(_folder_names(root / "xps"))
    linked = set(_folder_names(root / "grids" / grid)) if grid is not None and not here.issuperset(sigs) else set()
    own, links = root / "xps", root / "grids" / (grid or "")
    return {sig: (own if sig in here else links) / sig for sig in sigs if sig in here or sig in linked}


def is_signature(name: str) -> bool:
    """Whether a name can be that of an experiment."""
    return _SIGNATURE.match(name) is not None


def list_signatures(roots: Roots = None) -> list[str]:
    """Signatures of all experiments under some results folders, sorted."""
    names = {name for base in output_roots(roots) for name in _folder_names(base / "xps")}
    return sorted(name for name in names if _SIGNATURE.match(name))


def require_signatures(roots: Roots, sigs: Iterable[str]) -> list[str]:
    """Check that experiments exist; duplicates are dropped, the order is kept.

    Raises:
        ResultsError: naming the first one that does not, and the nearest that do.
    """
    required = list(dict.fromkeys(sigs))
    known = list_signatures(roots)
    there = set(known)
    lost = next((sig for sig in required if sig not in there), None)
    if lost is not None:
        where = " or ".join(str(base / "xps") for base in output_roots(roots))
        raise ResultsError(f"no experiment {lost!r} in {where}; {_nearest(lost, known)}")
    return required


def _folder_names(folder: Path) -> list[str]:
    """Names of the folders, and links to folders, in a folder; sorted, none if it does not exist.

    Raises:
        ResultsError: if it cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(entry.name for entry in found if _is(entry, files=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ResultsError(f"cannot read the folder {folder}: {error.strerror or error}.") from error


def _is(entry: os.DirEntry[str], *, files: bool) -> bool:
    """Whether an entry is, or leads to, a file or a folder; a link that leads nowhere or to itself is neither."""
    try:
        return entry.is_file() if files else entry.is_dir()
    except OSError:
        return False


def _nearest(name: str, known: Sequence[str]) -> str:
    """The names there are, for an error message, those like `name` first."""
    if not known:
        return "there is none yet."
    listed = nearest_first(name, known)
    more = f", ... ({len(listed) - _MAX_LISTED} more)" if len(listed) > _MAX_LISTED else ""
    return f"there are: {', '.join(listed[:_MAX_LISTED])}{more}."


def samples_frame(folders: Mapping[str, Path]) -> pd.DataFrame:
    """Audio files of experiments, given as folders by signature; files that a job is still writing are included.

    Returns:
        One row per file: sig (category, in the order given), epoch (Int32; missing for references), kind (category:
        reference, estimate), clip (name without suffix, the same for a reconstruction and its reference), path
        (`Path`); sorted by these, epochs going up.
    """
    found = ((sig, sorted(_sample_files(one), key=lambda row: (row[0] or 0, row[2]))) for sig, one in folders.items())
    rows = [(sig, *row) for sig, files in found for row in files]
    sigs, epochs, kinds, clips, paths = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    return pd.DataFrame(
        {
            "sig": pd.Categorical(sigs, pd.Index(list(folders), dtype="str")),
            "epoch": pd.array(epochs, "Int32"),
            "kind": pd.Categorical(kinds, ["reference", "estimate"]),
            "clip": pd.array(clips, "str"),
            "path": pd.Series(paths, dtype=object),
        }
    )


def _sample_files(folder: Path) -> Iterator[tuple[int | None, str, str, Path]]:
    """Epoch, kind, clip and path of each audio file."""
    for parent, _ in _scan(folder / "samples", files=False):
        match = _EPOCH.match(parent.name)
        if match is None and parent.name != "reference":
            continue
        epoch, kind = (None, "reference") if match is None else (int(match[1]), "estimate")
        for path, suffix in _scan(parent, files=True):
            if suffix in _AUDIO_SUFFIXES and not path.name.startswith("."):
                yield epoch, kind, encodable(path.stem), path


def _scan(folder: Path, *, files: bool) -> list[tuple[Path, str]]:
    """Files, or folders, of a folder, with their suffix; none where it cannot be read."""
    try:
        with os.scandir(folder) as found:
            names = [entry.name for entry in found if _is(entry, files=files)]
    except OSError:
        return []
    return [(folder / name, Path(name).suffix.lower()) for name in names]
