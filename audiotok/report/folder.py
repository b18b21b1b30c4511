"""The folder of a report: written beside it first, then moved in; files that are not the report's own are left alone.

A marker file lists what belongs to the report. What an earlier report left behind and this one has not is deleted,
after the new `index.html` is in place.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from audiotok.errors import ResultsError
from audiotok.files import UnreadableError, load_json

MARKER = ".audiotok-report.json"
INDEX = "index.html"
SUBFOLDERS = ("runs", "audio", "plots", "assets")
_OWN = re.compile(rf"(?:{re.escape(INDEX)}|(?:{'|'.join(SUBFOLDERS)})/\w[\w.-]*)\Z", re.ASCII)


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """Give an empty folder to write a report into; its files replace those of the report at `output` at the end.

    Raises:
        ResultsError: if `output` holds something else, or cannot be written.
    """
    output = output.absolute()
    try:
        _refuse_foreign(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            yield stage
            _publish(stage, output)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except OSError as error:
        raise ResultsError(f"cannot write the report {output}: {error.strerror or error}.") from error


def _refuse_foreign(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ResultsError(f"{output} is a file; give a folder with --output.")
    if output.is_dir() and not (output / MARKER).exists() and any(output.iterdir()):
        raise ResultsError(f"{output} holds files and no report; give an empty or a new folder with --output.")


def _publish(stage: Path, output: Path) -> None:
    new = sorted(path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file())
    old = _listed(output)
    foreign = [name for name in new if name not in old and os.path.lexists(output / name)]
    links = [name for name in SUBFOLDERS if (output / name).is_symlink()]
    if foreign or links:
        raise ResultsError(
            f"{output / (foreign + links)[0]} is not the report's own; move it, or give another --output."
        )
    output.mkdir(exist_ok=True)
    _mark(output, {*new, *old})  # first, so that a report that is cut off can still be recognised and replaced
    for name in sorted(new, key=lambda name: (name == INDEX, name)):
        (output / name).parent.mkdir(exist_ok=True)
        (stage / name).replace(output / name)
    for name in old - set(new):
        (output / name).unlink(missing_ok=True)
    for folder in (output / name for name in SUBFOLDERS):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    _mark(output, new)


def _listed(output: Path) -> set[str]:
    """Files of the report that is there; a name that no report would have does not count."""
    try:
        names = load_json(output / MARKER)["files"]
        return {name for name in names if isinstance(name, str) and _OWN.match(name)}
    except (FileNotFoundError, UnreadableError, LookupError, TypeError):
        return set()


def _mark(output: Path, names: Iterable[str]) -> None:
    content = {
        "about": "files of a report by `audiotok report`; it replaces and deletes no others",
        "files": sorted(names),
    }
    part = output / f"{MARKER}.part"
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(output / MARKER)
