"""Embeddings from TorchScript and ONNX files, and the distance between folders of audio, also as a command."""

import math
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from audiotok.cli import main
from audiotok.data.audio import read_audio, write_audio
from audiotok.errors import ConfigError, DataError
from audiotok.metrics.embeddings import FileEmbedding, LogMelEmbedding
from audiotok.metrics.folder_distance import folder_distance
from audiotok.metrics.frechet import LogMelFrames, Moments, distance_of_sets
from audiotok.models import CompressionModel

WIDTH = 4  # of the vectors of the files below: that many samples each


class Blocks(torch.nn.Module):
    """Blocks of four samples, after their number of channels and samples has been checked."""

    sample_rate: int

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.sample_rate = sample_rate

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 3 and x.shape[0] == 1 and x.shape[1] == 1
        return x[..., : x.shape[2] // 4 * 4].reshape(1, -1, 4)


class Words(torch.nn.Module):
    def forward(self, x: Tensor) -> str:
        return "vectors"


def torchscript(path: Path, module: torch.nn.Module) -> Path:
    torch.jit.script(module).save(str(path))
    return path


def field(number: int, value: int | bytes | str) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    content = value.encode() if isinstance(value, str) else value
    assert len(content) < 1 << 14
    low, high = len(content) & 127, len(content) >> 7
    return bytes([number << 3 | 2, *((low | 128, high) if high else (low,))]) + content


def onnx(path: Path, axes: int, sample_rate: str | None = None) -> Path:
    """An ONNX file that reshapes its input of 2 or 3 axes to [-1, 4], written by the format's own description."""

    def value(name: str, shape: Sequence[str]) -> bytes:
        dims = b"".join(field(1, field(2, dim)) for dim in shape)
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))

    shape = field(1, 2) + field(2, 7) + field(8, "shape") + field(9, struct.pack("<2q", -1, WIDTH))
    node = field(1, "audio") + field(1, "shape") + field(2, "vectors") + field(4, "Reshape")
    inputs = value("audio", ["a", "b", "c"][:axes])
    graph = (
        field(1, node) + field(2, "g") + field(5, shape) + field(11, inputs) + field(12, value("vectors", ["n", "d"]))
    )
    meta = field(14, field(1, "sample_rate") + field(2, sample_rate)) if sample_rate else b""
    path.write_bytes(field(1, 8) + field(7, graph) + field(8, field(1, "") + field(2, 13)) + meta)
    return path


def music(folder: Path, count: int, seed: int, *, rate: int = 8000, seconds: float = 3.0, slope: float = 0.9) -> Path:
    """Folder of coloured noise."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    for index in range(count):
        noise = torch.randn(1, int(seconds * rate * (1 + index % 3)), generator=generator)
        noise[:, 1:] += slope * noise[:, :-1]
        write_audio(folder / f"{seed}-{index}.wav", 0.1 * noise, rate)
    return folder


def test_files_of_both_kinds_give_the_vectors_of_their_networks(tmp_path: Path) -> None:
    wav = torch.randn(1, 4000)
    wanted = wav.view(-1, WIDTH)
    script = FileEmbedding(torchscript(tmp_path / "net.pt", Blocks(16000)))
    assert script.sample_rate == 16000 and script.channels == 1
    assert torch.equal(script(wav), wanted)
    for axes in (2, 3):
        found = FileEmbedding(onnx(tmp_path / f"net{axes}.onnx", axes, "22050"))
        assert found.sample_rate == 22050
        assert torch.equal(found(wav), wanted)
    assert FileEmbedding(tmp_path / "net.pt", 8000).sample_rate == 8000  # what is given comes first


def test_a_file_that_cannot_be_used_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.pt").write_text("no network")
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(DataError, match=r"no file .*/absent\.pt; give the TorchScript or ONNX file"):
        FileEmbedding(tmp_path / "absent.pt", 8000)
    with pytest.raises(DataError, match="cannot be read as TorchScript"):
        FileEmbedding(tmp_path / "text.pt", 8000)
    with pytest.raises(DataError, match="cannot be read as ONNX"):
        FileEmbedding(tmp_path / "text.onnx", 8000)
    network = onnx(tmp_path / "net.onnx", 3)
    with pytest.raises(ConfigError, match=r"net\.onnx does not say at which rate .* --sample-rate"):
        FileEmbedding(network)
    with pytest.raises(DataError, match=r"net\.onnx fails for \[1, 1, 4001\] samples: .*"):
        FileEmbedding(network, 8000)(torch.zeros(1, 4001))
    with pytest.raises(DataError, match=r"words\.pt returns a str; vectors \[N, D\] of floats are expected"):
        FileEmbedding(torchscript(tmp_path / "words.pt", Words()), 8000)(torch.zeros(1, 4000))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"needs the package onnxruntime .* pip install 'audiotok\[onnx\]'"):
        FileEmbedding(network, 8000)


def test_folders_are_compared_at_the_lowest_rate_file_by_file(tmp_path: Path) -> None:
    a, b = music(tmp_path / "a", 5, 1, slope=0.5), music(tmp_path / "b/below", 7, 2)
    music(tmp_path / "b", 2, 3, rate=16000)
    distance, generated, reference, used = folder_distance(a, tmp_path / "b", LogMelEmbedding)
    assert (len(generated.files), len(reference.files)) == (5, 9)
    assert (generated.resampled, reference.resampled, used.sample_rate) == (0, 2, 8000)

    def moments(path: Path) -> Moments:
        return Moments.of(LogMelFrames(8000)(read_audio(path)[0]))

    only = folder_distance(a, b, LogMelEmbedding)[0]
    wanted = distance_of_sets([moments(path) for path in sorted(a.glob("*"))], list(map(moments, sorted(b.glob("*")))))
    assert only.value == pytest.approx(wanted.value, rel=1e-9)
    assert only.error == pytest.approx(wanted.error, rel=1e-9)
    assert distance.value > 0


def test_files_of_the_same_names_are_versions_of_recordings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a = music(tmp_path / "a", 5, 1)
    for path in a.glob("*"):
        wav, rate = read_audio(path)
        write_audio((tmp_path / "b" / path.name).with_suffix(".flac"), 0.9 * wav + 1e-3 * torch.randn_like(wav), rate)
    b = tmp_path / "b"
    distance = folder_distance(a, b, LogMelEmbedding)[0]
    sets = ([Moments.of(LogMelFrames(8000)(read_audio(path)[0])) for path in sorted(x.glob("*"))] for x in (a, b))
    wanted = distance_of_sets(*sets, paired=True)
    assert distance.value == pytest.approx(wanted.value, rel=1e-9)
    assert distance.error == pytest.approx(wanted.error, rel=1e-9)
    assert "the same name" not in caplog.text
    (b / "1-0.flac").rename(b / "another.flac")
    assert folder_distance(a, b, LogMelEmbedding)[0].value < distance.value
    assert "4 files have the same name in both folders" in caplog.text


def test_long_files_are_read_in_equal_pieces(tmp_path: Path) -> None:
    folder = music(tmp_path / "a", 2, 1, rate=1000, seconds=20.0)  # 20 and 40 s
    lengths: list[int] = []

    class Watching(LogMelEmbedding):
        def __call__(self, wav: Tensor) -> Tensor:
            lengths.append(wav.shape[-1])
            return wav[:, : wav.shape[-1] // 4 * 4].reshape(-1, 4)

    _, found, _, _ = folder_distance(folder, folder, lambda rate: Watching(8000))
    assert lengths[:3] == [160_000, 160_000, 160_000]
    assert found.frames == 3 * 40_000


def test_the_command_prints_distance_sets_and_bias(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = music(tmp_path / "a", 5, 1, slope=0.5), music(tmp_path / "b", 6, 2, rate=16000)
    assert main(["distance", str(a), str(b), "--embedding", str(torchscript(tmp_path / "n.pt", Blocks(16000)))]) == 0
    lines = capsys.readouterr().out.splitlines()
    wanted = folder_distance(a, b, lambda _: FileEmbedding(tmp_path / "n.pt"))[0]
    assert lines[0].split()[:4] == ["distance", f"{wanted.value:.6g}", "±", f"{wanted.error:.3g}"]
    assert "n.pt at 16000 Hz" in lines[0]
    assert "5 files, 5 of them resampled" in lines[1] and f"vectors of {WIDTH} dimensions" in lines[1]
    assert "6 files, " in lines[2]
    assert f"{wanted.plain:.6g}" in lines[3] and "infinitely many files" in lines[3]
    assert main(["distance", str(a), str(b)]) == 0
    assert "log-mel frames at 8000 Hz" in capsys.readouterr().out


def test_the_command_compares_vectors_of_a_codec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (music(tmp_path / str(seed), 4, seed, rate=32000, seconds=0.4) for seed in (1, 2))
    assert main(["distance", str(a), str(b), "--codec", "demo"]) == 0
    said = capsys.readouterr().out.splitlines()
    model = CompressionModel.get_pretrained("demo")

    def moments(path: Path) -> Moments:
        codes = model.encode(read_audio(path)[0][None])[0]
        return Moments.of(model.decode_latent(codes)[0].T)

    sets = ([moments(path) for path in sorted(folder.glob("*"))] for folder in (a, b))
    assert float(said[0].split()[1]) == pytest.approx(distance_of_sets(*sets, relative=True).value, rel=1e-4)
    assert "units of the reference's variance" in said[0]


Make = Callable[[Path], list[str]]


def _empty(folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    return [str(folder / "empty"), str(music(folder / "a", 2, 1))]


def _short(folder: Path) -> list[str]:
    return [str(music(folder / "a", 2, 1)), str(music(folder / "b", 3, 1, seconds=0.01))]


def _few(folder: Path) -> list[str]:
    return [str(music(folder / "a", 5, 1)), str(music(folder / "b", 2, 1, seconds=1.0))]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_empty, "empty holds no audio that can be read"),
        (_short, "b has 0 files that can be compared, two or more are needed: shorter than a frame"),
        (_few, "frames in the reference set"),
        (lambda folder: [str(folder / "none"), str(folder)], "none is not a folder"),
        (lambda folder: [str(folder), str(folder), "--sample-rate", "7"], "--sample-rate 7: give Hz"),
        (lambda folder: [str(folder), str(folder), "--codec", "demo", "--sample-rate", "8000"], "does nothing with"),
        (lambda folder: [str(folder), str(folder), "--codec", "absent"], "no checkpoint at absent"),
        (lambda folder: [str(folder), str(folder), "--embedding", "vggish"], "no file vggish"),
    ],
)
def test_a_mistake_is_one_line(make: Make, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distance", *make(tmp_path)]) == 2
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ") and said in last and not out


def test_vectors_of_too_many_dimensions_are_refused(tmp_path: Path) -> None:
    class Wide(torch.nn.Module):
        def forward(self, wav: Tensor) -> Tensor:
            return wav.expand(1, 2, wav.shape[-1])

    torch.jit.trace(Wide(), torch.zeros(1, 1, 16_000)).save(str(tmp_path / "wide.pt"))
    embedding = FileEmbedding(tmp_path / "wide.pt", 16_000)
    assert embedding(torch.zeros(1, 8192)).shape == (2, 8192)
    with pytest.raises(DataError, match=r"wide.pt returns vectors of 8193 dimensions; 8192 are the most"):
        embedding(torch.zeros(1, 8193))


def test_vectors_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    class Odd(LogMelEmbedding):
        def __call__(self, wav: Tensor) -> Tensor:
            return torch.full((10, 2), math.nan) if wav.shape[-1] == 16000 else torch.zeros(10, wav.shape[-1] // 8000)

    folder = music(tmp_path / "a", 3, 1)  # 3, 6 and 9 s
    with pytest.raises(DataError, match=r"vectors of \[3, 6, 9\] dimensions"):
        folder_distance(folder, folder, Odd)
    for path in (folder / "1-1.wav", folder / "1-2.wav"):
        write_audio(path, torch.from_numpy(np.zeros((1, 16000), np.float32)), 8000)
    with pytest.raises(DataError, match=r"a has 1 files .* not finite"):
        folder_distance(folder, folder, Odd)
