"""A line of `audiotok doctor`, and how commands and files are asked without waiting for ever."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from subprocess import TimeoutExpired, run

COMMAND_S = 20.0
FILES_S = 15.0


class Verdict(StrEnum):
    """How a check went; only FAIL makes the command fail."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One line of the report: what was looked at, how it went, what was found, and what to do about it."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def ok(name: str, found: str) -> Check:
    """A check that went well."""
    return Check(name, Verdict.OK, found)


def warn(name: str, found: str, advice: str) -> Check:
    """Something that may be on purpose."""
    return Check(name, Verdict.WARN, found, advice)


def fail(name: str, found: str, advice: str) -> Check:
    """Something that keeps experiments from running."""
    return Check(name, Verdict.FAIL, found, advice)


def ask(command: Sequence[str], seconds: float = COMMAND_S) -> tuple[str, str]:
    """Run a command; returns its output and, if it failed, why in one line."""
    try:
        process = run(command, capture_output=True, text=True, errors="replace", timeout=seconds)
    except TimeoutExpired:
        return "", f"no answer within {seconds:g} s"
    except OSError as error:
        return "", str(error)
    if process.returncode == 0:
        return process.stdout, ""
    return process.stdout, " ".join(process.stderr.split())[-300:] or f"exit code {process.returncode}"


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
