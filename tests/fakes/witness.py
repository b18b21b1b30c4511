"""What became of the tiny experiments, from what each of their processes wrote: was anything lost, or done twice?"""

import itertools
import json
from pathlib import Path
from typing import Any

from tests.fakes.tiny import TinyProject

EPOCHS, STEPS = 3, 8  # of the experiments that faults strike


def runs_of(folder: Path) -> list[dict[str, Any]]:
    """Return what the processes of an experiment wrote, in the order they began."""
    runs = [json.loads(path.read_text()) for path in folder.glob("runs/*.json")]
    return sorted(runs, key=lambda run: float(run["began"]))


def uninterrupted(index: int, *, epochs: int = EPOCHS, steps: int = STEPS) -> list[dict[str, Any]]:
    """Return the history of an experiment that nothing befell, from arithmetic alone."""
    value, history = 0, []
    for epoch in range(1, epochs + 1):
        for _ in range(steps):
            value = (1103515245 * value + index + 12345) % 2147483648
        history.append({"train": {"value": value}, "valid": {"loss": 1.0 / epoch + index}})
    return history


def assert_never_two_at_once(folder: Path) -> None:
    """No process of an experiment began before the one before it had done its last step."""
    runs = runs_of(folder)
    for before, after in itertools.pairwise(runs):
        assert before["beat"] <= after["began"], f"{folder.name} ran twice at once: {before} {after}"


def assert_nothing_lost(project: TinyProject, count: int, *, epochs: int = EPOCHS, steps: int = STEPS) -> None:
    """Experiments 1 to `count` are complete, each epoch once, as if nothing had happened."""
    assert project.verdicts(count) == ["COMPLETED"] * count
    for index in range(1, count + 1):
        folder = project.experiment(index=index)
        assert_never_two_at_once(folder)
        assert json.loads((folder / "history.json").read_text()) == uninterrupted(index, epochs=epochs, steps=steps)
        assert runs_of(folder)[-1]["to"] == [epochs, 0]
