"""Reading segments at another rate, batching them, and giving up on bad files."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from audiotok.data.audio import convert_audio, read_audio, read_segment
from audiotok.data.dataset import JUDGED_AFTER, SegmentInfo, _collate, _ReadLedger
from audiotok.errors import DataError

MakeAudio = Callable[..., NDArray[np.float32]]


@pytest.mark.parametrize("rate", [16000, 22050, 44100, 48000])
@pytest.mark.parametrize("start_s", [0.0, 0.0007, 0.51234, 1.3])
def test_a_segment_is_a_stretch_of_the_whole_file_resampled(
    tmp_path: Path, make_audio: MakeAudio, rate: int, start_s: float
) -> None:
    make_audio(tmp_path / "a.wav", seconds=1.7, rate=rate, channels=2)
    whole = convert_audio(read_audio(tmp_path / "a.wav")[0], rate, 32000, 1)
    wav, true_start_s = read_segment(tmp_path / "a.wav", start_s=start_s, n_frames=16000, sample_rate=32000, channels=1)
    grid_s = 1 / np.gcd(rate, 32000)
    first = round(true_start_s * 32000)
    assert start_s - grid_s < true_start_s <= start_s
    assert abs(true_start_s * 32000 - first) < 1e-6
    torch.testing.assert_close(wav, whole[:, first : first + 16000], rtol=0, atol=1e-6)
    assert wav.shape[-1] == min(16000, whole.shape[-1] - first)


def test_without_resampling_a_segment_is_exact_to_the_frame(tmp_path: Path, make_audio: MakeAudio) -> None:
    make_audio(tmp_path / "a.flac", seconds=1.0, rate=32000)
    whole, _ = read_audio(tmp_path / "a.flac")
    wav, start_s = read_segment(tmp_path / "a.flac", start_s=1234 / 32000, n_frames=500, sample_rate=32000, channels=1)
    assert start_s == 1234 / 32000 and torch.equal(wav, whole[:, 1234:1734])
    rest, _ = read_segment(tmp_path / "a.flac", start_s=0, n_frames=None, sample_rate=32000, channels=2)
    assert torch.equal(rest, whole.expand(2, -1))


def test_a_start_after_the_end_is_an_error(tmp_path: Path, make_audio: MakeAudio) -> None:
    make_audio(tmp_path / "a.wav", seconds=1.0, rate=48000)
    for start_s in (1.0, 1.0001, 5.0):
        with pytest.raises(DataError, match=r"a\.wav: (has ended|ends)"):
            read_segment(tmp_path / "a.wav", start_s=start_s, n_frames=100, sample_rate=32000, channels=1)


def test_batches_are_padded_to_the_longest() -> None:
    long, short = torch.ones(2, 5), torch.ones(2, 3)
    batch = _collate([long, short])
    assert isinstance(batch, torch.Tensor)
    assert batch.tolist() == [[[1] * 5] * 2, [[1, 1, 1, 0, 0]] * 2]
    infos = [SegmentInfo(Path("a.wav"), 0.0, n, n, 8000) for n in (5, 3)]
    both = _collate([(long, infos[0]), (short, infos[1])])
    assert isinstance(both, tuple)
    assert torch.equal(both[0], batch) and both[1] == infos


def test_one_bad_file_is_named_once_and_borne(caplog: pytest.LogCaptureFixture) -> None:
    ledger = _ReadLedger(n_files=3, max_bad_fraction=0.1)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            ledger.note_bad(Path("a.wav"), "a.wav: broken")
            ledger.note_good(Path("b.wav"))
            ledger.note_good(Path("c.wav"))
    assert [record.getMessage() for record in caplog.records] == ["left out: a.wav: broken"]


def test_too_many_bad_files_stop_the_run_once_enough_were_tried() -> None:
    ledger = _ReadLedger(n_files=1000, max_bad_fraction=0.1)
    for i in range(10):
        ledger.note_bad(Path(f"bad{i}"), f"bad{i}: broken")
    for i in range(JUDGED_AFTER - 11):
        ledger.note_good(Path(f"good{i}"))
    with pytest.raises(DataError, match=r"10 of 50 audio files tried \(of 1000\).*bad0: broken.*and 5 more"):
        ledger.note_good(Path("good"))


def test_all_bad_or_none_allowed_stop_at_once() -> None:
    ledger = _ReadLedger(n_files=2, max_bad_fraction=1.0)
    ledger.note_bad(Path("a"), "a: broken")
    with pytest.raises(DataError, match="2 of 2"):
        ledger.note_bad(Path("b"), "b: broken")
    with pytest.raises(DataError, match="1 of 1 audio files tried"):
        _ReadLedger(n_files=9, max_bad_fraction=0.0).note_bad(Path("a"), "a: broken")
