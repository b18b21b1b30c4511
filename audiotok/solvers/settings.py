"""Sections of the configuration as keyword arguments."""

from typing import Any

from omegaconf import OmegaConf


def settings(cfg: Any) -> dict[str, Any]:
    """A section of the configuration as plain, resolved containers; a section left empty is {}."""
    section = OmegaConf.to_container(cfg, resolve=True) if cfg is not None else {}
    assert isinstance(section, dict)
    return {str(key): value for key, value in section.items()}
