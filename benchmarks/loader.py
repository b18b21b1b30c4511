"""The data loader beside AudioCraft's dataset: `python -m benchmarks.loader [--audiocraft CLONE] [--music FOLDER]`.

CLONE is a clone of github.com/facebookresearch/audiocraft, of which the reading of audio and the dataset are imported;
they need the package julius. Without CLONE only ours is measured.

The tracks of FOLDER (by default the demo's, see `audiotok data demo`) are joined to longer ones and written in all five
formats, and ours also to flac and wav as `audiotok data prepare --convert` makes them. Both draw segments of them at 32
kHz, mono. They take turns, a few segments each, so that a busy machine slows both.
"""

import argparse
import importlib
import itertools
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils.data import DataLoader

from audiotok.data.audio import audio_info, convert_audio, read_audio, read_segment, write_audio
from audiotok.data.convert import Conversion
from audiotok.data.dataset import AudioDataset, get_loader
from audiotok.data.manifest import AudioMeta, read_manifest
from audiotok.data.prepare import EXTENSIONS, prepare
from benchmarks.machine import where, write_page

FORMATS = ("wav", "flac", "mp3", "ogg", "opus")
SLOW = "opus, without PyAV"
RATE, TRACKS, JOINED = 32000, 4, 4
TURN = 5  # segments in a row
Dataset = Any
Times = dict[str, float]


def import_audiocraft(clone: Path) -> tuple[Any, Any]:
    """Its modules `data.audio` and `data.audio_dataset`, without the packages that import everything else."""
    for name in ("", ".data"):
        package = types.ModuleType(f"audiocraft{name}")
        package.__path__ = [str(clone / "audiocraft" / name.strip("."))]
        sys.modules[package.__name__] = package
    reading, dataset = (importlib.import_module(f"audiocraft.data.{name}") for name in ("audio", "audio_dataset"))
    return reading, dataset


def make_tracks(music: Path, folder: Path) -> list[Path]:
    """A folder for each format, and of the opus ones copies as flac and wav at `RATE`, mono."""
    found = sorted(path for path in music.rglob("*") if path.suffix.lower() in EXTENSIONS)
    for track in range(TRACKS):
        parts = [read_audio(path) for path in found[track * JOINED : (track + 1) * JOINED]]
        for extension in FORMATS:
            wav = torch.cat([wav for wav, _ in parts], dim=-1)
            write_audio(folder / extension / f"{track}.{extension}", wav, parts[0][1], strategy="clip")
    for kind in ("flac", "wav"):
        converted = Conversion(kind, RATE, 1)
        prepare([folder / "opus"], folder / f"converted to {kind}", splits={"all": 1}, convert=converted)
    return [folder / extension for extension in FORMATS]


def metas_of(folder: Path) -> list[AudioMeta]:
    """The tracks below a folder of `make_tracks`."""
    if folder.name.startswith("converted"):
        return read_manifest(folder / "all.jsonl.gz")
    infos = {path: audio_info(path) for path in sorted(folder.iterdir())}
    return [AudioMeta(path, info.duration_s, info.sample_rate, info.channels) for path, info in infos.items()]


def ours(folder: Path, segment_s: float) -> AudioDataset:
    """Our dataset."""
    return AudioDataset(metas_of(folder), segment_s=segment_s, sample_rate=RATE, channels=1, num_samples=100_000)


def theirs(module: Any, folder: Path, segment_s: float) -> Dataset:
    """AudioCraft's, as its solver for codecs makes it."""
    metas = [module.AudioMeta(str(m.path), m.duration, m.sample_rate) for m in metas_of(folder)]
    dataset = module.AudioDataset(metas, segment_s, sample_rate=RATE, channels=1, num_samples=100_000)
    dataset.start_epoch(1)
    return dataset


def cpu_ms(datasets: Mapping[str, Dataset], segments: int) -> Times:
    """Milliseconds of CPU per segment: the median of turns, which the datasets take one after the other."""
    found: dict[str, list[float]] = {name: [] for name in datasets}
    for turn, (name, dataset) in itertools.product(range(-1, segments // TURN), datasets.items()):
        start = time.process_time()
        for index in range((turn + 1) * TURN, (turn + 2) * TURN):
            dataset[index]
        if turn >= 0:  # the first one opens files and makes filters
            found[name].append((time.process_time() - start) / TURN * 1e3)
    return {name: statistics.median(values) for name, values in found.items()}


def with_workers(datasets: Mapping[str, Dataset], segments: int, repeats: int = 3) -> Times:
    """Segments per second of wall time by two workers, the median of repeats that take turns."""
    found: dict[str, list[float]] = {name: [] for name in datasets}
    for _, (name, dataset) in itertools.product(range(repeats), datasets.items()):
        loader: Any = DataLoader(dataset, batch_size=4, num_workers=2, persistent_workers=True)
        if isinstance(dataset, AudioDataset):
            loader = get_loader(dataset, batch_size=4, num_workers=2)
        batches = iter(loader)
        for _ in range(4):  # workers are there
            next(batches)
        start = time.perf_counter()
        for _ in range(segments // 4):
            next(batches)
        found[name].append(segments / (time.perf_counter() - start))
        del batches, loader
    return {name: statistics.median(values) for name, values in found.items()}


def our_error(path: Path) -> float:
    """Largest difference between segments and the same stretches of the whole track, decoded and resampled."""
    wav, rate = read_audio(path)
    whole = convert_audio(wav, rate, RATE, 1)
    starts = [0.01, 5.0013, 17.7, 31.337, 43.21]
    pieces = [read_segment(path, start_s=s, n_frames=RATE, sample_rate=RATE, channels=1) for s in starts]
    return max(float((piece - whole[:, round(s * RATE) :][:, :RATE]).abs().max()) for piece, s in pieces)


def their_error(reading: Any, path: Path) -> float:
    """The same of AudioCraft's reading, before resampling."""
    whole, rate = reading.audio_read(path)
    pieces = [(reading.audio_read(path, s, 1.0)[0], int(s * rate)) for s in (0.01, 5.0013, 17.7, 31.337, 43.21)]
    return max(float((piece - whole[:, at:][:, : piece.shape[1]]).abs().max()) for piece, at in pieces)


def check_workers(dataset: AudioDataset) -> None:
    """AssertionError unless batches are the same for any number of workers."""
    alone, helped = (iter(get_loader(dataset, batch_size=4, num_workers=n)) for n in (0, 2))
    for one, other in itertools.islice(zip(alone, helped, strict=True), 3):
        assert torch.equal(one, other)


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (heading, ["---"] * len(heading), *rows))


class ByLibsndfile:
    """Our dataset without PyAV."""

    def __init__(self, dataset: AudioDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """A segment."""
        with mock.patch("audiotok.data.audio.open_opus", lambda path, rate: None):
            return self.dataset[index]


def speeds(
    folders: Sequence[Path], module: Any, segment_s: float, measure: Callable[..., Times], n: int
) -> list[tuple[str, Times]]:
    """Figures of each format."""
    found = []
    for folder in folders:
        cases: list[tuple[str, dict[str, Dataset]]] = [(folder.name, {"ours": ours(folder, segment_s)})]
        if module is not None and not folder.name.startswith("converted"):
            cases[0][1]["theirs"] = theirs(module, folder, segment_s)
        if folder.name == "opus":
            cases.append((SLOW, {"ours": ByLibsndfile(ours(folder, segment_s))}))
        for name, datasets in cases:
            found.append((name, measure(datasets, n)))
            print(segment_s, *found[-1], file=sys.stderr, flush=True)
    return found


def rows_of(figures: Sequence[tuple[str, Times]], per_second: Callable[[float], float]) -> list[list[str]]:
    """Segments per second of each format and over the mix of the five; copies of opus against theirs of opus."""
    rates = {name: {who: per_second(value) for who, value in times.items()} for name, times in figures}
    mixed = [rates[name] for name in FORMATS]
    rates["all five alike"] = {who: len(mixed) / sum(1 / one[who] for one in mixed) for who in mixed[0]}
    rows = []
    for name, one in rates.items():
        against = one.get("theirs", rates["opus"].get("theirs"))
        cells = [name, f"{one['ours']:.0f}"]
        if against is not None:
            cells += [f"{one['theirs']:.0f}" if "theirs" in one else "", f"{one['ours'] / against:.2f}"]
        rows.append(cells)
    return rows


def main() -> None:
    """Measure all, and write docs/benchmarks/loader.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audiocraft", type=Path, metavar="CLONE")
    parser.add_argument("--music", type=Path, default=Path("data/demo"), metavar="FOLDER")
    parser.add_argument("--segments", type=int, default=60, help="of each format (default: 60)")
    parser.add_argument("--quick", action="store_true", help="few segments, and no page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    reading, module = import_audiocraft(options.audiocraft) if options.audiocraft else (None, None)
    segments = 2 * TURN if options.quick else options.segments
    who = ["ours", "theirs", "times theirs"] if module else ["ours"]
    with tempfile.TemporaryDirectory() as scratch:
        plain = make_tracks(options.music, Path(scratch))
        folders = [*plain, *sorted(Path(scratch).glob("converted*"))]
        check_workers(ours(folders[-1], 1.0))
        short = speeds(folders, module, 1.0, cpu_ms, segments)
        long = speeds(folders, module, 10.0, cpu_ms, max(2 * TURN, segments // 4))
        both = speeds(folders, module, 1.0, with_workers, 4 * segments)
        errors = [[f.name, f"{our_error(next(f.iterdir())):.0e}"] for f in plain]
        if reading is not None:
            for row, folder in zip(errors, plain, strict=True):
                row.append(f"{their_error(reading, next(folder.iterdir())):.0e}")
    command = "benchmarks.loader" + (" --audiocraft CLONE" if module else "")
    page = [
        "# The data loader beside AudioCraft's",
        where(command),
        f"Segments at 32 kHz mono of {TRACKS} tracks of about two minutes, 48 kHz stereo, in five formats. Copies are "
        "those of opus, by `audiotok data prepare --convert`, beside theirs of opus.",
        "Segments of 1 s per second of CPU, without workers:",
        table(["format", *who], rows_of(short, lambda ms: 1e3 / ms)),
        "Segments of 10 s per second of CPU, without workers:",
        table(["format", *who], rows_of(long, lambda ms: 1e3 / ms)),
        "Segments of 1 s per second of wall time, two workers:",
        table(["format", *who], rows_of(both, float)),
        "Largest difference between a segment and the same stretch of the whole track (full scale is 1):",
        table(["format", *who[:2]], errors),
    ]
    text = "\n\n".join(page) + "\n"
    print(text) if options.quick else write_page("loader.md", text)


if __name__ == "__main__":
    main()
