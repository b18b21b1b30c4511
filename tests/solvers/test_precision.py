"""Networks in lower precision; runs in every precision stop and go on to the last bit."""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from audiotok.checkpoint import load_checkpoint
from audiotok.errors import ConfigError, DivergedError
from audiotok.losses.mmd import MMDLoss
from audiotok.solvers import CompressionSolver
from audiotok.solvers.averages import to_floats
from audiotok.solvers.interruption import PROGRESS, Interrupted, StopSignals
from audiotok.solvers.macro_batch import stream_mmd
from audiotok.solvers.precision import LossScale, Precision
from audiotok.solvers.solver import Metrics
from tests.solvers.test_interruption import SMALL, stop_at, without_time

Enter = Callable[..., AbstractContextManager[CompressionSolver]]
CPU = torch.device("cpu")
QUICK = [*SMALL, "optim.epochs=1", "rvq.n_q=2", "evaluate.every=null", "generate.every=null"]


@pytest.mark.parametrize(("name", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_a_network_has_float32_at_both_ends(name: str, tolerance: float) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv1d(1, 8, 5), nn.ELU(), nn.Conv1d(8, 2, 5))
    network, training = copy.deepcopy(plain), [True]
    precision = Precision(name, CPU, compiled=False, training=lambda: training[0])
    scale = precision.new_scale("a")
    precision.prepare([network], scale)
    assert network.state_dict().keys() == plain.state_dict().keys()
    gradients = []
    for one in (plain, network):
        # So small that float16 would lose it.
        wav = torch.randn(2, 1, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = one(wav)
        assert y.dtype == torch.float32
        (1e-7 * y.square().sum()).backward()
        assert wav.grad is not None
        gradients.append([wav.grad, *(p.grad for p in one.parameters())])
    factor = 1.0 if scale is None else scale.value
    for index, (wanted, found) in enumerate(zip(*gradients, strict=True)):
        assert wanted is not None and found is not None
        found = found if index == 0 else found / factor  # those of the parameters are left scaled
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()
    training[0] = False
    assert torch.equal(network(wav), plain(wav))


def test_float32_leaves_networks_alone() -> None:
    network = nn.Conv1d(1, 1, 3)
    Precision("fp32", CPU, compiled=False, training=lambda: True).prepare([network], None)
    assert "forward" not in vars(network)


@pytest.mark.parametrize(
    "overrides",
    [
        ["precision=bf16", "optim.fused=true", "optim.max_skipped=2"],
        ["precision=fp16", "losses.mmd=0"],
        ["precision=fp16", "losses.mmd=0", "optim.accumulate=2"],
        ["optim.accumulate=2", "optim.max_skipped=3", "optim.max_norm=1"],
        ["compile=true", "precision=bf16", "optim.accumulate=2"],
    ],
    ids=["bf16", "fp16", "fp16-accumulate", "accumulate", "compiled"],
)
def test_a_stopped_run_goes_on_to_the_last_bit(
    tmp_path: Path, solver_in: Enter, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LossScale, "start", 2.0**6)  # four updates are too few to come down from 2^16
    without_compiler(monkeypatch)
    for stage in ("evaluate", "generate"):  # plain float32 in every precision
        monkeypatch.setattr(CompressionSolver, stage, lambda self: {})
    skips = "optim.max_skipped" in str(overrides) or "precision=fp16" in overrides
    if skips:
        spoil(monkeypatch, updates=(1, 3))
    with solver_in(tmp_path / "whole", *QUICK, *overrides) as solver:
        solver.run()
        whole = load_checkpoint(solver.checkpoint_path)
    # What fp16 drops as it finds its scale is no sign of trouble.
    assert ("2 updates skipped" in solver.watch.text) == ("optim.max_skipped" in str(overrides))
    trained = whole["history"][0]["train"]
    assert "penalty" in trained and ("precision" in whole) == ("precision=fp16" in overrides)
    assert trained.get("skipped", 0) == (0.5 if skips else 0)
    with solver_in(tmp_path / "parts", *QUICK, *overrides) as solver, StopSignals() as stop:
        stop_at(solver, stop, 3)  # with accumulation, between two batches of an update
        with pytest.raises(Interrupted):
            solver.run()
        assert 0 < load_checkpoint(solver.checkpoint_path)[PROGRESS]["updates"] < 4
    with solver_in(tmp_path / "parts", *QUICK, *overrides) as solver:
        solver.run()
        assert without_time(load_checkpoint(solver.checkpoint_path)) == without_time(whole)


def spoil(monkeypatch: pytest.MonkeyPatch, updates: tuple[int, ...]) -> None:
    """Have the batches of these updates of training hold what is not a number; in fp16, their gradients overflow."""
    original = CompressionSolver.run_step

    def run_step(self: CompressionSolver, batch: torch.Tensor) -> Metrics:
        bad = self.is_training and self.progress.updates in updates
        if self.precision.name != "fp16":
            return original(self, batch * float("nan") if bad else batch)
        weight = next(self.model.parameters())
        handle = weight.register_hook(lambda gradient: gradient * float("inf") if bad else gradient)
        try:
            return original(self, batch)
        finally:
            handle.remove()

    monkeypatch.setattr(CompressionSolver, "run_step", run_step)


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are made as for the compiler, but run as they are: in seconds."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


@pytest.mark.slow
def test_the_compiler_makes_what_is_trained() -> None:
    torch.manual_seed(0)
    plain, training = nn.Sequential(nn.Conv1d(1, 4, 5), nn.ELU()), [True]
    network = copy.deepcopy(plain)
    Precision("fp32", CPU, compiled=True, training=lambda: training[0]).prepare([network], None)
    assert network.state_dict().keys() == plain.state_dict().keys()
    torch._dynamo.utils.counters.clear()
    wav, found = torch.randn(2, 1, 64), []
    for one in (plain, network):
        y = one(wav)
        found.append([y, *torch.autograd.grad(y.square().sum(), [*one.parameters()])])
    assert torch._dynamo.utils.counters["frames"]["ok"] == 1
    graphs = torch._dynamo.utils.counters["inductor"]
    assert graphs["fxgraph_cache_hit"] + graphs["fxgraph_cache_miss"] == 2, "forward and backward"
    torch.testing.assert_close(found[1], found[0])
    training[0] = False
    assert torch.equal(network(wav), plain(wav))


def test_compiled_networks_train_as_the_others_do(
    tmp_path: Path, solver_in: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_compiler(monkeypatch)
    found, keys = [], []
    for compiled in ("false", "true"):
        torch._dynamo.utils.counters.clear()
        with solver_in(tmp_path, *QUICK, "losses.mmd=0", f"compile={compiled}") as solver:
            solver.model.train()
            solver._current_stage = "train"
            solver.rng = torch.Generator().manual_seed(0)
            batches = torch.randn(2, 2, 1, 3200, generator=torch.Generator().manual_seed(0))
            found.append([to_floats(solver.run_step(0.1 * batch)) for batch in batches])
            keys.append([*solver.model.state_dict(), *solver.adv_losses.state_dict()])
            frames = torch._dynamo.utils.counters["frames"]["ok"]
            assert frames == 0 if compiled == "false" else frames >= 5, "encoder and decoder, the discriminator thrice"
            solver._current_stage = "valid"
            solver.model.eval()
            with torch.no_grad():
                solver.model(batches[0])
            assert torch._dynamo.utils.counters["frames"]["ok"] == frames, "other stages are not compiled"
    assert keys[0] == keys[1]
    for plain, other in zip(*found, strict=True):
        assert other == pytest.approx(plain, rel=1e-3, abs=1e-5)


def test_without_a_compiler_a_run_does_not_start(
    tmp_path: Path, solver_in: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = "compile=true needs a compiler: CXX=no-such-compiler is no program"
    with pytest.raises(ConfigError, match=found), solver_in(tmp_path, *QUICK, "compile=true"):
        pass
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = r"found none of g\+\+, clang\+\+; install g\+\+, or give compile=false"
    with pytest.raises(ConfigError, match=found), solver_in(tmp_path, *QUICK, "compile=true"):
        pass


def test_a_skipped_update_leaves_nothing_behind(tmp_path: Path, solver_in: Enter) -> None:
    with solver_in(tmp_path, *QUICK, "optim.max_skipped=1", "losses.mmd=0") as solver:
        solver.model.train()
        solver._current_stage = "train"
        solver.rng = torch.Generator().manual_seed(0)
        batch = torch.randn(4, solver.model.channels, 6400)
        assert to_floats(solver.run_step(batch))["skipped"] == 0
        before = without_time({"a": solver.state_dict()})
        assert solver.run_step(batch * float("nan"))["skipped"] == 1
        after = without_time({"a": solver.state_dict()})
        assert before["a"].pop("skips") == {"count": 0} and after["a"].pop("skips") == {"count": 1}
        assert before == after


@pytest.mark.parametrize("where", ["codec", "discriminator"])
def test_an_overflow_halves_each_scale_once(
    tmp_path: Path, solver_in: Enter, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the discriminator's own update has overflowed before that of the codec, which runs through it."""
    monkeypatch.setattr(LossScale, "start", 2.0**6)
    with training_in_fp16(tmp_path, solver_in) as solver:
        networks = [solver.model, *([one.adversary for one in solver.adversaries.values()] * (where != "codec"))]
        for network in networks:
            next(network.parameters()).register_hook(lambda gradient: gradient * float("inf"))
        assert solver.run_step(torch.randn(4, solver.model.channels, 6400))["skipped"] == 1
        assert len(solver.precision.scales) == 1 + len(solver.adversaries) >= 2
        assert {scale.value for scale in solver.precision.scales.values()} == {2.0**5} and solver.skips.count == 0


def test_in_fp16_too_a_batch_that_is_not_a_number_stops_the_run(tmp_path: Path, solver_in: Enter) -> None:
    with training_in_fp16(tmp_path, solver_in) as solver:
        scales = {name: scale.value for name, scale in solver.precision.scales.items()}
        with pytest.raises(DivergedError, match=r"update of \w+: .* not finite; where fp16 .*\(optim.max_skipped=0\)"):
            solver.run_step(torch.full((4, solver.model.channels, 6400), float("nan")))
        assert {name: scale.value for name, scale in solver.precision.scales.items()} == scales


@pytest.mark.parametrize("what", ["the encoder's output", "mmd"])
def test_in_fp16_an_mmd_that_is_not_finite_is_no_overflow(
    tmp_path: Path, solver_in: Enter, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LossScale, "start", 2.0**6)

    def mmd_step(*_: object) -> Metrics:
        if what == "mmd":
            return {"mmd": torch.tensor(float("inf"))}
        streams = functools.partial(stream_mmd, MMDLoss([1.0], "unbiased", True), solver.model)
        return {"mmd": streams(torch.full((2, 8, 20), float("inf")), "code", torch.Generator())}

    with training_in_fp16(tmp_path, solver_in) as solver:
        solver._mmd_step = mmd_step  # type: ignore[assignment,method-assign]
        with pytest.raises(DivergedError, match=f"update of the model: {what} not finite; where fp16 is the reason"):
            solver.run_step(torch.randn(4, solver.model.channels, 6400))
        assert {scale.value for scale in solver.precision.scales.values()} == {LossScale.start}


def test_a_discriminator_with_a_bad_loss_has_not_lowered_its_scale(
    tmp_path: Path, solver_in: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LossScale, "start", 2.0**6)
    with training_in_fp16(tmp_path, solver_in) as solver:
        solver.skips.most = 1
        for one in solver.adversaries.values():
            loss = one.adversary_loss
            one.adversary_loss = lambda loss=loss, **signals: loss(**signals) * float("nan")  # type: ignore[method-assign]
        next(solver.model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
        assert solver.run_step(torch.randn(4, solver.model.channels, 6400))["skipped"] == 1
        assert {scale.value for scale in solver.precision.scales.values()} == {LossScale.start / 2}


@contextmanager
def training_in_fp16(tmp_path: Path, solver_in: Enter) -> Iterator[CompressionSolver]:
    """A solver in its train stage."""
    with solver_in(tmp_path, *QUICK, "precision=fp16", "losses.mmd=0", "adversarial.every=1") as solver:
        solver.model.train()
        solver._current_stage = "train"
        solver.rng = torch.Generator().manual_seed(0)
        yield solver


def test_with_several_batches_an_update_is_skipped_for_any_of_them(tmp_path: Path, solver_in: Enter) -> None:
    with solver_in(tmp_path, *QUICK, "optim.max_skipped=1", "optim.accumulate=2", "losses.mmd=0") as solver:
        solver.model.train()
        solver._current_stage = "train"
        solver.rng = torch.Generator().manual_seed(0)
        good = torch.randn(4, solver.model.channels, 6400)
        assert solver._run_batches([good, good], "train", 0)["skipped"] == 0
        assert solver._run_batches([good * float("nan"), good], "train", 1) == {"skipped": 1.0}
        with pytest.raises(DivergedError, match=r"^epoch 1, update 3: .* 1 updates .*\(optim\.max_skipped=1\); lower"):
            solver._run_batches([good, good * float("nan")], "train", 2)


def test_what_ends_a_run_has_one_advice(tmp_path: Path, solver_in: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the balancer or the MMD has found it, whose own advice is for runs that skip nothing."""

    def backward(*_: object) -> None:
        raise DivergedError("the gradients of ['l1'] are not finite; lower the learning rate or check the data.")

    with solver_in(tmp_path, *QUICK, "optim.max_skipped=1", "losses.mmd=0") as solver:
        monkeypatch.setattr(solver.balancer, "backward", backward)
        solver.skips.count = 1
        solver.model.train()
        solver._current_stage = "train"
        solver.rng = torch.Generator().manual_seed(0)
        with pytest.raises(DivergedError, match="not finite, and 1 updates") as caught:
            solver._run_batches([torch.randn(4, solver.model.channels, 6400)], "train", 0)
        assert str(caught.value).count("lower") == 1


def test_a_run_that_was_frozen_before_has_none_of_these_keys(tmp_path: Path, solver_in: Enter) -> None:
    with solver_in(tmp_path, *QUICK) as solver:
        cfg = copy.deepcopy(solver.cfg)
        OmegaConf.set_struct(cfg, False)
        for section, names in ((cfg, ("precision", "compile", "tf32")), (cfg.optim, ("accumulate", "max_skipped"))):
            for name in names:
                del section[name]
        del cfg.optim["fused"]
        old = type(solver)(cfg)
        assert (old.precision.name, old.accumulate, old.skips.most) == ("fp32", 1, 0)
        assert "skips" not in old.state_dict() and "precision" not in old.state_dict()
