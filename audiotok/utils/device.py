"""The device that a setting names."""

import torch

from audiotok.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """Device of `cpu`, `cuda` or `auto`, which is cuda where there is one. ConfigError if it is not there."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("device=cuda, but torch sees no GPU here; use device=auto or device=cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")
