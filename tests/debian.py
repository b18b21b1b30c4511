"""Programs that tests need and Debian has: installed where they are missing, by one process at a time."""

import fcntl
import os
import shutil
import subprocess as sp
import tempfile
from collections.abc import Sequence
from pathlib import Path

_POLICY = Path("/usr/sbin/policy-rc.d")  # asked by Debian before it starts the daemon of a new package


def missing_reason(packages: Sequence[str], programs: Sequence[str]) -> str | None:
    """Tell why this machine cannot have some programs, None if it can; installs their packages if need be."""
    if _are_there(programs):
        return None
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return f"install {', '.join(packages)}, or be root on Debian"
    with (Path(tempfile.gettempdir()) / "audiotok-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes, and apt is for one
        return None if _are_there(programs) else _install(packages)


def _are_there(programs: Sequence[str]) -> bool:
    return all(shutil.which(program) for program in programs)


def _install(packages: Sequence[str]) -> str | None:
    """Install packages, their daemons left alone; returns why it failed, None if it did not."""
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    ours = not _POLICY.exists()  # a file that is there says already what its machine wants
    if ours:
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
    try:
        install = ["apt-get", "install", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120", *packages]
        for command in (install, ["apt-get", "update"], install):
            process = sp.run(command, env=quiet, capture_output=True, text=True)
            if process.returncode == 0 and command is install:
                return None
        return f"apt-get could not install {', '.join(packages)}: {process.stderr[-500:]}"
    finally:
        if ours:
            _POLICY.unlink()
