"""The code of a launch, copied once to `<dora.dir>/code/HASH`: jobs run it, whatever is edited while they wait.

A snapshot holds the source trees that the training function and this library are imported from, unless they are
installed, a folder each: `code/3f2a…/mycodec`, `code/3f2a…/audiotok`. Its name is the hash of its content, so that a
thousand jobs, and every launch without an edit in between, share one. Of a git repository it holds what git tracks or
would (`.gitignore`); elsewhere the files with the suffixes of sources. Data, outputs, virtual environments, keys, large
files and links that lead outside are left out. Files are read-only; one that was changed nevertheless is mended.
"""

import contextlib
import hashlib
import os
import re
import shutil
import socket
import subprocess as sp
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dora.main import DecoratedMain

import audiotok
from audiotok.errors import LaunchError
from audiotok.files import replacing
from audiotok.utils.commit import COMMIT_VARIABLE, current_commit

CODE_VARIABLE = "AUDIOTOK_CODE"  # of a job: the snapshot that it runs
MAX_FILE, MAX_TOTAL = 5_000_000, 50_000_000  # bytes
MAX_FILES = 10_000
_MAX_SEEN = 50_000  # entries of folders outside of git
_LIVE = "or set `code: live` in the cluster profile, to run the code as it is when a job starts"
_SOURCES = frozenset((
    ".py", ".pyi", ".pyx", ".pxd", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".json", ".txt", ".sh", ".jinja", ".j2",
    ".html", ".css", ".js", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".so",
))  # fmt: skip
_DATA = frozenset((
    ".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma", ".mp4", ".mkv", ".npy", ".npz",
    ".h5", ".hdf5", ".parquet", ".arrow", ".feather", ".lmdb", ".tfrecord", ".pkl", ".pickle", ".th", ".pt", ".pth",
    ".ckpt", ".safetensors", ".onnx", ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".pyc",
))  # fmt: skip
_SECRET = re.compile(
    r"\.env(\..*)?|\.envrc|\.netrc|\.pgpass|\.pypirc|\.npmrc|\.htpasswd|\.git-credentials|credentials\.json"
    r"|\.ssh|\.aws|\.gnupg|id_(rsa|dsa|ecdsa|ed25519).*|.*\.(pem|key|p12|pfx|kdbx)",
    re.IGNORECASE,
)
_SKIPPED_FOLDERS = frozenset(("__pycache__", "node_modules"))
_OF_RESULTS = ("xps", "code", "submissions", "local", "by_id", "locks", "plans")  # folders in `dora.dir`


@dataclass(frozen=True)
class Snapshot:
    """Where the code of a launch is kept, and which it is."""

    path: Path
    commit: str  # of the training package, such as `32323f5-dirty`; "" outside of git
    environ: dict[str, str]  # what makes a Python that is started with -P run it

    def as_json(self) -> dict[str, str]:
        """What `job.json` holds of it."""
        return {"sha": self.path.name, "path": str(self.path), "commit": self.commit}


@dataclass(frozen=True)
class _Entry:
    content: bytes  # of a file; of a link where it leads
    mode: int | None  # permissions of a file, without those to write; None for a link


def take_snapshot(main: DecoratedMain, log: Callable[[str], None]) -> Snapshot | None:
    """Keep the code that an entry point is made of, with this library; None if all of it is installed.

    Args:
        main: the entry point; the snapshot lies below its `dora.dir`.
        log: for a line on what was too large or leads outside, and one on what was mended.

    Raises:
        LaunchError: if it is too large or cannot be written.
    """
    file, init = Path(main.main.__code__.co_filename).resolve(), Path(audiotok.__file__).resolve()
    own, library = file.parents[f"{main.package}.".count(".")], init.parent.parent
    trees: dict[Path, str] = {}  # folder → its name in the snapshot
    entries: dict[str, _Entry] = {}
    left_out: list[str] = []
    outputs = Path(main.dora.dir).resolve()
    config = Path(getattr(main, "full_config_path", file.parent / "config"))
    for start, example, presets in ((own, file, config), (library, init, init.parent / "config")):
        if _is_installed(start) or _mapped(example, trees) in entries:
            continue
        top, names = _listed(start, example, presets, outputs)
        trees[top] = top.name if top.name not in trees.values() else f"{top.name}-{len(trees) + 1}"
        size = 0
        for name in names:
            entry = _read(top, name, left_out)
            if entry is not None:
                entries[f"{trees[top]}/{name}"] = entry
                size += len(entry.content)
            if size > MAX_TOTAL or len(entries) > MAX_FILES:
                raise _too_large(top, entries)
    if not trees:
        return None
    if not _is_installed(own) and not _mapped(config, trees):
        where = f"{config}, which the experiments of {file} are composed from, lies outside of {own}"
        raise LaunchError(f"{where}: no snapshot of the code can hold it; put both into one git repository, {_LIVE}.")
    # By the path of the results folder that a container mounts, also if that is a link.
    path = _keep(Path(main.dora.dir).absolute() / "code", entries, left_out, log)
    # What users have in PYTHONPATH stays behind it, for what is no part of the snapshot.
    paths = [*_import_path(path, trees, [own, library]), os.environ.get("PYTHONPATH", "")]
    environ = {CODE_VARIABLE: str(path), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if not _is_installed(library):
        environ[COMMIT_VARIABLE] = current_commit()
    return Snapshot(path, "" if _is_installed(own) else current_commit(own), environ)


def _is_installed(folder: Path) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(folder.parts)


def _listed(start: Path, example: Path, presets: Path, outputs: Path) -> tuple[Path, list[str]]:
    """The tree that the modules of a folder belong to, and the names of its files, sorted.

    It is their git repository, if `example` is a file of it; else the folder itself. Presets are in it even if git
    ignores them, as one may ignore the profile of a cluster, and the library's own models, which are no sources.
    """
    own = sorted([*presets.resolve().rglob("*.yaml"), *start.glob("audiotok/models/weights/*")])
    found = _git(start, "rev-parse", "--show-toplevel").strip()
    top, names = Path(found).resolve(), list[str]()
    if found and top != Path.home().resolve():  # a home that is kept in git is more than a project
        names = list(_git_files(top))
    if not names or example.relative_to(top).as_posix() not in names:
        top, names = start, list(_walk(start, outputs))
    names += [path.relative_to(top).as_posix() for path in own if path.is_relative_to(top)]
    return top, sorted(_without(names, top, outputs))


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = sp.run(["git", "-C", folder, *arguments], capture_output=True, timeout=60)
    except (OSError, sp.TimeoutExpired):
        return ""
    return os.fsdecode(done.stdout) if done.returncode == 0 else ""


def _git_files(top: Path) -> Iterator[str]:
    """Names of what git tracks or would, in submodules, too."""
    for name in _git(top, "ls-files", "-co", "--exclude-standard", "-z").split("\0"):
        path = top / name
        if name and path.is_dir() and not path.is_symlink():
            yield from (f"{name.rstrip('/')}/{one}" for one in _git_files(path))
        elif name:
            yield name


def _walk(top: Path, outputs: Path) -> Iterator[str]:
    """Names of sources outside of git, and of links; hidden files are none."""
    seen = 0
    for folder, folders, files in os.walk(top):
        here, seen = Path(folder), seen + len(files) + len(folders)
        if seen > _MAX_SEEN:
            advice = f"keep the code in a folder of its own or in a git repository, {_LIVE}"
            raise LaunchError(f"{top} holds more than {_MAX_SEEN} files, which is more than code; {advice}.")
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = [
            name for name in folders
            if name[0] != "." and name not in links and here / name != outputs
            and not (here / name / "pyvenv.cfg").exists()
        ]  # fmt: skip
        chosen = [name for name in files if name[0] != "." and Path(name).suffix in _SOURCES]
        yield from ((here / name).relative_to(top).as_posix() for name in [*links, *chosen])


def _without(names: Iterable[str], top: Path, outputs: Path) -> Iterator[str]:
    """Leave out data, keys, outputs and virtual environments."""
    names = list(dict.fromkeys(names))
    folders = [name.removesuffix("pyvenv.cfg") for name in names if name.endswith("/pyvenv.cfg")]
    folders += {f"{name.partition('/xps/')[0]}/" for name in names if "/xps/" in name}  # other results
    if outputs == top:
        folders += [f"{name}/" for name in _OF_RESULTS]
    elif outputs.is_relative_to(top):
        folders.append(f"{outputs.relative_to(top).as_posix()}/")
    for name in names:
        parts = name.split("/")
        is_code = _SKIPPED_FOLDERS.isdisjoint(parts) and not any(map(_SECRET.fullmatch, parts))
        if is_code and Path(name).suffix.lower() not in _DATA and not name.startswith(tuple(folders)):
            yield name


def _read(top: Path, name: str, left_out: list[str]) -> _Entry | None:
    """Read a file or a link; None, with a note, if it is left out."""
    path = top / name
    try:
        if path.is_symlink():
            target = path.readlink()
            if not target.is_absolute() and path.resolve().is_relative_to(top):
                return _Entry(os.fsencode(target), None)
            left_out.append(f"{name} (a link to outside of {top})")
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe must not block
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            content = file.read(MAX_FILE + 1)
    except FileNotFoundError:  # git tracks it, and it was removed
        return None
    except OSError as error:
        left_out.append(f"{name} ({error.strerror})")
        return None
    if len(content) > MAX_FILE:
        left_out.append(f"{name} ({status.st_size / 1e6:.0f} MB)")
        return None
    return _Entry(content, status.st_mode & 0o555 | 0o400)


def _too_large(top: Path, entries: dict[str, _Entry]) -> LaunchError:
    sizes = Counter[str]()
    for name, entry in entries.items():
        sizes["/".join(name.split("/")[1:-1][:2]) or "."] += len(entry.content)
    limits = f"more than {MAX_FILES} files or {MAX_TOTAL / 1e6:.0f} MB, which is more than code"
    advice = f"name what is none in its .gitignore, {_LIVE}"
    return LaunchError(f"{top} holds {limits}, most of it in {sizes.most_common(1)[0][0]}: {advice}.")


def _mapped(path: Path, trees: dict[Path, str]) -> str:
    """Where a path is in the snapshot, "" if it is not part of one of its trees."""
    for tree, name in sorted(trees.items(), key=lambda one: -len(one[0].parts)):
        if path.resolve().is_relative_to(tree):
            return f"{name}/{path.resolve().relative_to(tree).as_posix()}".removesuffix("/.")
    return ""


def _import_path(path: Path, trees: dict[Path, str], more: Iterable[Path]) -> Iterator[str]:
    """Folders of the snapshot that stand for those of `sys.path` and some more."""
    places = (_mapped(place, trees) for place in [*map(Path, sys.path), *more])
    yield from (str(path / place) for place in dict.fromkeys(filter(None, places)) if (path / place).is_dir())


def _keep(store: Path, entries: dict[str, _Entry], left_out: list[str], log: Callable[[str], None]) -> Path:
    """Write a snapshot if it is not there, and mend it if it was changed; returns its folder."""
    digest = hashlib.sha256()
    for name, entry in sorted(entries.items()):
        kind = "link" if entry.mode is None else "program" if entry.mode & 0o100 else "file"
        digest.update(f"{name}\0{kind}\0{hashlib.sha256(entry.content).hexdigest()}\n".encode(errors="surrogateescape"))
    path = store / digest.hexdigest()[:16]
    try:
        if path.is_dir():
            _mend(path, entries, log)
            return path
        draft = store / f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp"
        shutil.rmtree(draft, ignore_errors=True)
        for name, entry in entries.items():
            _write(draft / name, entry)
        try:
            draft.rename(path)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            if not path.is_dir():  # another command was faster
                raise
    except OSError as error:
        raise LaunchError(
            f"cannot keep the code in {store} ({error}); nothing was submitted: make room, {_LIVE}."
        ) from error
    if left_out:
        more = [f"and {len(left_out) - 5} more"] if len(left_out) > 5 else []
        log(f"Left out of the code that jobs run ({path}): {', '.join(left_out[:5] + more)}")
    return path


def _write(path: Path, entry: _Entry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if entry.mode is None:
        path.symlink_to(os.fsdecode(entry.content))
    else:
        path.write_bytes(entry.content)
        path.chmod(entry.mode)


def _mend(path: Path, entries: dict[str, _Entry], log: Callable[[str], None]) -> None:
    """Write again what differs from the name of a snapshot, and remove what is no part of it."""
    there = {
        (Path(folder) / name).relative_to(path).as_posix()
        for folder, folders, files in os.walk(path)
        for name in [*files, *(name for name in folders if (Path(folder) / name).is_symlink())]
        if "__pycache__" not in Path(folder).relative_to(path).parts  # Python keeps it there, for all jobs
    }
    wrong = [name for name, entry in entries.items() if name not in there or _differs(path / name, entry)]
    for name in wrong:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        with replacing(path / name) as draft:
            draft.unlink(missing_ok=True)
            _write(draft, entries[name])
    extra = sorted(there - entries.keys())
    for name in extra:
        with contextlib.suppress(FileNotFoundError):
            (path / name).unlink()
    if wrong or extra:
        shown = ", ".join([*wrong, *extra][:3])
        log(f"Mended {path}, which was changed since it was made: {shown}")


def _differs(path: Path, entry: _Entry) -> bool:
    if entry.mode is None or path.is_symlink():
        return not (entry.mode is None and path.is_symlink() and os.fsencode(path.readlink()) == entry.content)
    return path.read_bytes() != entry.content
