"""Names of the files that are made from a segment of a track: one for each segment, short, legible, and traceable.

A name of a track may be too long for another suffix, hidden, no text at all, or that of a track in the next album. What
can be read of it is kept, and a hash of its path in the data set makes it unique: the same for every experiment, epoch
and process that draws from that manifest, wherever the music lies.
"""

import hashlib
import os
import unicodedata
from pathlib import Path

from audiotok.data.dataset import SegmentInfo
from audiotok.files import write_json

_LEGIBLE = 80  # bytes kept of a track's path: its end, which identifies it best
_DIGITS = 12  # of the hash: in 100 000 tracks two are alike with a chance of 2 in 100 000
_SPECIAL = frozenset("/\\:*?\"'`<>|$&;!~%#{}[]()^=")  # to file systems, shells or patterns


def clip_name(info: SegmentInfo) -> str:
    """Name of a segment without suffix, such as `Album_01 - Intro-1f0c2b9e77a4_12.5s`; at most 120 bytes."""
    track = info.track or info.path.name
    text = unicodedata.normalize("NFC", os.path.splitext(track)[0])  # noqa: PTH122
    text = "".join(char if char.isprintable() and char not in _SPECIAL else "_" for char in text)
    text = text.encode()[-_LEGIBLE:].decode(errors="ignore").strip(" ._-")
    digest = hashlib.sha256(os.fsencode(track)).hexdigest()[:_DIGITS]
    start = f"{info.start_s:.6f}".rstrip("0")  # to the frame at any rate; most starts need fewer digits
    return f"{text}-{digest}_{start}{'0' * start.endswith('.')}s".lstrip("-")


def note_source(folder: Path, info: SegmentInfo) -> None:
    """Write `NAME.json` into a folder: the audio file and the second in it where a segment starts.

    Raises:
        OSError: if the disk refuses.
    """
    source = {"path": str(info.path), "start_s": info.start_s}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{clip_name(info)}.json", source, sync=False)
