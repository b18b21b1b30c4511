"""Sections of the configuration as keyword arguments, and the device it names."""

from typing import Any

import torch
from omegaconf import OmegaConf

from audiotok.errors import ConfigError


def settings(cfg: Any) -> dict[str, Any]:
    """A section of the configuration as plain, resolved containers; a section left empty is {}."""
    section = OmegaConf.to_container(cfg, resolve=True) if cfg is not None else {}
    assert isinstance(section, dict)
    return {str(key): value for key, value in section.items()}


def resolve_device(name: str) -> torch.device:
    """Device of `cpu`, `cuda` or `auto`, which is cuda where there is one. ConfigError if it is not there."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("device=cuda, but torch sees no GPU here; use device=auto or device=cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")
