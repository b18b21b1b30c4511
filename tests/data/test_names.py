"""Names of samples: unique, short, legible, the same wherever and however often they are made."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from audiotok.data.audio import audio_info, read_audio, write_audio
from audiotok.data.dataset import AudioDataset, SegmentInfo
from audiotok.data.manifest import AudioMeta
from audiotok.data.names import clip_name, note_source

MakeAudio = Callable[..., NDArray[np.float32]]
NAMES = (
    b"A/01 - Intro.wav", b"B/01 - Intro.wav", b"A/01 - Intro.flac", b"A_01 - Intro.wav", b"a/01 - intro.wav",
    b"\xff.wav", b"\xfe.wav", b"x" * 250 + b".wav", b"y" + b"x" * 249 + b".wav", "夜".encode() * 80 + b".wav",
    b"two\nlines.wav", b"-rf.wav", b".hidden.wav", b"..wav", b"'\"`$(x).wav",
    b"\xe2\x80\xa8.wav", b"A/B/C/01 - Intro.wav",
)  # fmt: skip


def info_of(name: bytes, start_s: float = 0.0, folder: str = "/music") -> SegmentInfo:
    track = os.fsdecode(name)
    return SegmentInfo(Path(folder, track), start_s, 1, 1, 8000, track)


def test_every_segment_has_a_name_of_its_own_that_any_folder_takes(tmp_path: Path) -> None:
    starts = (0.0, 12.34, 12.34 + 1 / 192_000, 3600.0)
    infos = [info_of(name, start_s) for name in NAMES for start_s in starts]
    names = [clip_name(info) for info in infos]
    assert len({name.casefold() for name in names}) == len(infos)
    for name, info in zip(names, infos, strict=True):
        assert name == clip_name(info) and len(name.encode()) <= 120 and name.isprintable()
        assert name[0] not in ".- " and not set(name) & set("/\\'\"`$\n")
        note_source(tmp_path, info)
        source = json.loads((tmp_path / f"{name}.json").read_text())
        assert source == {"path": str(info.path), "start_s": info.start_s}
    assert len(list(tmp_path.iterdir())) == len(infos)


def test_a_name_says_what_it_is() -> None:
    assert clip_name(info_of(b"Album/01 - Intro.wav", 12.5)).startswith("Album_01 - Intro-")
    assert clip_name(info_of(b"Album/01 - Intro.wav", 12.5)).endswith("_12.5s")
    assert clip_name(info_of(b"a.wav")).endswith("_0.0s")
    assert clip_name(info_of("夜".encode() * 80 + b".wav")).startswith("夜" * 26 + "-")
    assert clip_name(info_of(b"a.wav")) == clip_name(info_of(b"a.wav", folder="/elsewhere"))


@pytest.mark.parametrize("options", [{}, {"segment_s": None, "num_samples": 1}, {"channels": 2}])
def test_a_track_is_seen_from_the_folder_of_all_tracks(
    tmp_path: Path, make_audio: MakeAudio, options: dict[str, Any]
) -> None:
    metas = []
    for name in ("A/1.wav", "B/1.wav", "B/short.wav"):
        make_audio(tmp_path / "music" / name, seconds=1.0, rate=8000)
        metas.append(AudioMeta(tmp_path / "music" / name, 0.01 if "short" in name else 1.0, 8000, 1))
    dataset = AudioDataset(
        metas,
        **{"segment_s": 0.5, "sample_rate": 8000, "channels": 1, "return_info": True, "num_samples": 8, **options},
    )
    for item in (dataset[i] for i in range(len(dataset))):
        assert isinstance(item, tuple)
        assert item[1].track == str(item[1].path.relative_to(tmp_path / "music"))


def test_audio_is_read_and_written_whatever_its_name(tmp_path: Path, make_audio: MakeAudio) -> None:
    make_audio(tmp_path / "a.wav", seconds=0.1, rate=8000)
    for name in (b"\xff\xfe.wav", b"two\nlines.wav", b"-rf.wav", b"x" * 200 + b".wav", "\u2028夜.wav".encode()):
        path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        wav, rate = read_audio(tmp_path / "a.wav")
        write_audio(path, wav, rate)
        assert audio_info(path).frames == 800 and bool((read_audio(path)[0] == wav).all())
