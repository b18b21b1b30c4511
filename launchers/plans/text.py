"""A plan for people: what is done with which experiments and why, what it asks for, and what has changed."""

import time
from collections.abc import Iterable, Sequence
from itertools import takewhile

from audiotok.launchers.decide import FORCE, Action
from audiotok.launchers.engine import LIVE_STATES
from audiotok.launchers.plan import Entry, Plan, Request
from audiotok.launchers.plans.memory import Changes

SHOWN = 5  # experiments of a group that are listed
_TITLES = {
    Action.NEW: "new",
    Action.REUSE: "reused: done already",
    Action.RETRY: "retried",
    Action.REPLACE: "replaced",
    Action.BLOCKED: "blocked",
    Action.CANCEL: "cancelled: no longer in the grid",
}
_WAITING, _FAILED = "left alone: waiting or running", "left alone: failed; --retry submits them again"
_ORDER = (Action.NEW, Action.RETRY, Action.REPLACE, Action.CANCEL, Action.BLOCKED, Action.KEEP, Action.REUSE)


def plan_text(plan: Plan, *, shown: int | None = SHOWN) -> str:
    """Tell a plan.

    Args:
        plan: what to tell.
        shown: how many experiments of each group are listed; None for all.
    """
    lines = [f"Plan of {plan.grid} on {plan.launcher}: {_summary(plan)}"]
    common = _common(plan.entries)
    if common:
        lines.append(f"all of them: {common}")
    for title, entries in _groups(plan.entries).items():
        listed = [line.replace(FORCE, FORCE.replace("GRID", plan.grid)) for line in _listed(entries, shown, common)]
        lines += ["", f"{title} ({len(entries)})", *listed]
    lines += ["", *_asked(plan.request)]
    lines.append(_changed(plan.changes, shown))
    return "\n".join(lines)


def hours_text(hours: float) -> str:
    """A number of hours, with as many digits as help."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def bytes_text(size: float) -> str:
    """A size on disk, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.0f} TB" if size >= 100 else f"{size:.3g} TB"


def _summary(plan: Plan) -> str:
    whole = sum(1 for entry in plan.entries if entry.action is not Action.CANCEL)
    counts = ", ".join(f"{number} {action}" for action, number in plan.counts().items())
    return f"{whole} experiment{'' if whole == 1 else 's'}" + (f" ({counts})" if counts else "")


def _groups(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Experiments by what is done with them: first what the launch changes."""
    groups: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: _ORDER.index(entry.action)):  # stable: the order of the grid stays
        if entry.action is Action.KEEP:
            title = _WAITING if entry.state in LIVE_STATES else _FAILED
        else:
            title = _TITLES[entry.action]
        groups.setdefault(title, []).append(entry)
    return groups


def _common(entries: Sequence[Entry]) -> str:
    """What the names of all experiments of the grid begin with, in whole parameters."""
    names = [entry.name.split(" ") for entry in entries if entry.action is not Action.CANCEL]
    if len(names) < 2:
        return ""
    alike = takewhile(lambda words: len(set(words)) == 1 and not {*"[{("} & {*words[0]}, zip(*names, strict=False))
    return " ".join(words[0] for words in alike)


def _listed(entries: Sequence[Entry], shown: int | None, common: str) -> list[str]:
    """A line each; those that have a reason in common stand together under it."""
    by_reason: dict[str, list[Entry]] = {}
    for entry in entries:
        by_reason.setdefault(entry.decision.reason, []).append(entry)
    lines = []
    for reason, alike in by_reason.items():
        if reason:
            lines.append(f"  {reason}" + (f" ({len(alike)})" if len(alike) < len(entries) else ""))
        listed = alike if shown is None or len(alike) <= shown + 1 else alike[:shown]
        lines += [f"    {entry.sig}  {entry.name.removeprefix(common).strip() or '(base)'}" for entry in listed]
        if len(alike) > len(listed):
            lines.append(f"    … {len(alike) - len(listed)} more (--all lists them)")
    return lines


def _asked(request: Request) -> list[str]:
    if not request.jobs:
        return ["asks for: nothing, no job is submitted"]
    jobs = f"{request.jobs} job{'' if request.jobs == 1 else 's'}"
    limits = f"at most {hours_text(request.gpu_hours)} GPU-hours and {hours_text(request.cpu_hours)} CPU-hours"
    if request.likely_gpu_hours is None or request.likely_cpu_hours is None:
        likely = "; how much of that is used is unknown until an experiment of this grid has finished"
    else:
        known = f"{request.finished} finished experiment{'' if request.finished == 1 else 's'} of this grid"
        gpu, cpu = hours_text(request.likely_gpu_hours), hours_text(request.likely_cpu_hours)
        likely = f"; likely {gpu} GPU-hours and {cpu} CPU-hours, going by {known}"
    return [f"asks for: {jobs}, {limits}{likely}", _disk(request)]


def _disk(request: Request) -> str:
    free = "" if request.free_bytes is None else f"; {bytes_text(request.free_bytes)} free"
    if request.disk_bytes is None:
        return f"disk: unknown until an experiment has finished{free}"
    measured = f"{request.measured} finished experiment{'' if request.measured == 1 else 's'}"
    warning = " — not enough" if request.free_bytes is not None and request.disk_bytes > request.free_bytes else ""
    return f"disk: about {bytes_text(request.disk_bytes)}, going by {measured}{free}{warning}"


def _changed(changes: Changes | None, shown: int | None) -> str:
    if changes is None:
        return "since the last submission: this grid has not been submitted from here before"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(changes.time))
    head = f"since the last submission ({when}, {changes.user}):"
    if not changes:
        return f"{head} nothing has changed"
    lines = [head]
    for sign, what, names in (("+", "added", changes.added), ("-", "removed", changes.removed)):
        listed = names if shown is None or len(names) <= shown + 1 else names[:shown]
        lines += [f"  {len(names)} {what}"] * bool(names) + [f"    {sign} {name}" for name in listed]
        lines += [f"    … {len(names) - len(listed)} more (--all lists them)"] * (len(names) > len(listed))
    lines += [f"  {change} ({number} experiments)" for change, number in changes.profile.items()]
    return "\n".join(lines)
