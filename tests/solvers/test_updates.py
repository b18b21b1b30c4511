"""What follows the backward passes: accumulation, clipping, scaling, skipping."""

import pytest
import torch
from torch import Tensor, nn

from audiotok.errors import DivergedError
from audiotok.solvers.precision import LossScale
from audiotok.solvers.updates import Skips, Snapshot, Updates, groups


def line(**options: object) -> tuple[nn.Parameter, Updates]:
    """A weight of 1, and updates by gradient descent with a learning rate of 1."""
    weight = nn.Parameter(torch.ones(()))
    return weight, Updates(torch.optim.SGD([weight], lr=1.0), [weight], **options)  # type: ignore[arg-type]


def test_accumulated_batches_are_one_larger_batch() -> None:
    torch.manual_seed(0)
    data, target = torch.randn(12, 5, dtype=torch.float64), torch.randn(12, 1, dtype=torch.float64)
    weights = []
    for count in (1, 3):
        torch.manual_seed(1)
        model = nn.Linear(5, 1).double()
        updates = Updates(torch.optim.Adam(model.parameters()), list(model.parameters()), accumulate=count)
        for _ in range(4):
            for x, y in zip(data.chunk(count), target.chunk(count), strict=True):
                loss = (model(x) - y).square().mean()
                loss.backward()
                found = updates.step({"l": loss})
        assert set(found) == {"grad_norm"}
        weights.append(model.weight.detach().clone())
    torch.testing.assert_close(*weights, rtol=1e-9, atol=1e-12)


def test_only_the_last_batch_of_an_update_reports() -> None:
    weight, updates = line(accumulate=2)
    (3 * weight).backward()
    assert updates.step() == {} and weight.item() == 1
    (5 * weight).backward()
    assert updates.step()["grad_norm"] == 4 and weight.item() == -3 and weight.grad is None


@pytest.mark.parametrize(("slope", "clipped", "after"), [(3.0, 1.0, 0.0), (0.5, 0.0, 0.5)])
def test_clipping_is_reported(slope: float, clipped: float, after: float) -> None:
    weight, updates = line(max_norm=1.0)
    (slope * weight).backward()
    found = updates.step()
    assert (found["grad_norm"], found["clipped"]) == (slope, clipped)
    assert weight.item() == pytest.approx(after, abs=1e-5)


@pytest.mark.parametrize("where", ["gradient", "loss"])
def test_what_is_not_finite_is_skipped_up_to_a_number(where: str) -> None:
    skips = Skips(2)
    weight, updates = line(skips=skips)

    def step(value: float) -> dict[str, object]:
        skips.next_update()
        loss = value * weight
        loss.backward() if where == "gradient" else (2 * weight).backward()
        return updates.step({"l": loss})

    assert step(float("nan")) == {"skipped": 1.0} and weight.item() == 1
    assert step(0.5)["skipped"] == 0 and weight.item() < 1
    assert step(float("inf")) == {"skipped": 1.0}
    restored = Skips(2)
    restored.load_state_dict(skips.state_dict())
    assert restored.count == 2
    what = "l not finite" if where == "loss" else "(l|its gradient is) not finite"
    with pytest.raises(DivergedError, match=rf"{what}, and 2 updates were skipped before \(optim.max_skipped=2\)"):
        step(float("nan"))


def test_an_overflow_lowers_the_scale_and_is_no_skipped_update() -> None:
    scale, skips = LossScale(), Skips()
    weight, updates = line(scale=scale, skips=skips)
    (scale.value * weight).backward()
    assert updates.step()["grad_norm"] == 1 and weight.item() == 0
    (float("inf") * weight).backward()
    assert updates.step() == {"skipped": 1.0}
    assert (scale.value, skips.count) == (2.0**15, 0)
    scale.value = scale.least
    (float("inf") * weight).backward()
    with pytest.raises(DivergedError, match="max_skipped=0"):
        updates.step()


def test_a_loss_that_is_not_finite_is_no_overflow() -> None:
    """No loss depends on the scale: lowering it helps nothing, and hides a batch that is not a number."""
    scale, skips = LossScale(), Skips(1)
    weight, updates = line(scale=scale, skips=skips)
    bad, good = torch.tensor(float("nan")), torch.ones(())
    (float("nan") * weight).backward()
    assert updates.step({"l1": good, "msspec": bad}) == {"skipped": 1.0} and not updates.overflowed
    assert (scale.value, skips.count) == (LossScale.start, 1)
    assert updates.skip("a gradient is not finite", {"l1": good}) == {"skipped": 1.0} and updates.overflowed
    assert (scale.value, skips.count) == (LossScale.start / 2, 1)
    skips.next_update()
    with pytest.raises(DivergedError, match=r"msspec not finite; where fp16 is the reason, .* precision=bf16"):
        updates.skip("a gradient is not finite", {"l1": good, "msspec": bad})


def test_a_loss_of_an_earlier_batch_of_an_update_counts() -> None:
    weight, updates = line(skips=Skips(1), accumulate=2)
    for value in (float("nan"), 1.0):
        (2 * weight).backward()
        found = updates.step({"l": torch.tensor(value)})
    assert found == {"skipped": 1.0} and updates.skips.count == 1 and weight.item() == 1


def test_a_scale_grows_after_good_updates_and_survives_a_checkpoint() -> None:
    scale = LossScale()
    for _ in range(LossScale.patience - 1):
        scale.update(True)
    other = LossScale()
    other.load_state_dict(scale.state_dict())
    for one in (scale, other):
        one.update(True)
        assert (one.value, one.good) == (2.0**17, 0)


def test_a_snapshot_brings_buffers_and_states_back() -> None:
    norm, skips = nn.BatchNorm1d(2), Skips(5)
    before = Snapshot(norm, skips, None)
    norm(torch.randn(4, 2))
    skips.add("a test")
    before.restore()
    assert torch.equal(norm.get_buffer("running_mean"), torch.zeros(2)) and skips.count == 0


def test_groups_drop_what_is_left_over() -> None:
    batches: list[Tensor | int] = [1, 2, 3, 4, 5]
    assert list(groups(batches, 2)) == [[1, 2], [3, 4]] and list(groups(batches, 1)) == [[1], [2], [3], [4], [5]]
