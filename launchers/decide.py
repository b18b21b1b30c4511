"""Who is submitted, who is left alone, and why: one pure function for `dora grid`, `--dry_run` and `audiotok plan`.

An experiment without a job is new. One whose job waits, runs or may run is kept; one that has completed is reused.
`--retry` submits again what failed, in whatever way the scheduler or the machine ended it, but thinks first: a run that
diverged or met bad configuration or data would end the same way, and one that ran out of memory needs more of it.

Environment variables: AUDIOTOK_RETRY=force with `--retry` runs again even what would be blocked.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from dora.conf import SubmitRules

from audiotok.launchers.engine import FAILURE_STATES, LIVE_STATES
from audiotok.launchers.profile import Profile
from audiotok.status import JOB_FILE, Verdict, read_json, read_status

RETRY_VARIABLE = "AUDIOTOK_RETRY"
FORCE = f"{RETRY_VARIABLE}=force dora grid GRID --retry"
BLOCKING_KINDS = {"config": "bad configuration", "data": "bad data", "diverged": "diverged"}
"""What `kind` in a `status.json` may say of a failure that comes again however often it is retried."""

# What a profile says about the site, the command or the future, not about what a job that exists asked for.
_NOT_ASKED_FOR = frozenset(
    {"array_parallelism", "cluster", "comment", "dataset_paths", "dependents", "max_array_size", "max_mem_gb"}
    | {"max_num_timeout", "oom_mem_factor", "output_dir"}
)


class Action(StrEnum):
    """What a launch does about one experiment."""

    NEW = "new"
    REUSE = "reuse"
    KEEP = "keep"
    RETRY = "retry"
    REPLACE = "replace"
    BLOCKED = "blocked"
    CANCEL = "cancel"

    @property
    def submits(self) -> bool:
        """True if a job is submitted."""
        return self in (Action.NEW, Action.RETRY, Action.REPLACE)


@dataclass(frozen=True)
class Decision:
    """What to do about an experiment.

    Attributes:
        action: what; for REPLACE a job that lives is cancelled first.
        reason: why, in a few words; empty where the action says it all.
        mem_factor: how many times the memory of the profile the job gets, if one is submitted.
    """

    action: Action
    reason: str = ""
    mem_factor: float = 1.0


def decide(
    state: Verdict | None,
    rules: SubmitRules,
    previous: Mapping[str, Any],
    profile: Profile,
    *,
    force: bool = False,
) -> Decision:
    """Decide about one experiment; reads and writes nothing.

    Args:
        state: verdict of its engine on its latest job (or of its folder, if it was run by hand); None without one.
        rules: `--retry`, `--replace`, `--replace_done`, `--update`, as in Dora.
        previous: what is known of the latest job, see `previous_job`; empty without one.
        profile: what a job of it would ask for now.
        force: retry what would be blocked, too.
    """
    word = _word(state)
    reason = "" if state is None else state.reason
    factor = _kept_factor(previous, profile)
    if word is None:
        return Decision(Action.NEW)
    if word == "COMPLETED":
        return Decision(Action.REPLACE, "completed", factor) if rules.replace_done else Decision(Action.REUSE)
    if word not in FAILURE_STATES:
        return _live(word, reason, rules, previous, profile, factor)
    if "job_id" not in previous:
        return Decision(Action.NEW, _said(f"{word} when run by hand", reason))
    if not rules.retry:
        return Decision(Action.KEEP, _said(word, reason))
    return _failed(word, reason, previous, profile, factor, force=force)


def previous_job(folder: Path) -> dict[str, Any]:
    """What `decide` wants to know of the latest job of an experiment: its `job.json`, with `kind` of its failure.

    `kind` comes from the `status.json` that this very job wrote: a job that died before it could write one must not
    inherit the diagnosis of an earlier job.
    """
    job = read_json(Path(folder) / JOB_FILE) or {}
    status = read_status(folder) or {}
    if job.get("job_id") is not None and status.get("job_id") == job["job_id"] and "kind" in status:
        job["kind"] = status["kind"]
    return job


def memory_gb(profile: Profile) -> float:
    """Memory that a whole job asks for, in GB; 0 if it leaves that to the cluster."""
    return float(profile.total_mem_gb or 0.0)


def profile_fields(profile: Profile) -> dict[str, Any]:
    """A profile as plain containers, as JSON gives it back."""
    fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(profile), default=str))
    return fields


def changed_fields(previous: Mapping[str, Any], profile: Profile) -> dict[str, tuple[Any, Any]]:
    """Fields of a profile that a job was submitted with and that differ now: {name: (then, now)}."""
    then, now = _profile_then(previous), profile_fields(profile)
    return {name: (then[name], now[name]) for name in sorted(then.keys() & now.keys()) if then[name] != now[name]}


def _live(
    word: str, reason: str, rules: SubmitRules, previous: Mapping[str, Any], profile: Profile, factor: float
) -> Decision:
    """Decide about a job that waits or runs, or of which nobody knows."""
    if word == "UNKNOWN" or word not in LIVE_STATES:
        why = reason or "the scheduler does not answer" if word == "UNKNOWN" else _said(f"state {word}", reason)
        return Decision(Action.KEEP, f"{why}; it may be running, so nothing is submitted")
    if "job_id" not in previous:
        return Decision(Action.KEEP, f"{word} by hand")
    if rules.replace:
        return Decision(Action.REPLACE, word, factor)
    changed = {name: values for name, values in changed_fields(previous, profile).items() if name not in _NOT_ASKED_FOR}
    if rules.update and changed:
        told = ", ".join(f"{name} {then} → {now}" for name, (then, now) in changed.items())
        return Decision(Action.REPLACE, f"{word}; {told}", factor)
    return Decision(Action.KEEP, _said(word, reason))


def _failed(
    word: str, reason: str, previous: Mapping[str, Any], profile: Profile, factor: float, *, force: bool
) -> Decision:
    """Decide about a job that ended without its result, where `--retry` was given."""
    if word == "OUT_OF_MEMORY":
        return _out_of_memory(previous, profile, factor, force=force)
    kind = "diverged" if word == "DIVERGED" else _kind(previous)
    if kind is not None and not force:
        said = _said(BLOCKING_KINDS[kind], reason)
        return Decision(Action.BLOCKED, f"{said}; it would end so again: correct that, or `{FORCE}`")
    return Decision(Action.RETRY, _said(word, reason), factor)


def _out_of_memory(previous: Mapping[str, Any], profile: Profile, factor: float, *, force: bool) -> Decision:
    """Retry once with more memory, if the profile allows that or has been given more since."""
    had, now, limit = _memory_then(previous, profile), memory_gb(profile), profile.max_mem_gb
    if now > had:
        return Decision(Action.RETRY, f"ran out of {had:g} GB of memory; the profile gives {now:g} GB now")
    if force:
        return Decision(Action.RETRY, f"ran out of {had:g} GB of memory; forced", factor)
    grown = 0.0 if limit is None else min(had * profile.oom_mem_factor, float(limit))
    if factor > 1.0:
        why = f"ran out of memory again, with {had:g} GB; ask for more (mem_gb or mem_per_gpu)"
    elif had <= 0.0:
        why = "ran out of memory; the profile asks for none by number, so say how much (mem_gb or mem_per_gpu)"
    elif limit is None:
        why = f"ran out of {had:g} GB of memory; to retry it once with more, set max_mem_gb"
    elif grown <= had:
        why = f"ran out of {had:g} GB of memory and max_mem_gb={limit:g} allows no more; raise that"
    else:
        return Decision(Action.RETRY, f"ran out of {had:g} GB of memory; gets {grown:g} GB", grown / now)
    return Decision(Action.BLOCKED, f"{why} in the profile, or `{FORCE}`")


def _word(state: Verdict | None) -> str | None:
    """The plain state: SLURM also says `CANCELLED by 1000` and `CANCELLED+`."""
    words = [] if state is None else state.state.split()
    return None if not words or words[0] == "NOT_STARTED" else words[0].rstrip("+")


def _kind(previous: Mapping[str, Any]) -> str | None:
    """Why the latest job could not but fail, None if nothing is known."""
    verdict = previous.get("verdict")
    told = [previous.get("kind"), verdict.get("kind") if isinstance(verdict, Mapping) else verdict]
    return next((word for word in (str(kind).lower() for kind in told) if word in BLOCKING_KINDS), None)


def _profile_then(previous: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in ("profile", "slurm_config"):
        if isinstance(previous.get(name), Mapping):
            return previous[name]  # type: ignore[no-any-return]
    return {}


def _factor_then(previous: Mapping[str, Any]) -> float:
    factor = previous.get("mem_factor", 1.0)
    return float(factor) if isinstance(factor, int | float) and factor >= 1.0 else 1.0


def _memory_then(previous: Mapping[str, Any], profile: Profile) -> float:
    """Memory in GB that the latest job had; where it does not say, what the profile gives now."""
    known = {field.name for field in dataclasses.fields(profile)}
    fields = {name: value for name, value in _profile_then(previous).items() if name in known}
    try:
        return memory_gb(dataclasses.replace(profile, **fields)) * _factor_then(previous)
    except (TypeError, ValueError):  # a profile of another version, or a damaged one
        return memory_gb(profile) * _factor_then(previous)


def _kept_factor(previous: Mapping[str, Any], profile: Profile) -> float:
    """A job that has needed more memory keeps it, but not on top of what the profile was given since."""
    now = memory_gb(profile)
    return max(1.0, _memory_then(previous, profile) / now) if now > 0 and _factor_then(previous) > 1.0 else 1.0


def _said(what: str, reason: str) -> str:
    return f"{what}: {reason}" if reason else what
