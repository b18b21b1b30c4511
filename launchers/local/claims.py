"""Claims on the GPUs of this machine: a GPU has one job, whichever user and results folder it is of.

A claim is a lock on a file of that GPU in a folder that all users share (AUDIOTOK_LOCAL_GPU_LOCKS, by default
/tmp/audiotok-gpus). The file names its holder, and the kernel releases it however that ends. Anybody can write in that
folder, so no link in it is followed. Standard library only.
"""

import fcntl
import os
import re
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

FOLDER_VARIABLE = "AUDIOTOK_LOCAL_GPU_LOCKS"
BUSY = 75  # exit code of a runner that found a GPU claimed: EX_TEMPFAIL
_held: list[int] = []  # descriptors, open until this process ends
_HOLDER_BYTES = 300


def identify(visible: Sequence[str], listing: str) -> dict[str, str]:
    """What each GPU is known by here, so that a number and a UUID of one GPU are one claim.

    Args:
        visible: numbers or (beginnings of) UUIDs, as CUDA_VISIBLE_DEVICES has them.
        listing: output of `nvidia-smi -L`, "" without one.
    """
    uuids = dict(re.findall(r"^GPU (\d+): .*\(UUID: (\S+)\)", listing, flags=re.MULTILINE))
    whole = {name: [uuid for uuid in uuids.values() if uuid.startswith(name)] for name in visible}
    return {name: uuids.get(name) or (whole[name][0] if len(whole[name]) == 1 else name) for name in visible}


def take(gpu: str, holder: str) -> bool:
    """Claim a GPU until this process ends; False if another process has it.

    Raises:
        OSError: if its file cannot be opened.
    """
    descriptor = _open(gpu)
    _held.append(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    about = os.fstat(descriptor)
    if stat.S_ISREG(about.st_mode) and about.st_nlink == 1:  # no file of ours that another user has linked there
        with suppress(OSError):  # another user's, that cannot be written
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder.encode(errors="replace")[:_HOLDER_BYTES], 0)
    return True


def holders(gpus: Mapping[str, str]) -> dict[str, str]:
    """Who has which of these GPUs, by their names; those that are free are left out."""
    found = {name: _holder(gpu) for name, gpu in gpus.items()}
    return {name: holder for name, holder in found.items() if holder}


def _holder(gpu: str) -> str:
    try:
        descriptor = os.open(_path(gpu), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"a process that cannot be seen ({error})"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        text = os.pread(descriptor, _HOLDER_BYTES, 0).decode(errors="replace")
        return "".join(filter(str.isprintable, text)) or "another job"
    finally:
        os.close(descriptor)
    return ""


def _path(gpu: str) -> Path:
    folder = os.environ.get(FOLDER_VARIABLE, "").strip() or "/tmp/audiotok-gpus"
    return Path(folder, re.sub(r"[^A-Za-z0-9-]", "_", gpu)[:100])


def _open(gpu: str) -> int:
    path = _path(gpu)
    with suppress(FileExistsError):
        path.parent.mkdir()
        path.parent.chmod(0o1777)  # for every user, whatever the umask
    if path.parent.is_symlink():
        raise PermissionError(f"{path.parent} is a link")
    while True:
        try:
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except PermissionError:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a lock needs no more
        except FileNotFoundError:
            with suppress(FileExistsError):  # another one was faster
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
                os.fchmod(descriptor, 0o666)
                return descriptor
