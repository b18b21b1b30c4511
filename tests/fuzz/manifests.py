"""Manifests with hostile names, lines, numbers and compression, against a reader that knows nothing of the product's.

Half of the inputs are good, in every form that a manifest may have, and must be read as they are. The others are
mutated in their JSON, their bytes or their gzip; what the plain reader below still understands must be read so, the
rest refused by name, with its line where it has one.
"""

import gzip
import json
import math
import os
import random
import re
import zlib
from pathlib import Path
from typing import Any

from audiotok.data.dataset import AudioDataset, SegmentInfo
from audiotok.data.manifest import AudioMeta, read_manifest, write_manifest
from audiotok.data.names import clip_name
from audiotok.errors import DataError

PIECES = (
    b"01 - Intro", b"\xff\xfe", b"$(touch x)",
    "日本語".encode(), "u\u0308".encode(), b"\n", b"'\"`", b"-rf", b" ", b"\\n",
    "\u2028\u0085\x0b\x0c\x1c".encode(), "\ufeff".encode(), "\u202egpj".encode(), b"..", b"~", b"x" * 120, b"a" * 84,
    b"\xed\xa0\x80", "😀".encode(), b"%s{}", b"|", b"*?", b"\r", b"\t", b"\x7f\x1b[31m",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, -1, -0.5, 0, 0.5, 1, 10**400, -(10**400), 1e308, "1", "", [], {}, [[1]], "a\0b", "\ud800", "NaN",
    math.nan, math.inf, -math.inf, 2**63, 44100.5, 1e9, "x" * 5000,
)  # fmt: skip
KEYS = ("path", "duration", "sample_rate", "channels", "weight")


def make(dice: random.Random, folder: Path) -> str:
    """Write `m.jsonl` or `m.jsonl.gz`; `truth.json` if it is known what must come of it."""
    entries = [_entry(dice) for _ in range(dice.randint(1, 8))]
    zipped = dice.random() < 0.5
    path = folder / ("m.jsonl.gz" if zipped else "m.jsonl")
    kind = dice.choice(("written", "good", "good", "values", "values", "bytes", "gzip"))
    if kind == "written":
        made = write_manifest(
            path, [AudioMeta(folder / one.pop("path"), **one) for one in json.loads(json.dumps(entries))]
        )
        (folder / "truth.json").write_text(json.dumps(entries))
        return f"written, {len(entries)} tracks, {made.stat().st_size} bytes"
    if kind == "values":
        what = _spoil(dice, entries)
    text = b"".join(_line(dice, one) for one in entries)
    if kind == "values" and dice.random() < 0.2:
        what, deep = "deep", dice.choice((10, 900, 5000, 400_000))
        text += b'{"a":' * deep if dice.random() < 0.5 else b"[" * deep + b"]" * deep
    if kind == "bytes":
        what, text = "bytes", _scramble(dice, text)
    if kind == "good":
        what = "good"
        (folder / "truth.json").write_text(json.dumps(entries))
        text = dice.choice((b"", b"\xef\xbb\xbf", b"\n\r\n \t\n")) + text
        text = text.rstrip(b"\r\n ") if dice.random() < 0.3 else text
    data = gzip.compress(text, dice.choice((0, 1, 9))) if zipped else text
    if zipped and dice.random() < 0.3:
        cut = dice.randint(0, len(text))
        data = gzip.compress(text[:cut]) + gzip.compress(text[cut:]) + bytes(dice.choice((0, 20)))
    if kind == "gzip":
        what, data = "gzip", _scramble(dice, data)
        if zipped and dice.random() < 0.4:
            what, data = _bomb(dice, text)
            (folder / "truth.json").write_text('"bomb"')
    path.write_bytes(data)
    return f"{what}, {'gz' if zipped else 'plain'}, {len(data)} bytes"


def check(folder: Path) -> None:
    """Read it; compare with the truth, or with the plain reader."""
    path = next(folder.glob("m.jsonl*"))
    truth = folder / "truth.json"
    expected = json.loads(truth.read_text()) if truth.exists() else _plain(path)
    try:
        metas = read_manifest(path)
    except DataError as error:
        assert isinstance(expected, str), f"refused what is fine: {error}"
        assert path.name in str(error) and str(error).isprintable(), f"not a line that names the file: {error}"
        line = re.search(r"\.jsonl(?:\.gz)?, line (\d+)", str(error))
        assert not expected.isdigit() or (line and line[1] == expected), f"line {expected}, but: {error}"
        raise
    assert not isinstance(expected, str), f"read what is bad: {expected}"
    assert len(metas) == len(expected), f"{len(metas)} tracks of {len(expected)}"
    for meta, entry in zip(metas, expected, strict=True):
        found = {key: getattr(meta, key) for key in KEYS[1:]}
        assert found == {key: entry.get(key) for key in KEYS[1:]}, f"{found} of {entry}"
        there = os.path.normpath(os.path.join(os.fsencode(folder.resolve()), os.fsencode(entry["path"])))  # noqa: PTH118
        assert os.path.normpath(os.fsencode(meta.path)) == there, f"{meta.path!r} of {entry['path']!r}"
    dataset = AudioDataset(metas, segment_s=0.5, sample_rate=8000, channels=1, return_info=True)
    tracks = {os.path.relpath(meta.path, dataset._folder) for meta in metas}
    names = {clip_name(SegmentInfo(Path("x"), s, 1, 1, 8000, track)) for track in tracks for s in (0.0, 1.25)}
    assert len(names) == 2 * len(tracks), "two segments of one name"
    for name in names:
        assert name.isprintable() and "/" not in name and name[0] not in ".-" and len(name.encode()) <= 120, name


def _entry(dice: random.Random) -> dict[str, Any]:
    def part() -> bytes:
        name = b"".join(dice.choices(PIECES, k=dice.randint(1, 4))).replace(b"\0", b"")[:254]
        return b"d" if name in (b".", b"..") else name

    path = b"/".join([part() for _ in range(dice.randint(1, 3))])
    path = dice.choice((b"", b"", b"../", b"/", b"./")) + path
    entry: dict[str, Any] = {"path": os.fsdecode(path)}
    entry |= {"duration": dice.choice((0.5, 1, 3.25, 1e6)), "sample_rate": dice.choice((8000, 44100, 192000))}
    entry |= {"channels": dice.choice((1, 2)), "weight": dice.choice((None, 1.0, 0.25))}
    return entry


def _line(dice: random.Random, entry: dict[str, Any]) -> bytes:
    """A JSON line as one writer or another leaves it."""
    items = list({**entry, "amplitude": None, "info_path": dice.choice((None, "é", {"a": [1]}))}.items())
    dice.shuffle(items)
    text = json.dumps(dict(items), separators=dice.choice(((",", ":"), (", ", ": "))))
    try:
        raw = json.dumps(dict(items), ensure_ascii=False).encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8 stand as escapes only
        raw = text.encode()
    return dice.choice((raw, text.encode())) + dice.choice((b"\n", b"\r\n", b" \n"))


def _spoil(dice: random.Random, entries: list[dict[str, Any]]) -> str:
    entry, key, value = dice.choice(entries), dice.choice(KEYS), dice.choice(VALUES)
    if dice.random() < 0.2:
        del entry[key]
        return f"no {key}"
    entry[key] = value
    return f"{key}={str(value)[:40]!r}"


def _scramble(dice: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at, length = dice.randrange(len(changed) + 1), dice.randint(1, 20)
        changed[at : at + dice.choice((0, length))] = dice.choice(
            (b"", dice.randbytes(length), b"\n", b"\0", changed[:length], b'"', b"}", b"9" * 5000)
        )
    return bytes(changed[: dice.choice((len(changed), len(changed), dice.randint(0, len(changed))))])


def _bomb(dice: random.Random, text: bytes) -> tuple[str, bytes]:
    """A GiB of zeros, of empty lines, or of one track over and over."""
    track = text.partition(b"\n")[0] + b"\n"
    what, unit = dice.choice((("zeros", bytes(1 << 24)), ("lines", b"\n" * (1 << 24)), ("track", track * 30_000)))
    return f"bomb of {what}", gzip.compress(unit) * ((1 << 30) // len(unit) + 1)


def _plain(path: Path) -> list[dict[str, Any]] | str:
    """The tracks, or why there are none: the number of the first bad line, or a word."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error):
            return "gzip"
    tracks = []
    for number, line in enumerate(data.split(b"\n"), 1):
        text = line[3:] if line.startswith(b"\xef\xbb\xbf") else line
        if text.strip(b" \t\r"):
            try:
                tracks.append(json.loads(text.decode()))
                good = _is_track(tracks[-1])
            except (ValueError, RecursionError):
                good = False
            if not good:
                return str(number)
    return tracks or "empty"


def _is_track(entry: Any) -> bool:
    name = entry.get("path") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name or any("\ud800" <= c < "\udc80" or "\udcff" < c < "\ue000" for c in name):
        return False
    for key, least, most in (
        ("duration", 0, 10**8),
        ("sample_rate", 1, 10**8),
        ("channels", 1, 1024),
        ("weight", 0, 10**15),
    ):
        value = entry.get(key)
        if value is None and key in ("channels", "weight"):
            continue
        if type(value) not in (int, float) or not (least <= value <= most):
            return False
        if key in ("sample_rate", "channels") and value % 1:
            return False
    return "\0" not in name
