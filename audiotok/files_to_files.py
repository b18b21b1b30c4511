"""Many files into many others in one call: found in folders, planned, some at once, listed.

A file that fails is listed and the others are worked on; a disk that cannot be written ends the call.
"""

import errno
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from audiotok.data.scan import scan_folders
from audiotok.errors import AudiotokError, ConfigError, DataError

logger = logging.getLogger(__name__)

_FATAL = frozenset({errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EFBIG})
Progress = Callable[[float, float], None]  # takes the seconds of audio done, and those to do
Step = Callable[[float], None]  # takes the seconds of audio done of a file; raises where the call ends


class OutputError(DataError):
    """The output cannot be written: the disk is full, or may not be written. Ends the call; files done are kept."""


@dataclass
class Report:
    """What a call did.

    Args:
        done: output files written.
        kept: output files that were there already, of the same codec and source.
        failed: source and why.
        audio_s: seconds of audio coded.
        size: bytes of the token files written.
    """

    done: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)
    audio_s: float = 0.0
    size: int = 0


class _Stopped(Exception):
    """The call ends: this file is left as it was."""


def find_files(sources: Sequence[Path], extensions: Sequence[str]) -> dict[Path, str]:
    """Files among and below some paths, each with its name below that path; DataError if there is none."""
    found, seen = dict[Path, str](), set[Path]()
    for source in sources:
        if os.path.isdir(source):
            scan = scan_folders([source], extensions)
            for each in scan.left_out:
                logger.info("left out: %s (%s)", each.path, each.reason)
            new = scan.found
        else:
            new = {source: source.name}
        for path, name in new.items():
            if (real := path.resolve()) not in seen:
                seen.add(real)
                found[path] = name
    if not found:
        kinds = ", ".join(extension.lstrip(".") for extension in extensions)
        raise DataError(f"{', '.join(map(str, sources))}: no file to code; looked for {kinds}.")
    return found


def plan_targets(found: dict[Path, str], out: Path, name_of: Callable[[str], str]) -> dict[Path, Path]:
    """The file that each source becomes; DataError if two become the same."""
    plan, sources = dict[Path, Path](), dict[Path, Path]()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--out {out} cannot be made ({error.strerror}).") from error
    for source, name in found.items():
        target = out / name_of(name)
        if target in sources:
            raise DataError(f"{sources[target]} and {source} would both become {target}: give their folders two --out.")
        sources[target] = source
        plan[source] = target
    return plan


def run_files(
    code: Callable[[Path, Path, Step], int | None],
    plan: dict[Path, Path],
    lengths: dict[Path, float],
    jobs: int,
    progress: Progress | None,
    report: Report,
) -> None:
    """Code files, some at once; Ctrl-C and a full disk end all of them, without a half file.

    Args:
        code: makes the target of a source; returns the size of the token file, None if the target was there.
        plan: the target of each source.
        lengths: seconds of audio of each.
        jobs: files at once, in threads.
        progress: see `Progress`.
        report: filled in as files are done.

    Raises:
        ConfigError: if jobs is out of range.
        OutputError: if a target cannot be written.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs {jobs}: expected 1 or more.")
    stop, lock, done_s, total_s = threading.Event(), threading.Lock(), 0.0, sum(lengths.values())

    def step(seconds: float) -> None:
        nonlocal done_s
        if stop.is_set():
            raise _Stopped
        with lock:
            done_s += seconds
            if progress is not None:
                progress(min(done_s, total_s), total_s)

    def one(source: Path, target: Path) -> None:
        nonlocal total_s
        if stop.is_set():
            return
        try:
            with suppress(FileNotFoundError):
                target.lstat()  # fails for a name that is too long, which else shows when all is coded
            size = code(source, target, step)
        except _Stopped:
            return
        except AudiotokError as error:
            if isinstance(error, OutputError):
                raise
            with lock:
                name = "" if str(source) in str(error) else f"{source}: "
                report.failed.append((source, f"{name}{error}"))
            return
        except OSError as error:
            if error.errno in _FATAL:
                raise OutputError(f"{target} cannot be written ({error.strerror}). What is done is kept.") from error
            with lock:
                report.failed.append((source, f"{target} cannot be written ({error.strerror or error})."))
            return
        with lock:
            (report.kept if size is None else report.done).append(target)
            if size is None:
                total_s -= lengths[source]
            else:
                report.audio_s += lengths[source]
                report.size += size

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(jobs, initializer=torch.set_num_threads, initargs=(max(1, threads // jobs),))
    try:
        for future in as_completed([pool.submit(one, source, target) for source, target in plan.items()]):
            future.result()
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
