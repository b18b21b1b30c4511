"""Whether this machine can have the test cluster, and the packages it takes."""

import os
import shutil
import subprocess as sp
from collections.abc import Mapping
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge", "slurmdbd", "mariadb-server")
DAEMONS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd")
_POLICY = Path("/usr/sbin/policy-rc.d")  # asked by Debian before it starts the daemon of a new package


def missing_reason(environ: Mapping[str, str]) -> str | None:
    """Tell why this machine cannot have the cluster, None if it can; installs the packages if need be."""
    if os.geteuid() != 0:
        return "a test cluster needs root"
    if all(shutil.which(program) for program in DAEMONS):
        return None
    if shutil.which("apt-get") is None:
        return f"a test cluster needs {', '.join(PACKAGES)} or Debian to install them"
    return _install(environ)


def _install(environ: Mapping[str, str]) -> str | None:
    """Install the packages, their daemons left alone; returns why it failed, None if it did not."""
    quiet = {**environ, "DEBIAN_FRONTEND": "noninteractive"}
    ours = not _POLICY.exists()  # a file that is there says already what its machine wants
    if ours:
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
    try:
        install = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
        for command in (install, ["apt-get", "update"], install):
            process = sp.run(command, env=quiet, capture_output=True, text=True)
            if process.returncode == 0 and command is install:
                return None
        return "apt-get could not install the cluster: " + process.stderr[-500:]
    finally:
        if ours:
            _POLICY.unlink()
