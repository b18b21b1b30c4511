"""What SLURM's commands are asked, and their answers in the order that Python likes: one query for all jobs."""

import os
import pwd
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from audiotok.launchers.child import ask
from audiotok.status import State, Verdict

TIMEOUT_S = 120.0
CHUNK = 400  # job ids in one call, far below any limit on the length of a command
UNREACHABLE = re.compile(
    r"unable to contact|timed out|zero bytes|connection|communication|message (?:receive|send)|endpoint|standby"
    r"|make sense of",
    re.IGNORECASE,
)
"""How sbatch says that the controller gave no (sensible) answer: it may have taken the job nevertheless."""

_LIVE = {
    "PENDING": "PENDING",
    "REQUEUED": "PENDING",
    "REQUEUE_FED": "PENDING",
    "REQUEUE_HOLD": "PENDING",
    "RESV_DEL_HOLD": "PENDING",
    "SPECIAL_EXIT": "PENDING",
    "CONFIGURING": "CONFIGURING",
    "RUNNING": "RUNNING",
    "RESIZING": "RUNNING",
    "SIGNALING": "RUNNING",
    "STAGE_OUT": "COMPLETING",
    "COMPLETING": "COMPLETING",
    "SUSPENDED": "SUSPENDED",
    "STOPPED": "SUSPENDED",
}
ENDED = {
    "CANCELLED": "cancelled with scancel",
    "REVOKED": "cancelled: another cluster of the federation ran it",
    "TIMEOUT": "reached its time limit",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not boot",
    "DEADLINE": "could not end before its deadline",
    "OUT_OF_MEMORY": "killed: out of memory",
}
"""States that end a task without its result, but FAILED, and what each means."""

_HELD = {"REQUEUE_HOLD": "held after it was queued again", "SPECIAL_EXIT": "held: special exit"}
_USUAL = frozenset({"", "None", "(null)", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime"})  # to wait for
_RANGES = re.compile(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]")


class Entry(NamedTuple):
    """What SLURM says of one task: its state in SLURM's words, the reason, and its names (job name, comment)."""

    state: str
    reason: str = ""
    names: tuple[str, ...] = ()

    @property
    def is_live(self) -> bool:
        """True if it may still do something; so may a state that this code has never heard of."""
        return self.state not in ENDED and self.state not in ("COMPLETED", "FAILED")

    def live_state(self) -> Verdict:
        """Verdict on a task that lives."""
        if self.state not in _LIVE:
            return Verdict(State.UNKNOWN, f"state {self.state}")
        state = _LIVE[self.state]
        said = _HELD.get(self.state, "" if self.reason in _USUAL else self.reason)
        return Verdict(State.of(state), said if state != "RUNNING" else "")


def run(command: Sequence[str]) -> tuple[str, str]:
    """Run a SLURM command; returns its output and, if it failed, why in one line. Never raises."""
    # Variables with which people shape these commands' tables, or choose what they show.
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SACCT_"))}
    return ask(command, TIMEOUT_S, environ=environ)


def ask_queue(uids: Sequence[str]) -> tuple[dict[str, Entry], str]:
    """Ask for all jobs of some users that SLURM remembers, those that have ended too.

    Returns:
        What it says by task id (`A_i` or `J`), and why it does not answer, "" if it does.
    """
    users = ",".join(uids)
    listing, failure = run(["squeue", "-h", "-r", "-a", "-t", "all", "-u", users, "-o", "%i|%T|%r|%j|%k"])
    entries: dict[str, Entry] = {}
    for line in [] if failure else listing.splitlines():
        job_id, state, reason, name, comment = (*line.split("|", 4), "", "", "", "", "")[:5]
        entry = Entry(_word(state), reason.strip(), (name.strip(), comment.split(" ", 1)[0].strip()))
        for one in expand_ids(job_id.strip()):
            entries[one] = entry
    return entries, failure


def ask_accounting(job_ids: Iterable[str]) -> dict[str, Entry] | None:
    """Ask accounting for the last words on tasks; None if there is none or it does not answer."""
    roots = sorted({job_id.split("_")[0] for job_id in job_ids})
    entries: dict[str, Entry] = {}
    for start in range(0, len(roots), CHUNK):
        listing, failure = run(
            ["sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", ",".join(roots[start : start + CHUNK])]
        )
        if failure:
            return None
        for line in listing.splitlines():
            job_id, _, state = line.partition("|")
            entry = Entry(_word(state), _by_whom(state))
            entries.update(dict.fromkeys(expand_ids(job_id.strip()), entry))
    return entries


def ask_accounting_for_name(name: str) -> str | None:
    """The id of the job of this name that accounting knows, None without one."""
    listing, failure = run(["sacct", "-n", "-X", "-P", "-S", "now-30days", "-o", "JobID,JobName", f"--name={name}"])
    found = [line.split("|")[0] for line in listing.splitlines() if line.strip().endswith(f"|{name}")]
    return None if failure or not found else found[-1].split("_")[0]


def expand_ids(job_id: str) -> list[str]:
    """Ids of the tasks that SLURM writes as one: `7_[0-2,5%4]` is `7_0`, `7_1`, `7_2`, `7_5`."""
    found = _RANGES.fullmatch(job_id)
    if found is None:
        return [job_id] if job_id and "." not in job_id else []
    ids = []
    for part in found[2].split(","):
        first, _, last = part.partition("-")
        ids += [f"{found[1]}_{index}" for index in range(int(first), int(last or first) + 1)]
    return ids


def collapse_ids(job_ids: Iterable[str]) -> list[str]:
    """The same ids with the tasks of an array as one word, at most CHUNK of them in each, for one request each."""
    arrays: dict[str, list[int]] = {}
    words = []
    for job_id in dict.fromkeys(job_ids):
        root, _, index = job_id.partition("_")
        if index.isdecimal():
            arrays.setdefault(root, []).append(int(index))
        else:
            words.append(job_id)
    for root, indices in arrays.items():
        for start in range(0, len(indices), CHUNK):
            part = sorted(indices[start : start + CHUNK])
            words.append(f"{root}_{part[0]}" if len(part) == 1 else f"{root}_[{_ranges(part)}]")
    return words


def _word(state: str) -> str:
    """`CANCELLED by 1000` and `CANCELLED+` are CANCELLED."""
    words = state.split()
    return words[0].rstrip("+") if words else "UNKNOWN"


def _by_whom(state: str) -> str:
    """Name of the user in `CANCELLED by 1000`."""
    words = state.split()
    if len(words) < 3 or words[1] != "by":
        return ""
    try:
        return f"by {pwd.getpwuid(int(words[2])).pw_name}"
    except (KeyError, ValueError, OverflowError):
        return f"by {words[2]}"


def _ranges(indices: Sequence[int]) -> str:
    """`0-2,5` for sorted 0, 1, 2, 5."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and parts[-1][1] == index - 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
