"""Which code a run was made from."""

import os
import subprocess as sp
from pathlib import Path

from audiotok import __version__

COMMIT_VARIABLE = "AUDIOTOK_COMMIT"  # of a job that runs a snapshot, which has no repository
_REPOSITORY = Path(__file__).resolve().parent.parent.parent


def current_commit(folder: Path | None = None) -> str:
    """Short hash of the commit that `folder` stands at, `-dirty` if tracked files were changed since.

    Args:
        folder: inside a git repository; by default that of this package, or its version where it is installed.

    Returns:
        Such as `32323f5-dirty`; empty outside a repository or without git.
    """
    if folder is None:
        if COMMIT_VARIABLE in os.environ:
            return os.environ[COMMIT_VARIABLE]
        # Not only "inside a repository": a virtual environment often lies in the user's own.
        if not (_REPOSITORY / ".git").exists():
            return __version__
        folder = _REPOSITORY
    commit = _git(folder, "rev-parse", "--short", "HEAD")
    dirty = commit and _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if dirty else commit


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = sp.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, sp.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
