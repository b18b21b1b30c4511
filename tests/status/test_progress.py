"""How far an experiment is, whatever its status file holds."""

from typing import Any

import pytest

from audiotok.status.progress import Progress, progress_of


def test_progress_within_an_epoch() -> None:
    assert progress_of(None) == progress_of({}) == Progress()
    status = {"epoch": 3, "epochs": 10, "update": 30, "updates_per_epoch": 40, "epoch_s": 8.0}
    found = progress_of(status)
    assert found.done == pytest.approx(3.75) and found.share == pytest.approx(0.375) and str(found) == "3/10"
    assert found.left_s == pytest.approx(6.25 * 8.0) and found.whole_s == pytest.approx(80.0)
    over = progress_of({**status, "epoch": 10, "update": 40})
    assert over.share == 1.0 and over.left_s == 0.0 and str(over) == "10/10"
    stale = progress_of({**status, "update": 40})  # all updates done, the epoch not yet: it still counts as the fourth
    assert str(stale) == "3/10"
    by_clock = progress_of({"epoch": 4, "epochs": 10, "started": 1000.0, "updated": 1080.0})
    assert by_clock.epoch_s == pytest.approx(20.0)


@pytest.mark.parametrize("value", ["x", None, -3, float("nan"), float("inf"), 10**400, [1], {}])
def test_progress_bears_any_damage(value: Any) -> None:
    for name in ("epoch", "epochs", "update", "updates_per_epoch", "epoch_s", "started", "updated"):
        status = {"epoch": 1, "epochs": 2, "update": 1, "updates_per_epoch": 2, "epoch_s": 1.0, name: value}
        assert 0.0 <= progress_of(status).share <= 1.0
