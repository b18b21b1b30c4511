"""A line of `audiotok doctor`, and how files are looked at without waiting for ever."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

FILES_S = 15.0


class Level(StrEnum):
    """How a check went; only FAIL makes the command fail."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One line of the report: what was looked at, how it went, what was found, and what to do about it."""

    name: str
    verdict: Level
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Check:
    """A check that went well."""
    return Check(name, Level.OK, found)


def warn(name: str, found: str, advice: str) -> Check:
    """Something that may be on purpose."""
    return Check(name, Level.WARN, found, advice)


def fail(name: str, found: str, advice: str) -> Check:
    """Something that keeps experiments from running."""
    return Check(name, Level.FAIL, found, advice)


def bounded(name: str, check: Callable[[], Check], seconds: float = FILES_S) -> Check:
    """A check of files that may hang in a dead file system; the thread is then left behind."""
    result: list[Check] = []

    def look() -> None:
        try:
            result.append(check())
        except OSError as error:
            result.append(fail(name, str(error), "look at that path"))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0] if result else fail(name, f"no answer within {seconds:g} s", "the file system hangs")
