"""Two real processes (gloo): the MMD step is that of one process over the batches of both."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import flashy
import pytest
import torch
from torch import distributed

from audiotok.losses import Balancer, MMDLoss
from audiotok.models.encodec import EncodecModel
from audiotok.modules.seanet import SEANetDecoder, SEANetEncoder
from audiotok.quantization import ResidualVectorQuantizer
from audiotok.solvers.gradient_share import GradientProbe
from audiotok.solvers.macro_batch import MacroBatch

WEIGHT, CLIPS, SEED = 3.0, 2, 11
Case = tuple[str, str, list[float] | str, int, int | None]  # estimator, stream, sigmas, batches in a step, codebooks
CASES: list[Case] = [
    ("unbiased", "residual", "median", 3, None),
    ("clips", "input", [5.0, 50.0], 2, None),
    ("samples", "code", "median", 1, None),
    ("unbiased", "residual", [10.0], 2, 2),
]


SHARES = [(False, 2), (True, 2), (False, 1)]  # balanced or plain sum of the losses, batches in a step


def codec() -> EncodecModel:
    torch.manual_seed(0)
    sizes = {"channels": 1, "dimension": 6, "n_filters": 2, "ratios": [4, 2], "lstm": 1, "norm": "weight_norm"}
    quantizer = ResidualVectorQuantizer(dimension=6, n_q=3, bins=8, kmeans_init=False, threshold_ema_dead_code=0)
    model = EncodecModel(
        SEANetEncoder(**sizes), SEANetDecoder(**sizes), quantizer, frame_rate=100, sample_rate=800, channels=1
    )
    model.double().train()
    latent = model.encode_latent(whole_batch(0))[0].detach()
    for name, buffer in quantizer.named_buffers():  # vectors among the data, so that each codebook uses several
        if name.endswith("embed"):
            buffer.copy_(latent.transpose(1, 2).reshape(-1, 6)[torch.randperm(80)[:8]])
    return model


def whole_batch(step: int) -> torch.Tensor:
    """What both processes read in a step, in the order of the data set: process r has clips r, r + 2, …"""
    return torch.randn(2 * CLIPS, 1, 160, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def macro_batch(case: int) -> MacroBatch:
    estimator, stream, sigmas, num_batches, _ = CASES[case]
    return MacroBatch(MMDLoss(sigmas, estimator, True), stream, num_batches, seed=SEED)


def two_steps(case: int, part: slice) -> dict[str, Any]:
    """Values and gradients of two MMD steps on this part of each batch, interrupted before the last batch."""
    model, macro, num_batches = codec(), macro_batch(case), CASES[case][3]
    values, gradients = [], []
    for step in range(2 * num_batches):
        if step == 2 * num_batches - 1:  # resumed: every process gets the state that rank 0 wrote
            state = [macro.state_dict()]
            if distributed.is_initialized():
                distributed.broadcast_object_list(state)
            macro = macro_batch(case)
            macro.load_state_dict(state[0])
        if macro.add(whole_batch(step)[part]):
            model.zero_grad()
            values.append(macro.value(model, WEIGHT, n_q=CASES[case][4]))
            flashy.distrib.sync_gradients(model.parameters())
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    return {"values": values, "gradients": gradients}


def shared_steps(case: int, part: slice) -> dict[str, Any]:
    """Gradients of reconstruction and MMD, apart, and the shares reached, of two MMD steps by share."""
    balanced, num_batches = SHARES[case]
    model = codec()
    balancer = Balancer({"l1": 1.0, "l2": 3.0}, balance_grads=balanced, ema_decay=0.9)
    probe = GradientProbe(model.decoder)
    macro = MacroBatch(MMDLoss("median", "unbiased", True), "residual", num_batches, SEED, "share", ema_decay=0.9)
    found: dict[str, Any] = {"reconstruction": [], "mmd": [], "reached": []}
    for step in range(2 * num_batches):
        wav = whole_batch(step)[part]
        estimate = model(wav).x
        balancer.backward({"l1": (estimate - wav).abs().mean(), "l2": (estimate - wav).pow(2).mean()}, estimate)
        found["reconstruction"].append(averaged_gradient(model))
        macro.share.add_reconstruction(probe.norm)
        if macro.add(wav):
            macro.value(model, 0.5)
            found["mmd"].append(averaged_gradient(model))
            found["reached"].append(flashy.distrib.average_metrics({"share": macro.reached})["share"])
    return found


def averaged_gradient(model: EncodecModel) -> torch.Tensor:
    """Gradient of the encoder as the optimiser gets it; then none is left."""
    flashy.distrib.sync_gradients(model.parameters())
    gradient = torch.cat([p.grad.flatten() for p in model.encoder.parameters() if p.grad is not None])
    model.zero_grad()
    return gradient


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    torch.save([two_steps(case, slice(rank, None, 2)) for case in range(len(CASES))], folder / f"{rank}.th")
    shared = [shared_steps(case, slice(rank, None, 2)) for case in range(len(SHARES))]
    torch.save(shared, folder / f"{rank}_shared.th")
    distributed.destroy_process_group()


Results = list[list[dict[str, Any]]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path]))
    command = [sys.executable, __file__, str(folder)]
    workers = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    return folder


@pytest.fixture
def ranks(folder: Path) -> Results:
    return [torch.load(folder / f"{rank}.th", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(CASES)))
def test_two_processes_take_the_step_of_one(ranks: Results, case: int) -> None:
    one = two_steps(case, slice(None))
    assert len(one["values"]) == 2
    assert all(max(g.abs().max() for g in gradients.values()) > 1e-6 for gradients in one["gradients"])
    for rank in ranks:
        torch.testing.assert_close(rank[case], one, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(SHARES)))
def test_by_share_two_processes_give_the_gradient_of_one(folder: Path, case: int) -> None:
    # The balancer gives each clip a gradient of norm 1, and the sum over clips is averaged over ranks: half of the
    # gradient, of reconstruction and MMD alike. It averages its norms over ranks in float32.
    factor, rtol = (0.5, 1e-5) if SHARES[case][0] else (1.0, 1e-9)
    one = shared_steps(case, slice(None))
    assert len(one["mmd"]) == 2 and all(gradient.abs().max() > 1e-6 for gradient in one["mmd"])
    for rank in range(2):
        two = torch.load(folder / f"{rank}_shared.th", weights_only=True)[case]
        for side in ("reconstruction", "mmd"):
            scaled = [factor * gradient for gradient in one[side]]
            torch.testing.assert_close(two[side], scaled, rtol=rtol, atol=rtol * float(scaled[0].abs().max()))
        assert two["reached"] == pytest.approx(one["reached"], rel=1e-6) and one["reached"][0] == pytest.approx(0.5)


if __name__ == "__main__":
    work(int(sys.argv[2]), Path(sys.argv[1]))
