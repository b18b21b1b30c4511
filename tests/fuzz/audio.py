"""Audio files as they come: odd rates and channels, wrong headers, cut off, joined, tagged, flipped bits.

What is read equals libsndfile's decode of the file before it was changed (all of it where only its header was, the
start of it where it was cut off), and a segment equals the same stretch of the whole.
"""

import json
import random
import struct
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from audiotok.data.audio import MAX_PEAK, audio_info, convert_audio, read_audio, read_segment

KINDS = {
    "wav": [("WAV", subtype) for subtype in ("PCM_16", "PCM_24", "PCM_U8", "FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM")],
    "wave": [("WAVEX", "PCM_32"), ("RF64", "PCM_16"), ("W64", "PCM_24")],
    "flac": [("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("FLAC", "PCM_S8")],
    "ogg": [("OGG", "VORBIS")],
    "opus": [("OGG", "OPUS")],
    "mp3": [("MP3", "MPEG_LAYER_III")],
}
RATES = {
    "wav": (7, 8000, 11025, 22254, 32000, 44100, 44101, 96000, 10**6),
    "flac": (8000, 22254, 32000, 44100, 47999),
    "ogg": (8000, 22050, 32000, 44101),
    "opus": (8000, 12000, 16000, 24000, 48000),
    "mp3": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
}
TAG = b"TAG" + bytes(125)
ID3 = b"ID3\x04\0\0\0\0\x02\x00" + bytes(256)


def make(dice: random.Random, folder: Path) -> str:
    """One file `input.EXTENSION`, beside it `before.npy`, what it held, and how it was changed."""
    extension = dice.choice(list(KINDS))
    container, subtype = dice.choice(KINDS[extension])
    extension = "wav" if extension == "wave" else extension
    rate = dice.choice(RATES[extension])
    channels = dice.choice((1, 2, 2) if extension in ("mp3", "opus") or subtype == "IMA_ADPCM" else (1, 2, 2, 3, 6))
    frames = dice.choice((1, 100, 1152, 5000, 20000, 40000))
    options = {"format": container, "subtype": subtype}
    if extension == "mp3":
        options["bitrate_mode"] = dice.choice(("CONSTANT", "AVERAGE", "VARIABLE"))
        options["compression_level"] = dice.choice((0.0, 0.4, 0.8, 0.9, 0.99))  # type: ignore[assignment]
    path = folder / f"input.{extension}"
    signal = music(dice.randrange(1 << 30), frames, channels)
    if subtype in ("FLOAT", "DOUBLE"):
        signal *= dice.choice((1.0, 3.0, 1.0, 32768.0, 1e29))
    soundfile.write(path, signal, rate, **options)
    np.save(folder / "before.npy", soundfile.read(path, dtype="float32", always_2d=True)[0])
    signal = music(dice.randrange(1 << 30), dice.choice((1200, 30000)), channels)
    soundfile.write(folder / "other", signal, rate, **options)
    change, data = changed(dice, path.read_bytes(), (folder / "other").read_bytes(), extension)
    path.write_bytes(data)
    (folder / "how.json").write_text(json.dumps({"change": change, "place": dice.random()}))
    return f"{container}/{subtype}, {frames} frames of {channels} at {rate} Hz, {options}, {change}"


def music(seed: int, frames: int, channels: int) -> NDArray[np.float32]:
    t = np.arange(frames) / 16000
    noise = np.random.default_rng(seed).standard_normal((frames, channels)) * (np.sin(9 * t) > 0.3)[:, None]
    return (0.4 * np.sin(2 * np.pi * (300 + 200 * t) * t)[:, None] + 0.1 * noise).astype(np.float32)


def changed(dice: random.Random, data: bytes, other: bytes, extension: str) -> tuple[str, bytes]:
    """A name of what was done, and the file after it. Those of `header` and `tags` leave what it holds as it was."""
    kind = dice.choice(("none", "header", "header", "tags", "cut", "joined", "head bytes", "body bytes", "inserted"))
    out = bytearray(data)
    if kind == "header":
        return wrong_header(dice, out, extension)
    if kind == "tags":
        return "tags", {"mp3": ID3, "flac": ID3}.get(extension, b"") + data + (TAG if extension != "ogg" else b"")
    if kind == "cut":
        return "cut", data[: dice.randrange(len(data))]
    if kind == "joined":
        return "joined", data + dice.choice((data, other))
    if kind in ("head bytes", "body bytes"):
        for _ in range(dice.choice((1, 1, 4, 30))):
            out[dice.randrange(min(len(out), 200) if kind == "head bytes" else len(out))] = dice.randrange(256)
    if kind == "inserted":
        at = dice.randrange(len(out))
        out[at:at] = dice.randbytes(dice.choice((1, 50, 3000)))
    return kind, bytes(out)


def wrong_header(dice: random.Random, out: bytearray, extension: str) -> tuple[str, bytes]:
    """The length that the header says, replaced."""
    if extension == "wav" and out[:4] == b"RIFF":
        at = out.index(b"data", 12)
        del out[at + 8 + struct.unpack("<I", out[at + 4 : at + 8])[0] :]  # a stream has no chunks behind
        out[at + 4 : at + 8] = struct.pack("<I", size := dice.choice((0, 0xFFFFFFFF, 0x7FFFF000, 10**8)))
        return ("header" if size in (0, 0xFFFFFFFF, 0x7FFFF000) else "too long"), bytes(out)
    if extension == "flac":
        packed = int.from_bytes(out[18:26], "big")
        total = dice.choice((0, 1, (packed & (1 << 36) - 1) // 2, 10**9, (1 << 36) - 1))
        out[18:26] = (packed >> 36 << 36 | total).to_bytes(8, "big")
        return ("header" if total < 10**9 else "too long"), bytes(out)
    at = max(out.find(b"Xing"), out.find(b"Info"))
    if extension == "mp3" and at > 0:
        count = int.from_bytes(out[at + 8 : at + 12], "big")
        new = dice.choice((0, 1, count // 2, 10**8))
        out[at + 8 : at + 12] = new.to_bytes(4, "big")
        return ("counts less" if new < count else "too long"), bytes(out)
    return "none", bytes(out)


def check(folder: Path) -> None:
    path = next(folder.glob("input.*"))
    before: NDArray[np.float32] = np.load(folder / "before.npy")
    how = json.loads((folder / "how.json").read_text())
    info = audio_info(path)
    wav, rate = read_audio(path)
    found = wav.T.numpy()
    lossy = path.suffix in (".mp3", ".ogg", ".opus")
    assert rate == info.sample_rate and found.shape[1] == info.channels
    assert np.isfinite(found).all() and np.abs(found).max() <= MAX_PEAK
    change = how["change"]
    damaged = path.suffix == ".mp3" and ("bytes" in change or change == "inserted")  # a decoder makes up the rest
    if (
        change != "counts less" and not damaged
    ):  # the length of an mp3 is believed where its first frame has the right number of bytes
        assert 0 <= info.frames - len(found) <= 0.1 * rate, f"{info.frames} counted, {len(found)} read"
    if change in ("none", "header", "tags") or (change == "joined" and path.suffix == ".flac"):
        assert len(found) == len(before), f"{len(found)} frames, {len(before)} before it was changed"
        np.testing.assert_allclose(found, before, rtol=0, atol=1e-5 if lossy else 0)
    elif change == "counts less":
        assert len(before) <= len(found) < len(before) + 3 * 1152, f"{len(found)} frames, {len(before)} before"
        np.testing.assert_allclose(found[: len(before)], before, rtol=0, atol=1e-5)
    elif change == "cut":
        n = min(len(found), len(before))
        assert len(found) <= len(before) + 1152
        if path.suffix != ".opus":  # libsndfile takes the sample at which an opus stream ends from its last page
            inner = max(0, n - 2304)
            np.testing.assert_allclose(found[:inner], before[:inner], rtol=0, atol=1e-5 if lossy else 0)
    elif change == "joined" and path.suffix == ".mp3":
        assert len(found) >= len(before) + 100, f"{len(found)} frames, {len(before)} of the first"
    elif change == "joined":  # a second flac as long as the first may not be seen
        raise AssertionError("of several streams, one was read")
    elif change == "too long":
        raise AssertionError("a header that says more than the file holds was believed")
    if not damaged:
        whole_equals_segments(path, wav, rate, info.channels, how["place"])


def whole_equals_segments(path: Path, wav: torch.Tensor, rate: int, channels: int, place: float) -> None:
    start_s = place * wav.shape[-1] / rate
    for target in (rate, 32000):
        whole = convert_audio(wav, rate, target, channels)
        if int(start_s * target) >= whole.shape[-1]:
            continue
        part, true_s = read_segment(path, start_s=start_s, n_frames=3000, sample_rate=target, channels=channels)
        first = round(true_s * target)
        stretch = whole[:, first : first + 3000]
        torch.testing.assert_close(part, stretch, rtol=0, atol=1e-4, msg=lambda text: f"a segment differs: {text}")
