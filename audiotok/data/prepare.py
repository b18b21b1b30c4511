"""Preparing data: scan folders of audio, split them by track, write one manifest per split.

A split is a matter of whole tracks: segments of one track in two splits would let training see what
evaluation measures. Tracks are ranked by a hash of their path and the seed, so the same folder gives the
same splits on any machine, and adding a track moves few others. Of equal tracks one is taken, and what belongs
together (one recording in two encodings, an album, an artist) goes to one split. Tracks can be converted on the way
(`audiotok.data.convert`), which changes nothing of this.
"""

import hashlib
import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeVar

import soundfile

from audiotok.data.audio import ENCODINGS
from audiotok.data.convert import Conversion, Converted, check_outside, convert_tracks, names_below
from audiotok.data.duplicates import find_copies, united
from audiotok.data.levels import HOT_PEAK, hot_text
from audiotok.data.manifest import AudioMeta, read_manifest, write_manifest
from audiotok.data.scan import LeftOut, Scan, describe, scan_folders
from audiotok.errors import ConfigError, DataError, one_line
from audiotok.files import replacing

logger = logging.getLogger(__name__)

# The stages of a solver, and the share of the tracks each gets.
SPLITS: Mapping[str, float] = MappingProxyType({"train": 0.8, "valid": 0.1, "evaluate": 0.05, "generate": 0.05})
EXTENSIONS = tuple(ENCODINGS)
GROUPINGS = ("folder", "tag")
_NO_ARTIST = frozenset({"", "various artists", "various", "va", "unknown artist", "unknown", "<unknown>"})
_NO_ALBUM = frozenset({"", "unknown album", "unknown", "<unknown>"})
_PLURALS = {"copy": "copies", "unreadable folder": "unreadable folders", "broken link": "broken links",
            "repeated link": "repeated links", "special file": "special files"}  # fmt: skip
_MARK = b"audiotok data prepare"  # comment in the gzip header of a manifest that is written here
_REPORT_EVERY_S = 10.0
_HOT_NAMED = 5  # files beyond full scale in the table; the listing names all

_T = TypeVar("_T")
_R = TypeVar("_R")


class _SplitReport(NamedTuple):
    manifest: Path
    tracks: int
    hours: float


@dataclass(frozen=True, slots=True)
class PrepareReport:
    """What was written and what was left out."""

    splits: dict[str, _SplitReport]
    sample_rates: dict[int, int]  # number of tracks per rate in Hz
    channels: dict[int, int]  # number of tracks per channel count
    left_out: list[LeftOut]  # audio that is not used, sorted by path
    others: Counter[str] = field(default_factory=Counter)  # number of files that are no audio, by extension
    same_recording: list[list[Path]] = field(default_factory=list)  # sets kept in one split: unequal encodings
    ungrouped: int = 0  # tracks without the tags to group by
    removed: list[Path] = field(default_factory=list)  # manifests of an earlier call
    stale: list[Path] = field(default_factory=list)  # manifests from elsewhere that hold some of these tracks
    hot: dict[Path, float] = field(default_factory=dict)  # peaks of tracks that pass full scale by far; those known
    converted: Converted | None = None

    @property
    def max_sample_rate(self) -> int:
        """The lowest rate of any track, in Hz: asking a dataset for more would invent high frequencies."""
        return min(self.sample_rates)

    @property
    def max_channels(self) -> int:
        """The fewest channels of any track."""
        return min(self.channels)

    @property
    def summary(self) -> str:
        """One line: how much there is, and how much was left out, by kind."""
        parts = [
            f"{sum(one.tracks for one in self.splits.values())} tracks, "
            f"{sum(one.hours for one in self.splits.values()):.3g} h",
            _counts_text(self.left_out),
        ]
        if self.same_recording:
            kept, count = sum(map(len, self.same_recording)), len(self.same_recording)
            parts.append(f"{kept} hold {count} recording{'s' * (count > 1)} in several encodings, each in one split")
        if self.ungrouped:
            parts.append(f"{self.ungrouped} without an artist or album tag, grouped by folder")
        if self.others:
            kinds = ", ".join(f"{count} {kind}" for kind, count in _ranked(self.others)[:5])
            parts.append(
                f"passed over {sum(self.others.values())} other files ({kinds}{', …' * (len(self.others) > 5)})"
            )
        return "; ".join(parts)

    def listing(self) -> str:
        """A line for each file that is left out, with its kind and reason, is loud, or is in a set kept together."""
        lines = [f"left out, {one.kind}: {one_line(str(one.path))}: {one_line(one.reason)}" for one in self.left_out]
        lines += ["kept together: " + ", ".join(one_line(str(path)) for path in paths) for paths in self.same_recording]
        lines += [f"far beyond full scale: {hot_text(path, peak)}" for path, peak in self.hot.items()]
        return "\n".join(lines)

    def __str__(self) -> str:
        """A table for people, and the summary as its last line."""
        row = "{:<10} {:>7} tracks {:>9.3f} h  {}"
        lines = [row.format(name, one.tracks, one.hours, one.manifest) for name, one in self.splits.items()]
        lines.append("sample rates: " + ", ".join(f"{n} at {rate} Hz" for rate, n in self.sample_rates.items()))
        lines.append("channels: " + ", ".join(f"{n} with {count}" for count, n in self.channels.items()))
        lines += [f"{hot_text(path, peak)}; used as it is" for path, peak in list(self.hot.items())[:_HOT_NAMED]]
        if len(self.hot) > _HOT_NAMED:
            lines.append(f"and {len(self.hot) - _HOT_NAMED} more beyond full scale: --list-skipped names them")
        lines += [] if self.converted is None else [str(self.converted)]
        lines += [f"removed {path}: of an earlier split of these tracks" for path in self.removed]
        lines += [f"{path} has some of these tracks, too: remove it if it is an earlier split" for path in self.stale]
        return "\n".join([*lines, self.summary])


def prepare(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    splits: Mapping[str, float] = SPLITS,
    seed: int = 0,
    group_by: str | None = None,
    extensions: Sequence[str] = EXTENSIONS,
    min_duration_s: float = 1.0,
    workers: int = 8,
    convert: Conversion | None = None,
) -> PrepareReport:
    """Write `<split>.jsonl.gz` into `output` for each split of the audio found below `folders`.

    Headers are read, files of floating-point samples whole, and of tracks with durations that agree a few seconds. A
    file damaged further on is found by the dataset, which draws another in its place. Hidden files and folders are
    passed over, links to folders followed, a file reached twice counts once. Of tracks with equal samples the first is
    taken; tracks that hold one recording in several encodings stay in one split.

    A manifest that an earlier call wrote into `output` is removed if its split is no longer made and some of its
    tracks are in one that is; a manifest that anything else wrote, or rewrote, is left and named.

    Args:
        folders: where to look, recursively.
        output: folder for the manifests; made if missing.
        splits: name and share of each; their sum is 1. Every split gets at least one track.
        seed: another seed gives another split.
        group_by: "folder" keeps the tracks of a folder in one split; "tag" those of an artist, without an artist of an
            album, without either of a folder. None splits by track.
        extensions: of the files to take, upper or lower case.
        min_duration_s: shorter tracks are left out.
        workers: threads that read.
        convert: copy the tracks into `output`/audio, and list the copies in the manifests. The same tracks go to the
            same splits as without it.

    Raises:
        ConfigError: if there are no splits, a share is not above 0, the shares do not sum to 1, a name is not a plain
            word, `output` cannot be a folder to write to, or copies there would be found as tracks.
        DataError: if a folder is missing, no audio is found or usable, there are fewer tracks or groups than splits, or
            a manifest or copy cannot be written.
    """
    _check_splits(splits)
    if group_by not in (None, *GROUPINGS):
        raise ConfigError(f"group_by={group_by!r}: choose one of {', '.join(GROUPINGS)}, or leave it out.")
    _check_output(Path(output))
    if convert is not None:
        check_outside(Path(output), folders)
    scan = scan_folders(folders, extensions)
    if not scan.found:
        others = ", ".join(f"{n} × {kind}" for kind, n in _ranked(scan.others)[:5]) or "no other files"
        raise DataError(
            f"no audio in {', '.join(map(str, folders)) or 'no folders'}: looked for {', '.join(sorted(extensions))}; "
            f"found {others}; {_counts_text(scan.left_out)}."
        )
    # Threads will do: libsndfile and the file system work without the interpreter's lock.
    with ThreadPoolExecutor(max(1, workers)) as pool:
        each = _Each(pool)
        usable, left_out, hot = _usable(scan, min_duration_s, each)
        copies, same = find_copies(usable, each)
        left_out += [LeftOut(path, "copy", f"equal to {original}") for path, original in copies.items()]
        usable = {path: meta for path, meta in usable.items() if path not in copies}
        sets, ungrouped = _group(list(usable), group_by, each)
    _check_enough(usable, left_out, united(usable, [*same, *sets]), splits, min_duration_s, group_by)
    together = [*same, *sets]
    tracks, converted = usable, None  # of the manifests
    if convert is not None:
        converted = _convert(usable, scan, folders, Path(output), convert)
        tracks, hot = converted.copies, hot | converted.peaks
        left_out += converted.left_out
        kept = ([path for path in paths if path in tracks] for paths in together)
        together = [paths for paths in kept if paths]
        _check_enough(tracks, left_out, united(tracks, together), splits, min_duration_s, group_by)
    reports = {}
    names = {path: scan.found[path] for path in tracks}
    for name, members in _split_tracks(names, splits, seed, together).items():
        chosen = [tracks[path] for path in members]
        manifest = _write(Path(output) / f"{name}.jsonl.gz", chosen)
        reports[name] = _SplitReport(manifest, len(chosen), sum(meta.duration for meta in chosen) / 3600)
    held = {os.path.normpath(path) for path in [*usable, *(meta.path for meta in tracks.values())]}
    removed, stale = _clear(Path(output), set(reports), held)
    return PrepareReport(
        splits=reports,
        sample_rates=dict(sorted(Counter(meta.sample_rate for meta in tracks.values()).items())),
        channels=dict(sorted(Counter(meta.channels or 0 for meta in tracks.values()).items())),
        left_out=sorted(left_out, key=lambda one: one.path),
        others=scan.others,
        same_recording=[sorted(paths) for paths in united(usable, same) if len(paths) > 1],
        ungrouped=ungrouped,
        removed=removed,
        stale=stale,
        hot=dict(sorted((path, peak) for path, peak in hot.items() if path in tracks)),
        converted=converted,
    )


def _convert(
    usable: Mapping[Path, AudioMeta], scan: Scan, folders: Sequence[str | Path], output: Path, how: Conversion
) -> Converted:
    found = {path: scan.found[path] for path in usable}
    names = names_below(found, [Path(folder).absolute() for folder in folders])
    with ThreadPoolExecutor(how.workers or os.cpu_count() or 1) as pool:
        return convert_tracks(usable, names, output, how, _Each(pool))


class _Each:
    """Applies a function to many things in the threads of a pool, in order, and logs its progress now and then."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def __call__(self, work: Callable[[_T], _R], things: Sequence[_T], what: str, /) -> list[_R]:
        results: list[_R] = []
        reported = time.monotonic()
        for result in self._pool.map(work, things):  # an error, Ctrl-C too, cancels what has not begun
            results.append(result)
            if time.monotonic() - reported > _REPORT_EVERY_S:
                reported = time.monotonic()
                logger.info("%s: %d of %d", what, len(results), len(things))
        return results


def _usable(
    scan: Scan, min_duration_s: float, each: _Each
) -> tuple[dict[Path, AudioMeta], list[LeftOut], dict[Path, float]]:
    """The tracks, what is left out, and the peaks of tracks that pass full scale by far."""
    peaks = dict[Path, float]()
    outcomes = each(lambda path: describe(path, min_duration_s, peaks), list(scan.found), "reading headers")
    usable = {what.path: what for what in outcomes if isinstance(what, AudioMeta)}
    hot = {path: peak for path, peak in peaks.items() if peak > HOT_PEAK}
    return usable, scan.left_out + [what for what in outcomes if isinstance(what, LeftOut)], hot


def _group(paths: list[Path], group_by: str | None, each: _Each) -> tuple[list[list[Path]], int]:
    """Sets of tracks that belong together, and how many tracks had to be grouped by folder for lack of tags."""
    if group_by is None:
        return [], 0
    tags = each(_tag, paths, "reading tags") if group_by == "tag" else [None] * len(paths)
    sets: defaultdict[object, list[Path]] = defaultdict(list)
    for path, tag in zip(paths, tags, strict=True):
        sets[tag or path.parent].append(path)
    return list(sets.values()), tags.count(None) if group_by == "tag" else 0


def _tag(path: Path) -> tuple[str, str] | None:
    """Artist of a track, or its album where that is no name; None if it has neither."""
    try:
        with soundfile.SoundFile(os.fsencode(path)) as handle:
            tags = handle.copy_metadata()
    except (soundfile.SoundFileError, OSError):  # it could be opened a moment ago
        return None
    artist, album = (" ".join(tags.get(key, "").split()).casefold() for key in ("artist", "album"))
    if artist not in _NO_ARTIST:
        return "artist", artist
    return ("album", album) if album not in _NO_ALBUM else None


def _split_tracks(
    tracks: Mapping[Path, str], splits: Mapping[str, float], seed: int, together: Sequence[Sequence[Path]] = ()
) -> dict[str, list[Path]]:
    """Distribute tracks (path, and the name that decides) over splits (name and share); their order stays.

    Sizes are by largest remainder, at least one each; a hash of seed and name decides where a track goes. A set of
    tracks that stay together has the lowest hash of its tracks, and goes to the first split with room for half of it.
    """
    ranks = {path: hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()
             for path, name in tracks.items()}  # fmt: skip
    sizes = _sizes(len(tracks), splits)
    groups = sorted(united(tracks, together), key=lambda group: min(map(ranks.__getitem__, group)))
    smallest = min(sizes.values())
    groups.sort(key=lambda group: -len(group) if len(group) > smallest else 0)  # large ones fit first or never
    dealt: dict[str, list[list[Path]]] = {name: [] for name in splits}
    room = dict(sizes)
    for group in groups:
        fitting = (name for name in splits if 2 * room[name] >= len(group))
        name = next(fitting, None) or max(room, key=room.__getitem__)
        dealt[name].append(group)
        room[name] -= len(group)
    for empty in [name for name in splits if not dealt[name]]:
        donors = [name for name in splits if len(dealt[name]) > 1]
        donor = min(donors, key=lambda name: (min(map(len, dealt[name])), room[name]))
        dealt[empty].append(min(reversed(dealt[donor]), key=len))
        dealt[donor].remove(dealt[empty][0])
    home = {path: name for name, members in dealt.items() for group in members for path in group}
    return {name: [path for path in tracks if home[path] == name] for name in splits}


def _sizes(total: int, splits: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers in proportion to the shares (largest remainder), none of them zero."""
    exact = {name: total * share / sum(splits.values()) for name, share in splits.items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    for name in counts:
        if counts[name] == 0:
            counts[max(counts, key=lambda other: counts[other])] -= 1
            counts[name] = 1
    return counts


def _write(path: Path, metas: Sequence[AudioMeta]) -> Path:
    """Write a manifest that `_is_ours`."""
    try:
        write_manifest(path, metas)
        data = path.read_bytes()
        with replacing(path) as draft:
            # RFC 1952: bit 4 of the flags announces a comment, which follows the ten bytes of the header.
            draft.write_bytes(data[:3] + bytes([data[3] | 16]) + data[4:10] + _MARK + b"\0" + data[10:])
    except OSError as err:
        raise DataError(f"cannot write {path}: {err.strerror or err}. Make room, or choose another --output.") from err
    return path


def _is_ours(path: Path) -> bool:
    """Whether `prepare` wrote a manifest and nothing rewrote it since."""
    with path.open("rb") as file:
        head = file.read(11 + len(_MARK))
    return head[:2] == b"\x1f\x8b" and head[3:4] == b"\x10" and head[10:] == _MARK + b"\0"


def _clear(output: Path, made: set[str], tracks: set[str]) -> tuple[list[Path], list[Path]]:
    """Remove manifests of earlier calls that hold some of the tracks; returns them, and such ones of other origin."""
    removed, stale = [], []
    for path in sorted(output.glob("*.jsonl.gz")):
        if path.name.removesuffix(".jsonl.gz") in made:
            continue
        try:
            if any(str(meta.path) in tracks for meta in read_manifest(path)):
                if _is_ours(path):
                    path.unlink()
                    removed.append(path)
                else:
                    stale.append(path)
        except (DataError, OSError):  # whatever it is, it is not from here
            continue
    return removed, stale


def _check_splits(splits: Mapping[str, float]) -> None:
    wrong = [f"{name}={share}" for name, share in splits.items() if not share > 0 or not name.isidentifier()]
    if wrong or not splits:
        raise ConfigError(
            f"splits: {', '.join(wrong) or 'none given'}; expected names such as {', '.join(SPLITS)}, each "
            "with a share above 0."
        )
    total = sum(splits.values())
    if abs(total - 1) > 0.011:  # thirds as 0.33
        given = " ".join(f"{name}={share:g}" for name, share in splits.items())
        if total < 1:
            missing = next((name for name in SPLITS if name not in splits), "rest")
            advice = f"add the others, such as --split {missing}={1 - total:.3g}"
        else:
            advice = "give each as a part of 1"
        alone = f", or give --split {next(iter(splits))}=1 for a single manifest" if len(splits) == 1 else ""
        raise ConfigError(f"splits: the shares in {given} sum to {total:.3g}, not to 1: {advice}{alone}.")


def _check_output(output: Path) -> None:
    """Before anything is read: whether `output` is, or can be made, a folder to write to."""
    there = output.absolute()
    try:
        while not os.path.lexists(there):
            there = there.parent
        if not there.is_dir():
            raise ConfigError(f"--output {output}: {there} is not a folder. Name a folder for the manifests.")
        writable = os.access(there, os.W_OK | os.X_OK)
    except OSError as err:
        raise ConfigError(f"--output {output}: {err.strerror}. Name a folder for the manifests.") from err
    if not writable:
        raise ConfigError(f"--output {output}: {there} cannot be written to. Name a folder of yours.")


def _check_enough(
    usable: Mapping[Path, AudioMeta],
    left_out: list[LeftOut],
    groups: Sequence[Sequence[Path]],
    splits: Mapping[str, float],
    min_duration_s: float,
    group_by: str | None,
) -> None:
    if len(groups) >= len(splits):
        return
    found = f"{len(usable)} usable tracks"
    if len(groups) < len(usable):
        by = f" by {group_by}" if group_by else " of tracks that hold one recording"
        found += f" in {len(groups)} groups{by}"
    first = next((one for one in left_out if one.kind in ("unreadable", "beyond full scale", "too short")), None)
    raise DataError(
        f"{found} for {len(splits)} splits ({', '.join(splits)}), each of which needs one; {_counts_text(left_out)}"
        + (f" (first: {one_line(str(first.path))}: {one_line(first.reason)})" if first else "")
        + ". Add tracks, cut long ones into several files, or choose fewer splits"
        + (", or leave out --group-by." if group_by else ".")
    )


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    """Most frequent first, then by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _counts_text(left_out: Sequence[LeftOut]) -> str:
    """`left out 7: 4 m4a, 3 too short`."""
    kinds = _ranked(Counter(one.kind for one in left_out))
    text = ", ".join(f"{count} {kind if count == 1 else _PLURALS.get(kind, kind)}" for kind, count in kinds)
    return f"left out {len(left_out)}: {text}" if kinds else "left out none"
