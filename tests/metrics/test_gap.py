"""The meter of the factorisation gap: sums written out, errors against the closed form of a ratio."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from audiotok.errors import ConfigError, DataError
from audiotok.metrics import GapMeter
from audiotok.metrics.gap import FACTORS, shrunk
from audiotok.models.lm import CodeNLL, LMModel
from audiotok.models.no_context import NoContextModel
from audiotok.models.patterns import PATTERNS

K, T = 3, 7


def some_nll(clips: int, seed: int = 0, spread: float = 1.0) -> CodeNLL:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(K, T, dtype=torch.bool)
    mask[1, -1] = mask[2, -2:] = False  # as delayed codebooks of a segment
    of_clip = spread * torch.rand(clips, 1, 1, generator=generator, dtype=torch.float64)
    parallel, chain = (of_clip + torch.rand(clips, K, T, generator=generator, dtype=torch.float64) for _ in range(2))
    chain[:, 0] = parallel[:, 0]
    return CodeNLL(parallel * mask, chain * mask, mask)


def bits_written_out(nll: Tensor, mask: Tensor, clips: list[int], warmup: int) -> list[float]:
    """Of each codebook: bits of a code, mean over those of the clips after the warm-up."""
    means = []
    for k in range(K):
        values = [float(nll[b, k, t]) for b in clips for t in range(warmup, T) if mask[k, t]]
        means.append(sum(values) / len(values) / math.log(2))
    return means


@pytest.mark.parametrize("warmup", [0, 2])
def test_every_code_counts_the_same(warmup: int) -> None:
    nll, alone, tracks = some_nll(9), some_nll(9, seed=1), torch.tensor([4, 4, 4, 4, 4, 7, 7, -1, 4])
    assert nll.chain is not None and alone.chain is not None
    meter = GapMeter(warmup)
    for part in (slice(0, 4), slice(4, 9)):
        halves = [
            CodeNLL(each.parallel[part], each.chain[part], each.mask) for each in (nll, alone) if each.chain is not None
        ]
        meter.update(halves[0], tracks[part], halves[1])
    found = meter.compute()
    rows = [nll.parallel, nll.chain, alone.parallel, alone.chain]
    parallel, chain, alone_parallel, alone_chain = (
        bits_written_out(row, nll.mask, list(range(9)), warmup) for row in rows
    )
    assert found["bits_parallel"] == pytest.approx(sum(parallel), abs=1e-12)
    assert found["bits_chain"] == pytest.approx(sum(chain), abs=1e-12)
    assert found["gap"] == pytest.approx(sum(parallel) - sum(chain), abs=1e-12)
    assert found["gap_q2"] == pytest.approx(parallel[1] - chain[1], abs=1e-12)
    assert found["gap_q2"] + found["gap_q3"] == pytest.approx(found["gap"], abs=1e-12)
    assert found["bits_alone"] == pytest.approx(sum(alone_parallel), abs=1e-12)
    assert found["gap_alone"] == pytest.approx(sum(alone_parallel) - sum(alone_chain), abs=1e-12)
    assert found["gap_recordings"] == 3


def test_errors_are_those_of_a_ratio_over_recordings() -> None:
    """With many recordings of unequal length the bootstrap agrees with the linearised ratio (Cochran, 1977, 6.4)."""
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(300), rng.integers(1, 8, 300))
    nll = some_nll(len(owners))
    assert nll.chain is not None
    meter = GapMeter()
    meter.update(nll, torch.tensor(owners))
    found = meter.compute()
    for name, bits in {"gap": nll.parallel - nll.chain, "bits_parallel": nll.parallel}.items():
        expected = np.zeros(300)
        for k in range(K):
            of_clip = bits[:, k].sum(dim=1).numpy() / math.log(2)
            count = np.bincount(owners, weights=np.full(len(owners), float(nll.mask[k].sum())))
            total = np.bincount(owners, weights=of_clip)
            expected += (total - total.sum() / count.sum() * count) / count.mean()
        assert found[f"{name}_err"] == pytest.approx(expected.std(ddof=1) / math.sqrt(300), rel=0.12)  # 2000 resamples


def test_frames_of_a_recording_are_no_independent_draws() -> None:
    """A recording's own level, in clips of one and the same recording, widens the error as if they were one clip."""
    meters = [GapMeter(), GapMeter()]
    once = some_nll(20, spread=5.0)
    assert once.chain is not None
    meters[0].update(once, torch.arange(20))
    for _ in range(10):
        meters[1].update(once, torch.arange(20))
    assert meters[0].compute() == pytest.approx(meters[1].compute(), abs=1e-9)


def test_merged_and_pickled_meters_are_one() -> None:
    nll, tracks = some_nll(8), torch.tensor([0, 0, 1, 1, 1, 2, 2, 3])
    assert nll.chain is not None
    whole, parts = GapMeter(), [GapMeter(), GapMeter()]
    whole.update(nll, tracks)
    for rank, meter in enumerate(parts):
        meter.update(CodeNLL(nll.parallel[rank::2], nll.chain[rank::2], nll.mask), tracks[rank::2])
    parts[0].merge(pickle.loads(pickle.dumps(parts[1])))
    assert parts[0].compute(seed=3) == pytest.approx(whole.compute(seed=3), abs=1e-12)
    assert "gap_alone" not in whole.compute()


def test_one_recording_has_no_error() -> None:
    meter = GapMeter()
    meter.update(some_nll(4), torch.zeros(4, dtype=torch.long))
    assert [name for name in meter.compute() if name.endswith("_err")] == []


def test_what_cannot_be_added() -> None:
    nll = some_nll(4)
    with pytest.raises(ConfigError, match=r"lm.heads: \[parallel, chain\]"):
        GapMeter().update(CodeNLL(nll.parallel, None, nll.mask), torch.arange(4))
    with pytest.raises(DataError, match=r"tracks \[3\] of torch.int64; give an integer for each of 4 clips"):
        GapMeter().update(nll, torch.arange(3))
    with pytest.raises(DataError, match="No held-out codes after the first 5 frames"):
        meter = GapMeter(warmup=5)  # leaves nothing of the last codebook
        meter.update(nll, torch.arange(4))
        meter.compute()
    with pytest.raises(DataError, match="No held-out codes"):
        GapMeter().compute()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_heads_without_context_see_the_codes_of_the_step_and_nothing_else(pattern: str) -> None:
    """Written out code by code: laws of the codebooks, and the chain head on the codes of one step alone."""
    torch.manual_seed(0)
    lm = LMModel(n_q=3, bins=5, dim=8, num_heads=2, num_layers=1, pattern=pattern, heads=("parallel", "chain"))
    model = NoContextModel(lm, depth_dim=8, depth_heads=2).double().eval()
    assert model.depth is not None
    for parameter in model.requires_grad_(False).parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.5)
    codes = torch.randint(5, (2, 3, 6))
    nll, seen = model.nll(codes), lm.nll(codes)
    assert nll.chain is not None and torch.equal(nll.mask, seen.mask)
    order = lm.pattern(6)
    sequence, _ = order.build(codes, 5)
    for b, k, t in np.ndindex(2, 3, 6):
        step = sequence[b, :, order.steps[k, t]][None]
        law = model.logits[k]
        chained = law + model.depth(torch.zeros(1, 1).double(), step[:, :k])[-1][0] if k else law
        for found, logits in ((nll.parallel, law), (nll.chain, chained)):
            expected = -float(logits.log_softmax(0)[codes[b, k, t]]) if nll.mask[k, t] else 0.0
            assert float(found[b, k, t]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("with_alone", [True, False])
def test_chain_heads_are_scaled_by_what_other_codes_like_best(with_alone: bool) -> None:
    """Each factor tried on a copy of its own; afterwards, and after an error, the weights are what they were."""
    torch.manual_seed(3)
    lm = LMModel(n_q=3, bins=5, dim=8, num_heads=2, num_layers=1, heads=("parallel", "chain"), depth_dim=8).double()
    alone = NoContextModel(lm, depth_dim=8).double().eval()
    models: list[LMModel | NoContextModel] = [lm.eval(), alone]
    for model in models:
        for parameter in model.depth.linears.parameters() if model.depth is not None else ():
            torch.nn.init.normal_(parameter, std=0.03)
    codes = torch.randint(5, (4, 3, 9))
    codes[:, 1] = codes[:, 0]  # of the chain head with random weights some factors are 0, others not
    heads = [model.depth for model in models if model.depth is not None]
    before = copy.deepcopy([lm.state_dict(), alone.state_dict()])

    def measure() -> GapMeter:
        meter = GapMeter()
        meter.update(lm.nll(codes), torch.arange(4), alone.nll(codes) if with_alone else None)
        return meter

    expected = []
    for model in models[: 1 + with_alone]:
        bits = []
        for factor in FACTORS:
            scaled = copy.deepcopy(model)
            for parameter in scaled.depth.linears.parameters() if scaled.depth is not None else ():
                parameter.data.mul_(factor)
            with torch.no_grad():
                nll = scaled.nll(codes)
            assert nll.chain is not None
            bits.append([float(nll.chain[:, k].sum()) for k in (1, 2)])
        expected.append([FACTORS[i] for i in np.argmin(bits, axis=0)])
    assert len({factor for factors in expected for factor in factors}) > 1
    with shrunk(heads[: 1 + with_alone], measure):
        for model, state, factors in zip(models, before, expected, strict=False):
            for k, factor in enumerate(factors):
                for name in (f"depth.linears.{k}.weight", f"depth.linears.{k}.bias"):
                    assert torch.equal(model.state_dict()[name], state[name] * factor)
    with pytest.raises(DataError), shrunk(heads[: 1 + with_alone], measure):
        raise DataError("something")
    for model, state in zip(models, before, strict=True):
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name]), name
