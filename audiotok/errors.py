"""The exceptions for all mistakes that a user can make.

A message is one line: what was found, where, what is allowed, what to do. Entry points (`dora`, `audiotok`) print it
and exit with code 2, a run with `exit_code`; a traceback means a defect of ours.
"""


class AudiotokError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 2

    def __str__(self) -> str:
        """The message on one line, whatever a file is named."""
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """Text with what cannot be printed in a line, such as line breaks and bytes that are not UTF-8, as escapes."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def first_line(error: BaseException) -> str:
    """First line of an error's message, at most 200 characters; its kind if there is none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


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
