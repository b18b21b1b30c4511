"""The exception family: every mistake a user can make ends in one of these, with one line that says what to do.

A message names what was found, where, what is allowed and what to do about it. Entry points (`dora`, `audiotok`)
print that line and exit with code 2; a traceback means a defect of ours.
"""


class AudiotokError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(AudiotokError, ValueError):
    """A configuration value, a grid or a signature that cannot be used."""


class DataError(AudiotokError, ValueError):
    """A manifest or an audio file that is missing, empty or unreadable."""


class ResultsError(AudiotokError, ValueError):
    """Results that cannot be found or read."""


class CheckpointError(AudiotokError, RuntimeError):
    """A checkpoint that is missing, damaged, unsafe or does not fit the model."""


class LaunchError(AudiotokError, RuntimeError):
    """A job that could not be submitted, found or cancelled."""


class DivergedError(AudiotokError, RuntimeError):
    """Training produced a value that is not finite."""
