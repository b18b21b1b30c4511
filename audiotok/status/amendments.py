"""What was changed of an experiment after it had trained, `amended.json`, and whether epochs are left by that.

Fields: version, sig, amendments: each with its time (unix seconds), user, epochs_done then, and keys: {key: [value
before, value since]}. Written by `audiotok.experiments.extend`. Here a damaged file counts as none: a run refuses it.
"""

import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from audiotok.files import UnreadableError, load_json, read_json
from audiotok.status.state import State, Verdict, read_status
from audiotok.text import number_in

AMENDED_FILE = "amended.json"
EPOCHS = "optim.epochs"
MAY_CHANGE = {  # patterns of keys, and what a change of them does
    EPOCHS: "the training continues to there",
    "evaluate.every": "when evaluate runs",
    "generate.every": "when generate runs",
    "checkpoint.*": "when checkpoints are written, and which copies are kept",
    "logging.*": "what is logged",
    "watch.*": "what is watched, and shown beside the state",
    "*.num_workers": "processes that read; the data stay the same",
}


def may_change(key: str, value: object = None) -> bool:
    """Whether a key, and to this value, may change of an experiment that has trained."""
    if (
        isinstance(value, dict)
        or "${" in str(value)
        or (key == EPOCHS and value is not None and type(value) is not int)
    ):
        return False
    return any(fnmatchcase(key, pattern) for pattern in MAY_CHANGE)


def read_amendments(folder: Path) -> list[dict[str, Any]]:
    """The amendments of an experiment, the oldest first; none where the file is missing or damaged."""
    found = (read_json(Path(folder) / AMENDED_FILE) or {}).get("amendments")
    some = found if isinstance(found, list) else []
    return [one for one in some if isinstance(one, dict) and _has_pairs(one.get("keys"))]


def amended_values(folder: Path) -> dict[str, Any]:
    """The values that hold since the last amendment, by key."""
    return {key: pair[1] for one in read_amendments(folder) for key, pair in one["keys"].items()}


def amended_epochs(folder: Path) -> int | None:
    """Epochs in all by the last amendment that changed them; None without one."""
    epochs = number_in(amended_values(folder), EPOCHS)
    return None if epochs is None else int(epochs)


def extended(verdict: Verdict | None, folder: Path) -> Verdict | None:
    """The verdict, but EXTENDED in place of COMPLETED where the epochs were raised beyond those that are done."""
    if verdict is None or verdict.state is not State.COMPLETED or (epochs := amended_epochs(folder)) is None:
        return verdict
    done = _epochs_done(folder)
    return verdict if done >= epochs else Verdict(State.EXTENDED, f"{done} of {epochs} epochs are done")


def amendment_lines(folder: Path) -> list[str]:
    """A line for each amendment of an experiment, with its date and its user."""
    lines = []
    for one in read_amendments(folder):
        try:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(number_in(one, "time") or 0.0))
        except (OverflowError, OSError, ValueError):  # no time of this era
            when = "?"
        lines.append(f"{when} by {one.get('user')}, after {one.get('epochs_done')} epochs: {amendment_text(one)}")
    return lines


def amendment_text(amendment: dict[str, Any]) -> str:
    """What an amendment changed: `optim.epochs 4 → 6, evaluate.every 25 → 5`."""
    return ", ".join(f"{key} {_shown(old)} → {_shown(new)}" for key, (old, new) in amendment["keys"].items())


def _epochs_done(folder: Path) -> int:
    epoch = number_in(read_status(folder) or {}, "epoch")
    if epoch is not None:
        return int(epoch)
    try:  # a trainer that is only starting has not counted yet
        return len(load_json(Path(folder) / "history.json", list))
    except (OSError, UnreadableError):
        return 0


def _has_pairs(keys: object) -> bool:
    return isinstance(keys, dict) and all(isinstance(pair, list) and len(pair) == 2 for pair in keys.values())


def _shown(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
