"""The exceptions for all mistakes that a user can make.

A message is one line: what was found, where, what is allowed, what to do. Entry points (`dora`, `audiotok`) print it
and exit with code 2, a run with `exit_code`; a traceback means a defect of ours.
"""


class AudiotokError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 2


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

    exit_code = 3
