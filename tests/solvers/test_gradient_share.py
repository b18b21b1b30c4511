"""A weight that is a share: what the encoder receives from the MMD, measured, beside what the reconstruction sends."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from audiotok.checkpoint import load_checkpoint, save_checkpoint
from audiotok.errors import CheckpointError, ConfigError
from audiotok.losses import Balancer, MMDLoss
from audiotok.losses.mmd import ESTIMATORS, RELEASED_SIGMAS
from audiotok.models.encodec import EncodecModel
from audiotok.quantization.rvq import STREAM_KINDS
from audiotok.solvers import CompressionSolver
from audiotok.solvers.averages import MetricAverages
from audiotok.solvers.gradient_share import FLOOR, GradientProbe, GradientShare
from audiotok.solvers.macro_batch import MacroBatch
from audiotok.solvers.randomness import seed_everything
from tests.solvers.test_macro_batch import batches, tiny_model
from tests.solvers.test_macro_batch_solver import SMALL, train

Enter = Callable[..., AbstractContextManager[CompressionSolver]]
RECONSTRUCTION = torch.tensor(3.0, dtype=torch.float64)


def double_model() -> EncodecModel:
    """Tiny codec whose codebooks hold vectors of the data, so that each uses several."""
    model = tiny_model().double()
    latent = model.encode_latent(torch.cat(batches(2)).double())[0].detach().transpose(1, 2).reshape(-1, 6)
    for name, buffer in model.quantizer.named_buffers():
        if name.endswith("embed"):
            buffer.copy_(latent[torch.randperm(len(latent))[:8]])
    return model


def received(model: EncodecModel, macro: MacroBatch, weight: float, n_q: int | None = None) -> torch.Tensor:
    """Gradient of each clip at the latent that an MMD step sends into the encoder, seen from there."""
    found: list[torch.Tensor] = []

    def watch(module: torch.nn.Module, args: object, latent: torch.Tensor) -> None:
        if latent.requires_grad:
            latent.register_hook(found.append)

    handle = model.encoder.register_forward_hook(watch)
    macro.value(model, weight, n_q)
    handle.remove()
    return torch.cat(found) if found else torch.zeros(0)


def by_share(loss: MMDLoss, stream: str = "residual", num_batches: int = 1, ema_decay: float = 0.9) -> MacroBatch:
    return MacroBatch(loss, stream, num_batches, seed=3, weighting="share", ema_decay=ema_decay)


@pytest.mark.parametrize("stream", STREAM_KINDS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("sigmas", ["median", RELEASED_SIGMAS])
def test_a_share_is_the_share_received(estimator: str, stream: str, sigmas: str | tuple[float, ...]) -> None:
    model, macro = double_model(), by_share(MMDLoss(sigmas, estimator), stream, num_batches=2)
    for wav in batches(2):
        macro.share.add_reconstruction(RECONSTRUCTION)
        macro.add(wav.double())
    norms = received(model, macro, 0.5).flatten(1).norm(dim=1)
    assert len(norms) == 4 and norms.mean().item() == pytest.approx(0.5 * 3, rel=1e-9)
    assert macro.reached == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize("num_batches", [1, 3])
def test_each_clip_gets_the_share_once_whatever_the_batches_gathered(num_batches: int) -> None:
    model, macro = double_model(), by_share(MMDLoss("median"), num_batches=num_batches, ema_decay=1.0)
    clips = []
    for step in range(6):
        macro.share.add_reconstruction(RECONSTRUCTION)
        if macro.add(batches(6)[step].double()):
            clips.append(received(model, macro, 0.2).flatten(1).norm(dim=1))
    norms = torch.cat(clips)
    assert len(norms) == 12 and norms.mean().item() == pytest.approx(0.2 * 3, rel=1e-9)


def test_the_reconstruction_is_averaged_as_the_balancer_does_and_the_mmd_is_not() -> None:
    share, latent = GradientShare(0.8), torch.ones(2, 4, 5, dtype=torch.float64)
    losses, weights = [1.0, 4.0, 2.0, 7.0], [0.8**age for age in (3, 2, 1, 0)]
    for norm in losses:
        share.add_reconstruction(torch.tensor(norm, dtype=torch.float64))
    average = sum(w * norm for w, norm in zip(weights, losses, strict=True)) / sum(weights)
    for clips in ([1e4, 3e4], [0.5, 0.7]):  # a burst leaves nothing behind
        gradient = latent * torch.tensor(clips).double()[:, None, None] / 20**0.5
        assert share.scale(0.5, gradient, latent) == pytest.approx(0.5 * average / (sum(clips) / 2), rel=1e-6)


@pytest.mark.parametrize("size", [0.0, 5e-22, 0.4 * FLOOR])
def test_a_vanishing_gradient_stays_off(size: float) -> None:
    share, latent = GradientShare(0.9), torch.full((2, 1, 1), 1.0)
    share.add_reconstruction(RECONSTRUCTION)
    assert share.scale(0.5, size * latent, latent) == 0
    assert share.scale(0.5, FLOOR * latent, latent) == pytest.approx(0.5 * 3 / FLOOR, rel=1e-6)


@pytest.mark.parametrize("estimator", ["closed", "unbiased", "disjoint", "samples"])
def test_above_the_floor_a_gradient_is_none_of_rounding(estimator: str) -> None:
    streams = torch.randn(4, 4, 16, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    off = 0
    for width in [10.0**power for power in range(-2, 9)]:  # far narrower and far wider than the distances
        loss, found = MMDLoss([width], estimator, delay=False), []
        for dtype in (torch.float64, torch.float32):
            leaf = streams.to(dtype).requires_grad_()
            value = loss(leaf, generator=torch.Generator().manual_seed(1))
            found.append(torch.autograd.grad(value, leaf)[0].double().flatten(1))
        share = GradientShare(0.9)
        share.add_reconstruction(RECONSTRUCTION)
        if share.scale(0.5, found[1], streams.flatten(1)) == 0:
            off += 1
        else:
            assert (found[0] - found[1]).norm() < 0.3 * found[0].norm()
    assert 0 < off < 11


def test_widths_that_see_nothing_leave_the_encoder_alone() -> None:
    model, macro = tiny_model(), by_share(MMDLoss([1e-4]))
    macro.share.add_reconstruction(RECONSTRUCTION)
    macro.add(batches(1)[0])
    assert received(model, macro, 0.5).abs().sum() == 0 and macro.reached == 0


def test_the_probe_sees_the_balanced_losses_alone() -> None:
    model = double_model()
    probe = GradientProbe(model.decoder)
    wav = batches(1)[0].double()
    latent = model.encode_latent(wav)[0].detach().requires_grad_()
    quantised = model.quantizer(latent, model.frame_rate)
    estimate = model.decoder(quantised.x)[..., : wav.shape[-1]]
    quantised.penalty.backward(retain_graph=True)
    latent.grad = None  # of the commitment
    Balancer({"l1": 2.0}).backward({"l1": (estimate - wav).abs().mean()}, estimate)
    assert latent.grad is not None
    assert probe.norm.item() == pytest.approx(latent.grad.flatten(1).norm(dim=1).mean().item(), rel=1e-9)
    with torch.no_grad():
        model(2 * wav)
    assert probe.norm.item() > 0


@pytest.mark.parametrize("weighting", ["absolute", "share"])
@pytest.mark.parametrize("stream", STREAM_KINDS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_dropped_codebooks_take_and_give_no_gradient(estimator: str, stream: str, weighting: str) -> None:
    model = double_model()
    loss, found = MMDLoss("median", estimator), []
    for vectors in (None, 1e3, float("nan")):
        if vectors is not None:
            model.state_dict()["quantizer.vq.layers.2._codebook.embed"].fill_(vectors)
        macro = MacroBatch(loss, stream, 1, seed=3, weighting=weighting)
        macro.share.add_reconstruction(RECONSTRUCTION)
        macro.add(batches(1)[0].double())
        found.append(received(model, macro, 0.5, n_q=2))
    assert found[0].abs().max() > 0
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    # What the third codebook would see depends on the second's choice; with it the gradient is another one.
    model = double_model()
    macro = MacroBatch(loss, stream, 1, seed=3, weighting=weighting)
    macro.share.add_reconstruction(RECONSTRUCTION)
    macro.add(batches(1)[0].double())
    assert not torch.allclose(received(model, macro, 0.5), found[0])


def test_states_are_restored_to_the_bit_and_old_ones_load() -> None:
    model, macro = double_model(), by_share(MMDLoss("median"), num_batches=2, ema_decay=0.97)
    for step, wav in enumerate(batches(5)):
        macro.share.add_reconstruction(RECONSTRUCTION / (step + 3))
        if macro.add(wav.double()):
            macro.value(model, 0.5)
    other = by_share(MMDLoss("median"), num_batches=2, ema_decay=0.97)
    state = copy.deepcopy(macro.state_dict())
    other.load_state_dict(state)
    assert all(isinstance(value, float) for value in state["share"].values())
    gradients = []
    for one in (macro, other):
        one.share.add_reconstruction(RECONSTRUCTION / 7)
        one.add(batches(1)[0].double())
        gradients.append(received(model, one, 0.5))
    assert torch.equal(*gradients) and macro.state_dict()["share"] == other.state_dict()["share"]
    del state["share"]  # as earlier versions wrote it
    other.load_state_dict(state)
    assert other.steps == 2
    with pytest.raises(CheckpointError, match="MMD's share"):
        other.share.load_state_dict({"totals": 1.0})


def test_other_weightings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"mmd\.weighting='relative'; choose one of: absolute, share"):
        MacroBatch(MMDLoss("median"), "code", 1, 0, weighting="relative")


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 1e-6])
def test_training_reports_the_share_reached(tmp_path: Path, solver_in: Enter, share: float) -> None:
    overrides = [f"losses.mmd={share}", "mmd.weighting=share", "mmd.start_epoch=2", "mmd.ramp_epochs=2"]
    with solver_in(tmp_path, *SMALL, *overrides, "optim.updates_per_epoch=1", "balancer.ema_decay=0.9") as solver:
        for _ in range(3):
            solver.averages = MetricAverages()
            solver.run_stage("train", solver.train)
            solver.commit()
        reached = [epoch["train"]["mmd_share"] for epoch in solver.history]
        assert solver.macro_batch is not None
        count = solver.macro_batch.share.state_dict()["count"]
    assert reached == [0, pytest.approx(share / 2, rel=1e-6), pytest.approx(share, rel=1e-6)]
    assert count == pytest.approx(1 + 0.9 + 0.9**2)


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_version_loads(tmp_path: Path, solver_in: Enter) -> None:
    with solver_in(tmp_path, *SMALL, "losses.mmd=1", "optim.epochs=2") as solver:
        solver.run_stage("train", solver.train)
        solver.commit()
        state = load_checkpoint(solver.checkpoint_path)
        del state["macro_batch"]["share"]
        save_checkpoint(state, solver.checkpoint_path)
        assert solver.restore()
        solver.run_stage("train", solver.train)


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["absolute", "share"])
def test_a_resumed_run_repeats_it_to_the_bit(tmp_path: Path, solver_in: Enter, weighting: str) -> None:
    overrides = [*SMALL, "losses.mmd=0.5", f"mmd.weighting={weighting}", "mmd.num_batches_mmd=3", "optim.epochs=4"]
    found = []
    for name, parts in (("whole", [4]), ("parts", [2, 2])):
        for epochs in parts:
            with solver_in(tmp_path / name, *overrides) as solver:
                solver.restore()
                for _ in range(epochs):
                    solver.averages = MetricAverages()
                    seed_everything(7, solver.epoch, 0)
                    solver.run_stage("train", solver.train)
                    solver.commit()
                history = [{**epoch["train"], "duration": 0.0} for epoch in solver.history]
                found.append((solver.state_dict()["macro_batch"]["share"], history))
    assert found[0] == found[2] and any(epoch.get("mmd_share") for epoch in found[0][1])


@pytest.mark.slow
def test_without_weight_there_is_no_probe_and_no_share(tmp_path: Path, solver_in: Enter) -> None:
    with solver_in(tmp_path, *SMALL, "losses.mmd=0", "mmd.weighting=share", "optim.epochs=1") as solver:
        train(solver)
        assert solver.probe is None and "mmd_share" not in solver.history[0]["train"]
