"""Writing the audio of the generate stage, so that a full disk is told from a setting that cannot be used."""

import errno
import os
import shutil
from pathlib import Path

from torch import Tensor

from audiotok.data.audio import ClipStrategy, write_audio
from audiotok.errors import DataError

_LIBSNDFILE_SYSTEM_ERROR = 2  # SF_ERR_SYSTEM of sndfile.h


def save_sample(path: Path, wav: Tensor, sample_rate: int, strategy: ClipStrategy) -> None:
    """Write a sample [C, T]; DataError where its settings are to blame, OSError where the disk refuses."""
    try:
        write_audio(path, wav, sample_rate, strategy=strategy)
    except DataError as error:
        if getattr(error.__cause__, "code", None) != _LIBSNDFILE_SYSTEM_ERROR:
            raise
        # libsndfile reports that the system failed, not how.
        full = shutil.disk_usage(path.parent).free < wav.nbytes  # the half-written file is gone again
        number = errno.ENOSPC if full else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
