"""Signs of trouble in a training, against counts and medians worked out by hand."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from audiotok.adversarial.losses import ADVERSARIAL_LOSSES, get_fake_criterion, get_real_criterion
from audiotok.checkpoint import LAST, load_checkpoint
from audiotok.quantization import QuantizedResult
from audiotok.solvers import CompressionSolver
from audiotok.solvers.watching import CHANCES, Watch

Enter = Callable[..., AbstractContextManager[CompressionSolver]]


def watch_of(values: list[float], watch: Watch) -> list[str]:
    """What is shown after each step with these losses."""
    shown = []
    for index, value in enumerate(values):
        watch.add_step({"loss": value, "other": 1e9}, f"update {index + 1}")
        shown.append(watch.text)
    return shown


def test_an_explosion_is_shown_until_it_is_over() -> None:
    calm = [1.0, 2.0, 3.0] * 20
    shown = watch_of([*calm, 30.0, 30.0, 40.0, 50.0, *[2.0] * 100], Watch(metrics=("loss",)))
    assert shown[:62] == [""] * 62  # up to two steps in a row
    assert shown[62:-1] == ["loss explodes: 40, usually 2 (update 63)"] * 101
    assert shown[-1] == ""


def test_what_stays_far_beyond_stays_shown() -> None:
    shown = watch_of([1.0] * 60 + [1000.0] * 500, Watch(metrics=("loss",), window=50))
    assert shown[-1] == "loss explodes: 1e+03, usually 1 (update 63)"


@pytest.mark.parametrize(
    "values",
    [
        [5.0] * 60 + [49.0] * 10,  # below the factor
        [1000.0, 500.0, 10.0, 1.0] + [1.0] * 60,  # the first steps, which nothing precedes
        [1.0] * 60 + [1000.0, 1000.0, 1.0] * 20,  # never three in a row
        [0.0] * 60 + [1.0] * 10,  # a loss that was 0
        [1.0] * 60 + [math.nan, math.inf] * 10,  # not finite: others stop or skip that
    ],
)
def test_what_is_no_explosion(values: list[float]) -> None:
    assert not any(watch_of(values, Watch(metrics=("loss",))))


def test_a_discriminator_that_no_longer_wins_does_not_explode() -> None:
    watch = Watch(metrics=("loss",), chances={"loss": 2.0})
    assert not any(watch_of([0.01] * 60 + [2.0] * 10, watch))
    assert watch_of([21.0] * 3, watch)[-1] == "loss explodes: 21, usually 2 (update 3)"


@pytest.mark.parametrize("kind", ADVERSARIAL_LOSSES)
def test_the_loss_by_chance_is_the_least_of_any_single_score(kind: str) -> None:
    fake, real = get_fake_criterion(kind), get_real_criterion(kind)
    scores = torch.linspace(-2, 2, 401, dtype=torch.float64)
    assert min(float(fake(one) + real(one)) for one in scores) == pytest.approx(CHANCES[kind])


def test_a_winning_discriminator_is_shown_until_it_no_longer_wins() -> None:
    watch = Watch(chances={"d_msd": 2.0, "d_mpd": 2.0})
    watch.end_epoch({"d_msd": 0.11, "d_mpd": 0.09}, 3)
    assert watch.text == "mpd wins: d_mpd 0.09 of 2 (epoch 3)"
    watch.end_epoch({"d_msd": 0.02, "d_mpd": 1.0}, 4)
    assert watch.text == "msd wins: d_msd 0.02 of 2 (epoch 4)"
    watch.end_epoch({}, 5)  # the discriminators did not train
    assert watch.text == ""


def codes(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)[None]


def test_a_collapsed_codebook_is_found_by_the_perplexity_of_an_epoch() -> None:
    watch = Watch(codebooks=(3, 64))
    everything = list(range(64))
    for _ in range(2):  # the third codebook had no frame: quantiser dropout left it out
        watch.add_codes(codes(everything, [7] * 32 + [9] * 32))
    watch.end_epoch({}, 1)
    assert watch.text == "codebook 2 collapsed: perplexity 2 of 64 (epoch 1)"
    watch.add_codes(codes(everything, everything, everything))
    watch.end_epoch({}, 2)  # of the second epoch alone
    assert watch.text == ""


def test_few_frames_are_no_collapse() -> None:
    watch = Watch(codebooks=(1, 1024))
    watch.add_codes(codes(list(range(20))))
    watch.end_epoch({}, 1)
    assert watch.text == ""
    watch.add_codes(codes([3] * 20))
    watch.end_epoch({}, 2)
    assert watch.text == "codebook 1 collapsed: perplexity 1 of 1024 (epoch 2)"


def test_each_can_be_switched_off() -> None:
    off = Watch(None, 200, None, None, ("loss",), {"d_msd": 2.0}, (1, 8))
    watch_of([1.0] * 60 + [1e6] * 9, off)
    off.add_codes(codes([3] * 100))
    off.end_epoch({"d_msd": 0.0}, 1)
    assert off.text == ""


@pytest.mark.parametrize("stop", [10, 55, 61, 100])
def test_a_resumed_watch_finds_the_same(stop: int) -> None:
    values = [1.0, 3.0] * 30 + [50.0] * 4 + [2.0] * 110
    expected = watch_of(values, Watch(metrics=("loss",), codebooks=(2, 16)))
    first, second = (Watch(metrics=("loss",), codebooks=(2, 16)) for _ in range(2))
    found = watch_of(values[:stop], first)
    first.add_codes(codes([1] * 20, [2] * 20))
    second.load_state_dict(first.state_dict())
    found += watch_of(values[stop:], second)
    assert [text.split(" (")[0] for text in found] == [text.split(" (")[0] for text in expected]
    second.end_epoch({}, 1)
    assert second.text.count("collapsed") == 2


def test_steps_that_were_skipped_are_counted_over_a_resume() -> None:
    first, second = Watch(explosion=None), Watch(explosion=None)
    first.add_step({"skipped": 1.0}, "epoch 1, update 6")  # an overflow in fp16
    assert first.text == ""
    first.add_step({"skipped": 1.0}, "epoch 1, update 7", skipped=True)
    assert first.text == "1 update skipped, not finite (the last: epoch 1, update 7)"
    second.load_state_dict(first.state_dict())
    for skipped, update in ((False, 8), (True, 9)):
        second.add_step({"skipped": float(skipped)}, f"epoch 1, update {update}", skipped)
    assert second.text == "2 updates skipped, not finite (the last: epoch 1, update 9)"


def test_what_is_noted_stands_in_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    watch = Watch()
    for text in ("1 step skipped", "1 step skipped", "2 steps skipped"):  # it has begun; what is shown goes on
        watch.note("skipped", text)
    watch.note("other", "a reason")
    assert watch.text == "2 steps skipped; a reason"
    watch.clear("skipped")
    watch.clear("skipped")
    assert caplog.messages == [
        "watch: 1 step skipped", "watch: a reason", "watch: over: 2 steps skipped"
    ]  # fmt: skip


def test_a_training_watches_itself_and_its_checkpoint_has_what_it_found(tmp_path: Path, solver_in: Enter) -> None:
    with solver_in(tmp_path, "optim.epochs=1", "optim.updates_per_epoch=2") as solver:
        assert set(solver.watch.metrics) >= {"grad_norm", "penalty", "l1"}
        seen: list[tuple[str, set[str]]] = []
        add = solver.watch.add_step

        def add_step(metrics: Mapping[str, float], where: str, skipped: bool) -> None:
            seen.append((where, {*metrics}))
            add(metrics, where, skipped)

        solver.watch.add_step = add_step  # type: ignore[assignment,method-assign]
        quantize = solver.model.quantizer.forward

        def always_the_first(latent: torch.Tensor, frame_rate: float) -> QuantizedResult:
            result = quantize(latent, frame_rate)
            return dataclasses.replace(result, codes=result.codes * 0)

        solver.model.quantizer.forward = always_the_first  # type: ignore[method-assign]
        solver.run()
        assert [where for where, _ in seen] == ["epoch 1, update 1", "epoch 1, update 2"]
        assert all({"grad_norm", "penalty", "l1"} <= names for _, names in seen)
        bins = solver.model.cardinality
        assert solver.watch.text.startswith(f"codebook 1 collapsed: perplexity 1 of {bins} (epoch 1)")
        state = load_checkpoint(Path(solver.folder) / LAST)
        assert state["watch"]["findings"] == solver.watch.findings
        text = solver.watch.text
    with solver_in(tmp_path, "optim.epochs=1", "optim.updates_per_epoch=2") as again:
        assert again.restore() and again.watch.text == text
        del state["watch"]
        torch.save(state, Path(again.folder) / LAST)  # of an earlier version
    with solver_in(tmp_path, "optim.epochs=1", "optim.updates_per_epoch=2") as again:
        assert again.restore() and again.watch.text == ""


@pytest.mark.parametrize(("normalize", "parts"), [(True, 1), (False, 2)])
def test_each_discriminator_has_its_loss_by_chance(
    tmp_path: Path, solver_in: Enter, normalize: bool, parts: int
) -> None:
    overrides = ["adversarial.adversaries=[mpd]", "mpd.periods=[2,3]", "mpd.filters=2", "losses.adv=1"]
    with solver_in(tmp_path, *overrides, "adversarial.adv_loss=mse", f"adversarial.normalize={normalize}") as solver:
        assert solver.watch.chances == {"d_mpd": 0.5 * parts}
        assert "d_mpd" in solver.watch.metrics
