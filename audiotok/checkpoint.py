"""Checkpoints on disk: saved atomically, loaded as data, found by path or signature.

They hold tensors, numbers and text in plain containers, the configuration as YAML text: `torch.load(weights_only=True)`
reads every file we write, and no code of a file is ever executed. Each record of a file has a checksum, which is
verified before it is read.
"""

import logging
import os
import re
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from audiotok.cluster import output_dir
from audiotok.errors import CheckpointError, first_line
from audiotok.files import replacing
from audiotok.integrity import damage, oddity
from audiotok.interchange.audiocraft import plain_state, stand_ins

logger = logging.getLogger(__name__)

LAST = "checkpoint.th"
PRETRAINED_PREFIX = "//pretrained/"
_SIG_PREFIX = "//sig/"
_SIG = re.compile(r"[0-9a-zA-Z_-]+")
_EPOCH_FILE = re.compile(r"checkpoint_(\d+)\.th")
_OWN_MODELS = Path(__file__).parent / "models/weights"  # exported files that come with the package, beside their cards


class NotSavedError(CheckpointError):
    """A checkpoint that could not be written; the previous one is untouched, and saving works again with free space."""

    exit_code = 1  # of the machine: worth another try


def epoch_name(epoch: int) -> str:
    """File name of the copy kept for one epoch."""
    return f"checkpoint_{epoch}.th"


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write `state` so that `path` holds either the whole new checkpoint or the whole previous one.

    Raises:
        NotSavedError: if it cannot be written (a full disk, a missing permission); the previous file is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, sync=True) as draft, draft.open("wb") as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        raise NotSavedError(
            f"{_why_not_written(error)}: cannot save {path}; the previous checkpoint, if any, is untouched: free some "
            "space or check the permissions of the folder, then run the same command again to resume"
        ) from error
    logger.debug("Checkpoint saved to %s", path)


def load_checkpoint(path: Path, *, foreign: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without executing anything of it.

    Args:
        path: of the file.
        foreign: also read those of AudioCraft, see `audiotok.interchange.audiocraft`.

    Raises:
        CheckpointError: if the file is missing, truncated, changed since it was written, or holds more than tensors,
            numbers and text.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"no checkpoint at {path}; check the path, or train the experiment first")
    try:
        found, size = damage(path), path.stat().st_size
        with path.open("rb") as file:
            begin = file.read(1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from error
    if size and begin not in (b"P", b"\x80", b"\0"):  # of a zip, of a pickle, and of a disk's lost blocks
        raise CheckpointError(f"{path} is not a checkpoint: torch writes no file that begins with {begin!r}")
    advice = f"use an earlier one, such as {epoch_name(25)} beside it, or train again"
    if found:
        raise CheckpointError(f"{path} is damaged or is not a checkpoint ({found}); {advice}")
    try:
        with warnings.catch_warnings(), stand_ins() if foreign else nullcontext():
            warnings.simplefilter("ignore")  # of torch, about odd files
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here, all of them about the file
        if "Weights only load failed" in str(error) or "Unsupported" in str(error):
            raise CheckpointError(
                f"{path} holds something other than tensors, numbers and text, so it was not loaded; export it "
                "with the program that wrote it (for AudioCraft: audiocraft.utils.export.export_encodec)"
            ) from error
        raise CheckpointError(f"{path} is damaged or is not a checkpoint ({first_line(error)}); {advice}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}; a checkpoint is a dict of states")
    if foreign:
        try:
            state = plain_state(state)
        except ValueError as error:
            raise CheckpointError(f"{path} holds {error}; so it was not loaded") from error
    if odd := oddity(state, size):
        raise CheckpointError(f"{path} holds {odd}; a checkpoint is of tensors, numbers and text, so it was not loaded")
    plain: dict[str, Any] = state
    return plain


def flush_old_epochs(folder: Path, keep_last: int | None) -> None:
    """Remove the per-epoch copies of `folder` but the `keep_last` newest; None keeps all."""
    if keep_last:
        epochs = sorted(int(m[1]) for p in folder.iterdir() if (m := _EPOCH_FILE.fullmatch(p.name)))
        for epoch in epochs[:-keep_last]:
            (folder / epoch_name(epoch)).unlink(missing_ok=True)


def resolve_checkpoint(source: str | Path, root: Path | None = None) -> Path:
    """File of a checkpoint: a model that comes with the package, `//sig/SIG`, a path, or a folder with `checkpoint.th`.

    Args:
        source: such as the value of `continue_from`; `//pretrained/` before it means nothing more. As text, `demo` is
            the model of that name, and `./demo` a path; a `Path` is always a path.
        root: Dora's folder, for signatures; None: see `audiotok.cluster.output_dir`.

    Raises:
        CheckpointError: if there is no such file.
    """
    text, own = str(source).removeprefix(PRETRAINED_PREFIX), own_models()
    if isinstance(source, str) and text in own:
        path = own[text]
    elif text.startswith(_SIG_PREFIX):
        sig = text.removeprefix(_SIG_PREFIX).strip("/")
        if not _SIG.fullmatch(sig):
            raise CheckpointError(f"{text!r} is no signature; write //sig/ and the 8 characters of `dora grid`")
        xps = (root or output_dir(os.environ)) / "xps"
        path = xps / sig
        if not os.path.isdir(path):
            advice = "list them with `dora grid NAME` or set AUDIOTOK_OUTPUT_DIR"
            raise CheckpointError(f"no experiment {sig} in {xps}; {advice}")
    else:
        path = Path(text)
    if os.path.isdir(path):
        path = path / LAST
    if not os.path.isfile(path):
        raise CheckpointError(
            f"no checkpoint at {path}; give //sig/SIG, a file, a folder with {LAST}, or of another program (see "
            f"docs/interchange.md), or a model that comes with audiotok: {', '.join(own)}"
        )
    return path


def own_models() -> dict[str, Path]:
    """Files of the models that come with the package, by name."""
    return {path.stem: path for path in sorted(_OWN_MODELS.glob("*.bin"))}


def _why_not_written(error: BaseException) -> str:
    """The system's message, such as `No space left on device`; torch often raises an error of its own over it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    return first_line(error)
