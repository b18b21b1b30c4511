"""A model of ours as a folder: `model.safetensors`, the weights under our names, and `audiotok.json` about them.

`audiotok.json` holds `format` (audiotok), `version` of the format, `audiotok` (the program's version) and `config`, the
configuration of the networks.
"""

import os
from pathlib import Path

import yaml
from omegaconf import DictConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from audiotok.config_text import read_text
from audiotok.errors import CheckpointError, first_line
from audiotok.files import UnreadableError, load_json

ABOUT, WEIGHTS = "audiotok.json", "model.safetensors"
FORMAT, VERSION = "audiotok", 1


def is_folder(path: Path) -> bool:
    """Whether a path is a folder that audiotok wrote, of whatever format."""
    return os.path.isfile(path / ABOUT)


def read_folder(path: Path) -> tuple[DictConfig, dict[str, Tensor]]:
    """Configuration of the networks and weights of a folder.

    Raises:
        CheckpointError: if it is of another format, of a later version, or cannot be read.
    """
    try:
        about = load_json(path / ABOUT)
        found, version = about.get("format"), about.get("version")
        if found != FORMAT:
            raise CheckpointError(
                f"{path} is of format {str(found)[:50]!r}, not {FORMAT!r}; give what it was made of, or an export of "
                "another format"
            )
        if version != VERSION:
            raise CheckpointError(f"{path} is of version {str(version)[:50]} of the format; {VERSION} is read here")
        if not isinstance(about.get("config"), dict):
            raise CheckpointError(f"{path / ABOUT} lacks config, the configuration of the networks")
        cfg = read_text(yaml.safe_dump(about["config"], sort_keys=False))
    except (OSError, UnreadableError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path / ABOUT} cannot be used: {first_line(error)}") from error
    return cfg, read_safetensors(path / WEIGHTS)


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU; CheckpointError if it cannot be read."""
    if not os.path.isfile(file):  # of a pipe or a device nothing is read
        raise CheckpointError(f"{file} is missing or no file; copy the whole folder again")
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except (OSError, SafetensorError, ValueError, RuntimeError, MemoryError) as error:
        raise CheckpointError(f"{file} is damaged or is no safetensors file ({first_line(error)})") from error
    return tensors
