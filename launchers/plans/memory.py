"""What a launch of a grid left behind for the next plan: its experiments and their profiles, then.

Stands in `<dora.dir>/plans/<grid>.json`, not in the folder of the grid: whatever lies there Dora takes for a signature.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audiotok.launchers.lock import user_and_host
from audiotok.status import read_json, write_json


@dataclass(frozen=True)
class Member:
    """An experiment of a grid: its name, and the profile that it was submitted with, as plain containers."""

    name: str
    profile: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Changes:
    """What has changed since a grid was last submitted.

    Attributes:
        time: when that was, unix seconds.
        user: by whom.
        added: names of experiments that are in the grid now and were not.
        removed: names of those that were in it and are not now.
        profile: how many experiments each change of a field of their profile concerns: {"time 60 → 90": 40}.
    """

    time: float
    user: str
    added: list[str]
    removed: list[str]
    profile: dict[str, int]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.profile)


def remember(root: Path, grid: str, members: Mapping[str, Member], sigs: Iterable[str]) -> None:
    """Keep what a launch has looked at; to be called under the submission lock.

    Args:
        root: `dora.dir`.
        grid: name of the grid.
        members: experiments that the launch looked at, by signature; with patterns, not all of the grid.
        sigs: signatures of the whole grid: what is remembered of others is dropped.

    Raises:
        OSError: if the disk refuses; what was remembered before is then intact.
    """
    whole = set(sigs)
    known = {sig: member for sig, member in _read(root, grid)[1].items() if sig in whole} | dict(members)
    profiles = list({json.dumps(member.profile, sort_keys=True): None for member in known.values()})
    number = {text: index for index, text in enumerate(profiles)}
    content = {
        "grid": grid,
        "time": time.time(),
        "user": user_and_host(),
        "profiles": [json.loads(text) for text in profiles],
        "experiments": {
            sig: {"name": member.name, "profile": number[json.dumps(member.profile, sort_keys=True)]}
            for sig, member in known.items()
        },
    }
    path = _path(root, grid)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def changes_since(root: Path, grid: str, members: Mapping[str, Member], sigs: Iterable[str]) -> Changes | None:
    """Compare a grid with what was remembered of it; None if nothing is.

    Args:
        root: `dora.dir`.
        grid: name of the grid.
        members: experiments as they are now, by signature; with patterns, not all of the grid.
        sigs: signatures of the whole grid.
    """
    content, then = _read(root, grid)
    if content is None:
        return None
    whole = set(sigs)
    fields: Counter[str] = Counter()
    for sig in members.keys() & then.keys():
        fields.update(_differences(then[sig].profile, members[sig].profile))
    when = content.get("time")
    return Changes(
        time=float(when) if isinstance(when, int | float) else 0.0,
        user=str(content.get("user", "")),
        added=[member.name for sig, member in members.items() if sig not in then],
        removed=[member.name for sig, member in then.items() if sig not in whole],
        profile=dict(sorted(fields.items())),
    )


def _path(root: Path, grid: str) -> Path:
    return Path(root) / "plans" / f"{grid}.json"


def _read(root: Path, grid: str) -> tuple[dict[str, Any] | None, dict[str, Member]]:
    """What is remembered, whole and by signature; a damaged file counts as none."""
    content = read_json(_path(root, grid))
    try:
        told = {} if content is None else content["experiments"]
        members = {
            str(sig): Member(str(one["name"]), dict(content["profiles"][one["profile"]]) if content else {})
            for sig, one in told.items()
        }
    except (KeyError, TypeError, IndexError, ValueError, AttributeError):
        return None, {}
    return content, members


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Fields that both profiles have and that differ, in words."""
    both = sorted(then.keys() & now.keys())
    return [f"{name} {_word(then[name])} → {_word(now[name])}" for name in both if then[name] != now[name]]


def _word(value: Any) -> str:
    return "none" if value in (None, "", [], {}) else str(value)
