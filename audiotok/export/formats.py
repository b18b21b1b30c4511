"""`audiotok export`: a trained codec as a folder in the format of another program, with its card.

| format | files | read by |
| --- | --- | --- |
| audiocraft | compression_state_dict.bin | AudioCraft, audiotok |
| huggingface | config.json, model.safetensors, preprocessor_config.json | Transformers, audiotok |
| safetensors | audiotok.json, model.safetensors | audiotok; the weights by whatever reads safetensors |
| onnx | audiotok.json, encoder.onnx, decoder.onnx | onnxruntime |
"""

import contextlib
import glob
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from audiotok import __version__
from audiotok.checkpoint import LAST, PRETRAINED_PREFIX
from audiotok.errors import AudiotokError, ConfigError, first_line
from audiotok.export.card import CARD, Source, card, unfinished
from audiotok.export.onnx import write_onnx
from audiotok.files import write_text
from audiotok.interchange import huggingface
from audiotok.models.encodec import EncodecModel, get_compression_model
from audiotok.models.pretrained import check_weights, read_pretrained
from audiotok.utils.export import in_half, networks_of, write_exported

logger = logging.getLogger(__name__)

AUDIOCRAFT_FILE = "compression_state_dict.bin"  # as AudioCraft looks for it in a folder
ABOUT = "audiotok.json"
_SIG = re.compile(r"[0-9a-f]{8}")
_GENERAL = (LAST, AUDIOCRAFT_FILE, *huggingface.WEIGHTS)  # names of files that say nothing of the model
_WRITTEN = {  # all that an export leaves in a folder, which --force replaces
    *(CARD, ABOUT, AUDIOCRAFT_FILE, "encoder.onnx", "decoder.onnx"),
    *(huggingface.CONFIG, huggingface.PREPROCESSOR, huggingface.WEIGHTS[0]),
}
_EARLIER = "earlier"  # folder of what is being replaced
_READ_FIRST = (ABOUT, AUDIOCRAFT_FILE, huggingface.CONFIG)  # without which a folder is no model


def export_model(
    source: str | Path, format: str, out: Path | None = None, *, half: bool = False, force: bool = False
) -> Path:
    """Write a trained codec, and its card, into a folder, whole or not at all.

    Args:
        source: a signature, or what `CompressionModel.get_pretrained` reads.
        format: one of `FORMATS`.
        out: the folder; by default `exported/NAME-FORMAT`, by signature or name of the file.
        half: weights as float16, and one use for each code; not for huggingface, which would compute so.
        force: replace an earlier export in the folder, of whatever format.

    Returns:
        The folder.

    Raises:
        ConfigError: naming the key, if the format cannot hold such a model; if half is not for it; if the folder holds
            something else, or an export and no `force`.
        CheckpointError: if the source cannot be read.
        AudiotokError: if the folder cannot be written.
    """
    if format not in FORMATS:
        raise ConfigError(f"format {format!r}; choose one of: {', '.join(FORMATS)}")
    if half and format == "huggingface":
        raise ConfigError("half is not for huggingface: Transformers would compute in float16; export without it")
    name = _full_name(source)
    out = Path("exported", f"{_short_name(name)}-{format}") if out is None else out
    _check_free(out, force)
    path, cfg, model = _read(name)
    if out.absolute().resolve() in (path.resolve(), path.resolve().parent):
        raise ConfigError(f"{out} is the folder that is exported; give another folder with --out")
    own = Source(name=_short_name(name), source=str(name), path=path, cfg=cfg, model=model)
    if lacking := unfinished(own):
        logger.warning("warning: %s %s; what is exported are its best weights so far", name, lacking)
    try:
        with _staged(out) as stage:
            FORMATS[format](cfg, model, stage, half)
            write_text(stage / CARD, card(own, format, half=half))
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise AudiotokError(f"cannot write {out}: {why}; give another --out") from error
    return out


def _full_name(source: str | Path) -> str | Path:
    """A signature as //sig/SIG; anything else as it is."""
    bare = isinstance(source, str) and _SIG.fullmatch(source) and not Path(source).exists()
    return f"//sig/{source}" if bare else source


def _short_name(source: str | Path) -> str:
    """Name of a model in a few letters: its signature, or that of its file or folder."""
    path = Path(str(source).removeprefix(PRETRAINED_PREFIX).rstrip("/"))
    if path.name in _GENERAL:
        path = path.absolute().parent
    name = path.stem if path.suffix in (".bin", ".th", ".safetensors") else path.name
    return re.sub(r"[^\w.-]", "_", name) or "model"


def _read(source: str | Path) -> tuple[Path, DictConfig, EncodecModel]:
    """File or folder of a source, its configuration, and its model in evaluation mode."""
    found = read_pretrained(source)
    check_weights(found.cfg, found.weights, found.path, get_compression_model)
    model = get_compression_model(found.cfg)
    assert isinstance(model, EncodecModel)
    model.load_state_dict(found.weights)
    return found.path, found.cfg, model.eval()


# --- Formats ---


def _audiocraft(cfg: DictConfig, model: EncodecModel, folder: Path, half: bool) -> None:
    write_exported(cfg, model.state_dict(), folder / AUDIOCRAFT_FILE, half=half)


def _huggingface(cfg: DictConfig, model: EncodecModel, folder: Path, half: bool) -> None:
    huggingface.write_folder(cfg, model.state_dict(), folder)


def _safetensors(cfg: DictConfig, model: EncodecModel, folder: Path, half: bool) -> None:
    weights: dict[str, Tensor] = in_half(model.state_dict()) if half else model.state_dict()
    # Two names must not share storage, as `embed` and `embed_avg` of float16 do.
    save_file({name: value.clone().contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    config = networks_of(cfg)
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    if kept := huggingface.chunks_and_bandwidths(values):  # so that the way back gives the folder it was read from
        config[huggingface.SECTION] = kept
    about = {"format": "audiotok", "version": 1, "audiotok": __version__, "config": config}
    write_text(folder / ABOUT, json.dumps(about, indent=1))


def _onnx(cfg: DictConfig, model: EncodecModel, folder: Path, half: bool) -> None:
    write_onnx(model, folder, half=half)


FORMATS: dict[str, Callable[[DictConfig, EncodecModel, Path, bool], None]] = {
    "audiocraft": _audiocraft,
    "huggingface": _huggingface,
    "safetensors": _safetensors,
    "onnx": _onnx,
}


# --- The folder ---


def _check_free(out: Path, force: bool) -> None:
    """ConfigError if a folder holds what is not to be replaced; hidden files, as of git, stay and do not count."""
    try:
        if os.path.lexists(out) and not os.path.isdir(out):
            raise ConfigError(f"{out} is a file; give a folder with --out")
        names = [path.name for path in out.iterdir()] if os.path.isdir(out) else []
        folders = {name for name in names if os.path.isdir(out / name)}
    except OSError as error:
        raise AudiotokError(f"cannot read {out}: {error.strerror or error}; give another --out") from error
    there = {name for name in names if not name.startswith(".")}
    if foreign := sorted(there - (_WRITTEN - folders)):
        raise ConfigError(f"{out} holds {foreign[0]}, which is of no export; give another folder with --out")
    if there and not force:
        raise ConfigError(f"{out} holds an export already; give another folder with --out, or --force to replace it")


@contextlib.contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A folder to write in; what it then holds takes the place of what `out` held."""
    out = out.absolute()
    place = out if os.path.isdir(out) else out.parent  # `out` may be a mount, or its parent another user's
    stage = place / f".{out.name}.{uuid.uuid4().hex[:8]}.tmp"
    place.mkdir(parents=True, exist_ok=True)
    for folder in place.glob(f".{glob.escape(out.name)}.????????.tmp"):
        logger.warning("warning: %s is left by an export that was killed, or runs: %s", folder, _what_to_do(folder))
    stage.mkdir()
    try:
        yield stage
        if os.path.isdir(out):
            _replace(stage, out)
        else:
            stage.rename(out)
    finally:
        if _left(stage / _EARLIER):
            logger.warning("warning: %s is left: %s", stage, _what_to_do(stage))
        else:
            shutil.rmtree(stage, ignore_errors=True)


def _what_to_do(stage: Path) -> str:
    earlier = stage / _EARLIER
    return f"{earlier} holds the files of the export before; keep them or delete it" if _left(earlier) else "delete it"


def _replace(stage: Path, out: Path) -> None:
    """Move the files of an earlier export out of a folder, then those of `stage` in.

    Those that make it a model go first and come last. An error in between puts the earlier ones back; a kill leaves a
    folder that lacks files, never one of two models. What cannot be put back stays in `stage`.
    """
    new = sorted((path.name for path in stage.iterdir()), key=lambda name: (name in _READ_FIRST, name))
    earlier = stage / _EARLIER
    earlier.mkdir()
    try:
        for name in sorted(_WRITTEN, key=lambda name: (name not in _READ_FIRST, name)):
            if os.path.lexists(out / name):
                (out / name).replace(earlier / name)
        for name in new:
            (stage / name).replace(out / name)
    except BaseException:
        for name in new:
            if not os.path.lexists(stage / name):
                (out / name).unlink(missing_ok=True)
        for name in sorted(_left(earlier), key=lambda name: (name in _READ_FIRST, name)):
            (earlier / name).replace(out / name)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def _left(folder: Path) -> list[str]:
    """Names of the files in a folder that may be missing."""
    return [path.name for path in folder.iterdir()] if os.path.isdir(folder) else []
