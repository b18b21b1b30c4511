"""Which experiments are submitted, and why: one pure function for `dora grid`, `--dry_run` and `audiotok plan`.

An experiment without a job is new. One whose job waits, runs or may run is kept; one that has completed is reused, and
continues if its epochs were raised since (`audiotok extend`).
`--retry` submits again what failed, however it ended, with two exceptions: a run that diverged or met bad configuration
or data would end the same way, and one that ran out of memory needs more. AUDIOTOK_RETRY=force retries those, too; so
does a configuration that has changed since, if the experiment is frozen anew with it. What needs other experiments
waits for them, and is blocked if they have ended otherwise or are not submitted.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from dora.conf import SubmitRules

from audiotok.experiments.frozen import FROZEN_FILE, RETRY_VARIABLE, Change
from audiotok.launchers.profile import Profile
from audiotok.status import JOB_FILE, State, Verdict, read_json, read_status, same_job
from audiotok.status.judge import hold_up
from audiotok.text import number_in

FORCE = f"{RETRY_VARIABLE}=force dora grid GRID --retry"
# Values of `kind` in a `status.json` of failures that would occur again.
_BLOCKING_KINDS = {"config": "bad configuration", "data": "bad data", "diverged": "diverged"}

# Fields of a profile that describe the site, the command or later jobs, not what an existing job requested.
_NOT_REQUESTED = frozenset((
    "array_parallelism", "cluster", "code", "comment", "dataset_paths", "dependents", "max_array_size", "max_mem_gb",
    "max_num_timeout", "oom_mem_factor", "output_dir",
))  # fmt: skip


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
    """What to do about an experiment."""

    action: Action
    reason: str = ""  # empty where the action is clear by itself
    mem_factor: float = 1.0  # multiple of the profile's memory, for a job that is submitted
    change: Change | None = None  # of the configuration since it was frozen
    needs: Mapping[str, State] = dataclasses.field(default_factory=dict)  # what it waits for, by signature


def decide(
    verdict: Verdict | None,
    rules: SubmitRules,
    previous: Mapping[str, Any],
    profile: Profile,
    *,
    force: bool = False,
    change: Change | None = None,
) -> Decision:
    """Decide about one experiment; reads and writes nothing.

    Args:
        verdict: of its engine on its latest job (or of its folder, if it was run by hand); None without one.
        rules: `--retry`, `--replace`, `--replace_done`, `--update`, as in Dora.
        previous: what is known of the latest job, see `previous_job`; empty without one.
        profile: what a job of it would request now.
        force: retry what would be blocked, too.
        change: of its configuration since it was frozen, where that matters.
    """
    decision = _decide(verdict, rules, previous, profile, force, anew=change is not None and change.anew)
    is_kept = decision.action is Action.KEEP and verdict is not None and verdict.state.live
    if change is None or is_kept or decision.action is Action.REUSE:
        return decision
    reason = "; ".join(filter(None, (decision.reason, str(change))))
    return dataclasses.replace(decision, reason=reason, change=change)


def after(decision: Decision, needs: Mapping[str, Verdict]) -> Decision:
    """The decision about an experiment that is submitted or waits in a queue and needs others, by their states."""
    if (held := hold_up(needs)) is None:
        return decision
    if held.state is State.BLOCKED:
        blocked = dataclasses.replace(decision, action=Action.BLOCKED, reason=held.reason)
        return blocked if decision.action.submits else decision
    states = {sig: one.state for sig, one in needs.items() if one.state is not State.COMPLETED}
    why = f"once what it needs has completed ({', '.join(sorted(set(states.values())))} now)"
    first = decision.reason if decision.action.submits else ""  # else it is that it waits
    return dataclasses.replace(decision, reason="; ".join(filter(None, (first, why))), needs=states)


def _decide(
    verdict: Verdict | None, rules: SubmitRules, previous: Mapping[str, Any], profile: Profile, force: bool, anew: bool
) -> Decision:
    factor = _kept_factor(previous, profile)
    if verdict is None or verdict.state in (State.NOT_STARTED, State.BLOCKED):
        return Decision(Action.NEW, mem_factor=factor)
    if verdict.state is State.EXTENDED:
        action = Action.RETRY if "job_id" in previous else Action.NEW
        return Decision(action, f"goes on: {verdict.reason}", factor)
    if verdict.state is State.COMPLETED:
        return Decision(Action.REPLACE, "completed", factor) if rules.replace_done else Decision(Action.REUSE)
    if verdict.state.live:
        return _decide_live(verdict, rules, previous, profile, factor)
    if "job_id" not in previous:
        return Decision(Action.NEW, _with_reason(f"{verdict.state} when run by hand", verdict.reason))
    if not rules.retry:
        return Decision(Action.KEEP, _with_reason(verdict.state, verdict.reason))
    frozen, submitted = number_in(previous, "frozen"), number_in(previous, "submitted")
    if frozen and submitted and frozen > submitted:
        anew = True  # for a job that was then not submitted, for want of room
    if verdict.state is State.OUT_OF_MEMORY:
        decision = _out_of_memory(previous, profile, factor, force=force)
        if decision.action is not Action.BLOCKED or not anew:
            return decision
    kind = "diverged" if verdict.state is State.DIVERGED else _blocking_kind(previous)
    moved = kind == "data" and "dataset_paths" in _changed_fields(previous, profile)
    if kind is not None and not (force or anew or moved):
        why = _with_reason(_BLOCKING_KINDS[kind], verdict.reason)
        return Decision(Action.BLOCKED, f"{why}; it would end so again: correct that, or `{FORCE}`")
    return Decision(Action.RETRY, _with_reason(verdict.state, verdict.reason), factor)


def previous_job(folder: Path, *, failed: bool = False) -> dict[str, Any]:
    """The `job.json` of the latest job of an experiment, with the `kind` of its failure.

    Of one that has `failed` also when its configuration was `frozen`, in unix seconds.
    """
    job, status = read_json(folder / JOB_FILE) or {}, read_status(folder) or {}
    # A job that died before it wrote a status must not inherit the diagnosis of an earlier one.
    if job.get("job_id") is not None and same_job(status, job) and "kind" in status:
        job["kind"] = status["kind"]
    return {**job, "frozen": number_in(read_json(folder / FROZEN_FILE) or {}, "written")} if failed else job


def _decide_live(
    verdict: Verdict, rules: SubmitRules, previous: Mapping[str, Any], profile: Profile, factor: float
) -> Decision:
    """Decide about a job that waits, runs, or may run."""
    state = verdict.state
    if state is State.UNKNOWN:
        why = verdict.reason or "the scheduler does not answer"
        return Decision(Action.KEEP, f"{why}; it may be running, so nothing is submitted")
    if "job_id" not in previous:
        return Decision(Action.KEEP, f"{state} by hand")
    if rules.replace:
        return Decision(Action.REPLACE, state, factor)
    changed = _changed_fields(previous, profile) if rules.update else {}
    changes = ", ".join(f"{name} {then} → {now}" for name, (then, now) in changed.items() if name not in _NOT_REQUESTED)
    if changes:
        return Decision(Action.REPLACE, f"{state}; {changes}", factor)
    return Decision(Action.KEEP, _with_reason(state, verdict.reason))


def _out_of_memory(previous: Mapping[str, Any], profile: Profile, factor: float, *, force: bool) -> Decision:
    """Retry once with more memory, if the profile allows that or has been given more since."""
    had, now, limit = _memory_then(previous, profile), profile.total_mem_gb or 0.0, profile.max_mem_gb
    if now > had:
        return Decision(Action.RETRY, f"ran out of {had:g} GB of memory; the profile gives {now:g} GB now")
    if force:
        return Decision(Action.RETRY, f"ran out of {had:g} GB of memory; forced", factor)
    grown = 0.0 if limit is None else min(had * profile.oom_mem_factor, limit)
    if factor > 1.0:
        why = f"ran out of memory again, with {had:g} GB; request more (mem_gb or mem_per_gpu)"
    elif had <= 0.0:
        why = "ran out of memory; the profile requests none by number, so give one (mem_gb or mem_per_gpu)"
    elif limit is None:
        why = f"ran out of {had:g} GB of memory; to retry it once with more, set max_mem_gb"
    elif grown <= had:
        why = f"ran out of {had:g} GB of memory and max_mem_gb={limit:g} allows no more; raise that"
    else:
        return Decision(Action.RETRY, f"ran out of {had:g} GB of memory; gets {grown:g} GB", grown / now)
    return Decision(Action.BLOCKED, f"{why} in the profile, or `{FORCE}`")


def _blocking_kind(previous: Mapping[str, Any]) -> str | None:
    """Why the latest job could only fail, None if nothing is known."""
    verdict = previous.get("verdict")
    kinds = (previous.get("kind"), verdict.get("kind") if isinstance(verdict, Mapping) else verdict)
    return next((word for word in (str(kind).lower() for kind in kinds) if word in _BLOCKING_KINDS), None)


def _profile_then(previous: Mapping[str, Any]) -> Mapping[str, Any]:
    """The profile that the latest job was submitted with; Dora calls it `slurm_config`."""
    found = (previous.get(name) for name in ("profile", "slurm_config"))
    return next((one for one in found if isinstance(one, Mapping)), {})


def _changed_fields(previous: Mapping[str, Any], profile: Profile) -> dict[str, tuple[Any, Any]]:
    """Fields of a profile that a job was submitted with and that differ now: {name: (then, now)}."""
    then, now = _profile_then(previous), profile.as_json()
    return {name: (then[name], now[name]) for name in sorted(then.keys() & now.keys()) if then[name] != now[name]}


def _factor_then(previous: Mapping[str, Any]) -> float:
    return max(1.0, number_in(previous, "mem_factor") or 1.0)


def _memory_then(previous: Mapping[str, Any], profile: Profile) -> float:
    """Memory in GB that the latest job had; where that is not recorded, what the profile gives now."""
    known = {field.name for field in dataclasses.fields(profile)}
    fields = {name: value for name, value in _profile_then(previous).items() if name in known}
    try:
        memory = float(dataclasses.replace(profile, **fields).total_mem_gb or 0)
    except (TypeError, ValueError):  # a profile of another version, or a damaged one
        memory = profile.total_mem_gb or 0.0
    return memory * _factor_then(previous)


def _kept_factor(previous: Mapping[str, Any], profile: Profile) -> float:
    """A job that has needed more memory keeps it, but not on top of what the profile was given since."""
    now = profile.total_mem_gb
    return max(1.0, _memory_then(previous, profile) / now) if now and _factor_then(previous) > 1.0 else 1.0


def _with_reason(what: str, reason: str) -> str:
    return f"{what}: {reason}" if reason else what
