"""Queries to SLURM, one for all jobs, and their answers as Python objects."""

import os
import pwd
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from audiotok.launchers.child import run_command
from audiotok.status import SchedulerWord, State

CHUNK = 400  # job ids in one call, far below any limit on the length of a command

_STATES = {  # SLURM's names of states that are not ours, too
    **dict.fromkeys(("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"), State.PENDING),
    **dict.fromkeys(("RESIZING", "SIGNALING"), State.RUNNING),
    "STAGE_OUT": State.COMPLETING,
    "STOPPED": State.SUSPENDED,
    "REVOKED": State.CANCELLED,
}
_REASONS = {  # where the name itself is one
    "REQUEUE_HOLD": "held after it was queued again; `scontrol release ID` lets it start",
    "SPECIAL_EXIT": "held after a special exit; `scontrol release ID` lets it start",
    "CANCELLED": "cancelled with scancel",
    "REVOKED": "cancelled: another cluster of the federation ran it",
    "TIMEOUT": "reached its time limit",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not boot",
    "DEADLINE": "could not end before its deadline",
    "OUT_OF_MEMORY": "killed: out of memory",
}
_FAILURES = {"NonZeroExitCode": "its script failed; see the log", "None": ""}
_USUAL = frozenset({"", "None", "(null)", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime"})  # to wait for
_RELEASE = "`scontrol release ID` lets it start"
_CORRECT = "correct the profile and --replace"
_ADVICE = (  # about a reason to wait, by how it begins; the first that fits
    ("JobHeldUser", f"held by its user; {_RELEASE}"),
    ("JobHeldAdmin", "held by an administrator, who can release it: write to the support of the site"),
    ("JobHoldMaxRequeue", f"held after many requeues; look into its log, then {_RELEASE}"),
    ("launch failed requeued held", f"held, as its node could not start it; {_RELEASE}"),
    ("DependencyNeverSatisfied", "never starts, as a job that it depends on failed; cancel it (-C), then --retry"),
    ("Partition(Down|Inactive)", "the site has closed its partition; wait, or choose another one and --replace"),
    ("Partition(Time|Node)Limit", f"never starts: more than its partition allows; {_CORRECT}"),
    ("BadConstraints", f"never starts: no node has what it requests; {_CORRECT}"),
    ("ReqNodeNotAvail", "a node that it needs is down or reserved; wait, or request others and --replace"),
    ("(QOS|Assoc)Max.*Per(Job|Node)|MaxMemPerLimit", f"never starts: more than one job may have here; {_CORRECT}"),
    ("Invalid|QOSNotAllowed|AccountNotAllowed", f"never starts: its account or QOS may not be used; {_CORRECT}"),
    ("QOS", "a limit of its QOS is reached; it starts as other jobs end"),
    ("Assoc", "a limit of its account is reached; it starts as other jobs end"),
)
# Variables with which people shape these commands' tables, or choose what they show and where.
_OURS = re.compile(r"(SQUEUE|SACCT|SCANCEL|SCONTROL)_|SLURM_CLUSTERS$")
_RANGES = re.compile(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]")


class Entry(NamedTuple):
    """One task in SLURM's answer: its state in SLURM's words, the reason, and its names (job name, comment).

    `cluster` is where it is, "" for the local one.
    """

    state: str
    reason: str = ""
    names: tuple[str, ...] = ()
    cluster: str = ""

    @property
    def is_live(self) -> bool:
        """True if it may still do something; so may a state that this code does not know."""
        return self._state.live

    @property
    def word(self) -> SchedulerWord:
        """The same for `audiotok.status.judge`."""
        state, reason = self._state, _REASONS.get(self.state, "")
        if state is State.UNKNOWN:
            reason = f"state {self.state}"
        elif state is State.FAILED and "oom" in self.reason.lower().replace("outofmemory", "oom"):
            state, reason = State.OUT_OF_MEMORY, _REASONS["OUT_OF_MEMORY"]
        elif state is State.FAILED:
            reason = _FAILURES.get(self.reason, self.reason)
        elif self.state == "CANCELLED" and self.reason.startswith("by "):
            reason = f"{reason} {self.reason}"
        elif state.live and state is not State.RUNNING and self.reason not in _USUAL:
            reason = reason or _advised(self.reason)
        return SchedulerWord(state, reason, live=self.is_live)

    @property
    def _state(self) -> State:
        return _STATES.get(self.state, State.of(self.state))


def run(command: Sequence[str]) -> tuple[str, str]:
    """Run a SLURM command; returns its output and, if it failed, why in one line. Never raises."""
    return run_command(command, 120.0, environ={name: os.environ[name] for name in os.environ if not _OURS.match(name)})


def on(cluster: str) -> list[str]:
    """Words that have a SLURM command work on another cluster; none for "", which is this one."""
    return ["-M", cluster] if cluster else []


def local_cluster() -> str:
    """Name of the cluster that commands work on by themselves, "" if that is not known."""
    found = re.search(r"^ClusterName\s*=\s*(\S+)", run(["scontrol", "show", "config"])[0], re.MULTILINE)
    return found[1] if found else ""


def query_queue(uids: Sequence[str], cluster: str = "") -> tuple[dict[str, Entry], str]:
    """All jobs of some users that SLURM remembers, those that have ended too.

    Returns:
        The answer by task id (`A_i` or `J`), and why there is none, "" if there is.
    """
    users = ",".join(uids)  # -r: a line for each task of an array; -a: jobs of hidden partitions, too
    words = ["-h", "-r", "-a", "-t", "all", "-u", users, "-o", "%i|%T|%r|%j|%k"]
    listing, failure = run(["squeue", *on(cluster), *words])
    entries: dict[str, Entry] = {}
    # With -M there is a headline, which names the cluster.
    for line in [] if failure else (line for line in listing.splitlines() if "|" in line):
        job_id, state, reason, name, comment = (*line.split("|", 4), "", "", "", "", "")[:5]
        entry = Entry(_word(state), reason.strip(), _names(name, comment))
        entries.update(dict.fromkeys(expand_ids(job_id.strip()), entry))
    return entries, failure


def query_accounting(job_ids: Iterable[str], cluster: str = "") -> dict[str, Entry] | None:
    """The last states of tasks in accounting; None if there is none or it does not answer."""
    roots = sorted({job_id.split("_")[0] for job_id in job_ids})
    entries: dict[str, Entry] = {}
    for start in range(0, len(roots), CHUNK):
        chunk = ",".join(roots[start : start + CHUNK])
        words = ["-n", "-X", "-P", "-o", "JobID,State,JobName,Comment", "-j", chunk]
        listing, failure = run(["sacct", *on(cluster), *words])
        if failure:
            return None
        for line in listing.splitlines():
            job_id, state, name, comment = (*line.split("|", 3), "", "", "", "")[:4]
            entry = Entry(_word(state), _by_whom(state), _names(name, comment))
            entries.update(dict.fromkeys(expand_ids(job_id.strip()), entry))
    return entries


def expand_ids(job_id: str) -> list[str]:
    """Ids of the tasks that SLURM writes as one: `7_[0-2,5%4]` is `7_0`, `7_1`, `7_2`, `7_5`."""
    found = _RANGES.fullmatch(job_id)
    if found is None:
        return [job_id] if job_id and "." not in job_id else []
    spans = (part.partition("-") for part in found[2].split(","))
    return [f"{found[1]}_{index}" for a, _, b in spans for index in range(int(a), int(b or a) + 1)]


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


def _names(name: str, comment: str) -> tuple[str, str]:
    return name.strip(), comment.split(" ", 1)[0].strip()


def _advised(reason: str) -> str:
    """A reason to wait, as SLURM puts it, and what to do about it."""
    plain = reason.replace("_", " ")
    advice = next((advice for pattern, advice in _ADVICE if re.match(pattern, plain)), "")
    return f"{reason}: {advice}" if advice else reason


def _word(state: str) -> str:
    """`CANCELLED by 1000` and `CANCELLED+` are CANCELLED."""
    return (state.split() or ["UNKNOWN"])[0].rstrip("+")


def _by_whom(state: str) -> str:
    """`by ada` for `CANCELLED by 1000`, "" for other states."""
    uid = state.partition(" by ")[2].strip()
    try:
        return f"by {pwd.getpwuid(int(uid)).pw_name}"
    except (KeyError, ValueError, OverflowError):
        return f"by {uid}" if uid else ""


def _ranges(indices: Sequence[int]) -> str:
    """`0-2,5` for sorted 0, 1, 2, 5."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and parts[-1][1] == index - 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
