"""What the numbers of the evaluate stage were measured with and on: numbers compare if this is the same."""

import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from audiotok.data import SegmentInfo
from audiotok.files import write_json
from audiotok.solvers.settings import settings

logger = logging.getLogger(__name__)

PROTOCOL_FILE = "evaluate.json"  # in the folder of an experiment; `audiotok.results.protocols` reads it
VERSION = 1  # of the stage as a whole: the next one where the same settings give other numbers
_CODEBOOKS = ("dependence", "mmd")


def describe(cfg: DictConfig, metrics: Mapping[str, Any], clips: Sequence[SegmentInfo]) -> dict[str, Any]:
    """Clips, format and settings of an evaluate stage, as JSON can hold them; equal for all seeds of a grid.

    Args:
        cfg: the configuration.
        metrics: those of signals, by name, whose attribute `protocol` is a text.
        clips: all that were measured, in order; `digest` is a checksum of their tracks and starts.
    """
    lengths = {round(clip.n_frames / clip.sample_rate, 3) for clip in clips}
    places = [[clip.track, round(clip.start_s, 3)] for clip in clips]
    own = {name: str(getattr(metric, "protocol", "")) for name, metric in metrics.items()}
    books = {name: settings(cfg.metrics.get(name)) for name in _CODEBOOKS if cfg.evaluate.metrics.get(name)}
    return {
        "version": VERSION,
        "clips": len(clips),
        "recordings": len({clip.path for clip in clips}),
        "seconds": lengths.pop() if len(lengths) == 1 else None,
        "digest": f"{_checksum(places):08x}",
        "sample_rate": int(cfg.sample_rate),
        "channels": int(cfg.channels),
        "metrics": own | books,
    }


def number_of(protocol: Mapping[str, Any]) -> float:
    """A number that stands for a protocol in a history, which holds numbers only."""
    return float(_checksum(protocol))


def keep(protocol: Mapping[str, Any], folder: Path) -> None:
    """Write a protocol to the folder of its experiment; where that fails, the log says so and the epoch goes on."""
    try:
        write_json(folder / PROTOCOL_FILE, protocol)
    except OSError as error:
        logger.warning("%s cannot be written: %s", folder / PROTOCOL_FILE, error.strerror or error)


def _checksum(content: Any) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
