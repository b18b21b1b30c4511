"""The language model: its numbers written out in NumPy, that it is a law of sequences, and what it generates."""

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from audiotok.errors import ConfigError, DataError
from audiotok.models.lm import LMModel, Sampling
from audiotok.models.patterns import PATTERNS

Array = npt.NDArray[np.float64]
GREEDY = Sampling(temperature=0)
BOTH = ("parallel", "chain")


def language_model(seed: int = 0, **options: Any) -> LMModel:
    """A tiny one in float64 whose parameters are all random, so that each of them matters."""
    torch.manual_seed(seed)
    size: dict[str, Any] = {"n_q": 3, "bins": 5, "dim": 8, "num_heads": 2, "num_layers": 2, "depth_dim": 8}
    model = LMModel(**{**size, "depth_heads": 2, **options}).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)
    return model


def some_codes(batch: int = 2, n_q: int = 3, timesteps: int = 6, bins: int = 5) -> Tensor:
    return torch.randint(bins, (batch, n_q, timesteps), generator=torch.Generator().manual_seed(1))


# What a state dict of AudioCraft's LMModel holds, for dim 8, hidden_scale 4, one layer, 2 codebooks of 5 codes.
AUDIOCRAFT = {
    "emb.0.weight": (6, 8),
    "emb.1.weight": (6, 8),
    "transformer.layers.0.self_attn.in_proj_weight": (24, 8),
    "transformer.layers.0.self_attn.out_proj.weight": (8, 8),
    "transformer.layers.0.linear1.weight": (32, 8),
    "transformer.layers.0.linear2.weight": (8, 32),
    "transformer.layers.0.norm1.weight": (8,),
    "transformer.layers.0.norm1.bias": (8,),
    "transformer.layers.0.norm2.weight": (8,),
    "transformer.layers.0.norm2.bias": (8,),
    "out_norm.weight": (8,),
    "out_norm.bias": (8,),
    "linears.0.weight": (5, 8),
    "linears.1.weight": (5, 8),
}
AUDIOCRAFT_BIASES = {
    "transformer.layers.0.self_attn.in_proj_bias": (24,),
    "transformer.layers.0.self_attn.out_proj.bias": (8,),
    "transformer.layers.0.linear1.bias": (32,),
    "transformer.layers.0.linear2.bias": (8,),
    "linears.0.bias": (5,),
    "linears.1.bias": (5,),
}


@pytest.mark.parametrize("bias", [False, True])
def test_parameters_have_the_names_and_shapes_of_audiocraft(bias: bool) -> None:
    model = language_model(n_q=2, num_layers=1, bias_attn=bias, bias_ff=bias, bias_proj=bias)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == (AUDIOCRAFT | AUDIOCRAFT_BIASES if bias else AUDIOCRAFT)


def test_other_forms_of_audiocraft_load_strictly() -> None:
    """Attention by PyTorch's module has another prefix; rotary positions come with tables, which are computed here."""
    model, other = language_model(positions="rope", dim=12, bias_attn=True), language_model(1, positions="rope", dim=12)
    renamed = {name.replace("self_attn.in_", "self_attn.mha.in_"): value for name, value in model.state_dict().items()}
    renamed = {name.replace("self_attn.out_", "self_attn.mha.out_"): value for name, value in renamed.items()}
    for module in ("transformer", "transformer.layers.0.self_attn", "transformer.layers.1.self_attn"):
        renamed[f"{module}.rope.frequencies"] = torch.ones(3)
    other = language_model(1, positions="rope", dim=12, bias_attn=True)
    other.load_state_dict(renamed, strict=True)
    sequence = some_codes()
    assert torch.equal(model(sequence), other(sequence))
    with pytest.raises(RuntimeError, match="Unexpected"):
        other.load_state_dict(renamed | {"transformer.layers.0.cross_attention.in_proj_weight": torch.ones(3)})


def norm(x: Array, state: dict[str, Array], name: str) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled: Array = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def written_out(state: dict[str, Array], sequence: Array, heads: int, layers: int, rope: bool) -> Array:
    """Logits [K, S, bins] for one sequence [K, S], position by position and head by head."""
    steps, dim = sequence.shape[1], state["out_norm.weight"].size
    x = np.array([sum(state[f"emb.{k}.weight"][codes[s]] for k, codes in enumerate(sequence)) for s in range(steps)])
    if not rope:
        for s, i in itertools.product(range(steps), range(dim // 2)):
            angle = s / 10000 ** (i / (dim // 2 - 1))
            x[s, i] += math.cos(angle)
            x[s, dim // 2 + i] += math.sin(angle)
    size = dim // heads
    for index in range(layers):
        name = f"transformer.layers.{index}"

        def linear(values: Array, weight: str, bias: str, name: str = name) -> Array:
            return values @ state[f"{name}.{weight}"].T + state.get(f"{name}.{bias}", np.zeros(1))

        projected = linear(norm(x, state, f"{name}.norm1"), "self_attn.in_proj_weight", "self_attn.in_proj_bias")
        attended = np.zeros_like(x)
        for head, s in itertools.product(range(heads), range(steps)):
            part = slice(head * size, (head + 1) * size)
            query, keys, values = (projected[:, i * dim : (i + 1) * dim][:, part] for i in range(3))
            scores = np.array([turned(query[s], keys[r], s - r if rope else 0) for r in range(s + 1)]) / math.sqrt(size)
            attended[s, part] = scipy.special.softmax(scores) @ values[: s + 1]
        x = x + linear(attended, "self_attn.out_proj.weight", "self_attn.out_proj.bias")
        hidden = linear(norm(x, state, f"{name}.norm2"), "linear1.weight", "linear1.bias")
        x = x + linear(hidden * scipy.stats.norm.cdf(hidden), "linear2.weight", "linear2.bias")
    x = norm(x, state, "out_norm")
    return np.array(
        [x @ state[f"linears.{k}.weight"].T + state.get(f"linears.{k}.bias", np.zeros(1)) for k in range(len(sequence))]
    )


def turned(query: Array, key: Array, distance: int) -> float:
    """Product of a query and a key that rotary positions have turned apart by their distance in steps."""
    pairs = (query[0::2] + 1j * query[1::2]) * np.conj(key[0::2] + 1j * key[1::2])
    angles = distance * 10000.0 ** (-np.arange(0, query.size, 2) / query.size)
    return float((pairs * np.exp(1j * angles)).real.sum())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("positions", ["sin", "rope"])
def test_logits_are_those_written_out(positions: str, bias: bool) -> None:
    model = language_model(dim=12, positions=positions, bias_attn=bias, bias_ff=bias, bias_proj=bias)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    sequence = some_codes(bins=6)  # with special tokens
    logits = model(sequence).detach().numpy()
    for clip, expected in zip(sequence.numpy(), logits, strict=True):
        np.testing.assert_allclose(written_out(state, clip, 2, 2, positions == "rope"), expected, atol=1e-10)


@pytest.mark.parametrize("valid_only", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_nll_of_a_code_is_that_of_the_logits_one_step_before_it(pattern: str, valid_only: bool) -> None:
    model, codes = language_model(pattern=pattern, heads=BOTH), some_codes()
    nll = model.nll(codes, valid_only=valid_only)
    order = model.pattern(6)
    sequence, _ = order.build(codes, model.special_token)
    logits = model(sequence).log_softmax(-1)
    assert torch.equal(nll.mask, order.steps < (order.valid_length if valid_only else order.length))
    assert nll.chain is not None
    for k, t in itertools.product(range(3), range(6)):
        expected = -logits[[0, 1], k, order.steps[k, t] - 1, codes[:, k, t]] * nll.mask[k, t]
        torch.testing.assert_close(nll.parallel[:, k, t], expected)
        assert bool((nll.chain[:, k, t] != 0).all()) == bool(nll.mask[k, t])


@pytest.mark.parametrize("labels", [0, 2])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_head_is_a_law_of_sequences(pattern: str, labels: int) -> None:
    """Probabilities of all sequences add up to 1, so no prediction sees what it predicts."""
    model = language_model(n_q=2, bins=3, pattern=pattern, heads=BOTH, num_labels=labels)
    codes = torch.tensor(list(itertools.product(range(3), repeat=6))).view(-1, 2, 3)
    label = torch.ones(len(codes), dtype=torch.long) if labels else None
    nll = model.nll(codes, label, valid_only=False)
    assert nll.chain is not None
    for each in (nll.parallel, nll.chain):
        total = (-each.sum(dim=(1, 2))).exp()
        assert total.sum().item() == pytest.approx(1, abs=1e-9)
        assert total.std() > 0.1 * total.mean()


def test_chain_sees_the_codebooks_before_of_the_same_step_and_parallel_does_not() -> None:
    model, codes = language_model(pattern="parallel", heads=BOTH), some_codes(1)
    changed = codes.clone()
    changed[0, 1, 3] = (codes[0, 1, 3] + 1) % 5
    before, after = model.nll(codes), model.nll(changed)
    assert before.chain is not None and after.chain is not None
    parallel, chain = before.parallel[0] != after.parallel[0], before.chain[0] != after.chain[0]
    itself = torch.zeros(3, 6, dtype=torch.bool)
    itself[1, 3] = True
    later = torch.arange(6) > 3
    assert torch.equal(parallel, itself | later)
    itself[2, 3] = True
    assert torch.equal(chain, itself | later)


def test_chain_begins_as_parallel_and_leaves_the_parallel_head_alone() -> None:
    torch.manual_seed(0)
    model = LMModel(n_q=3, bins=5, dim=8, num_heads=2, num_layers=1, heads=BOTH)
    nll = model.nll(some_codes())
    assert nll.chain is not None
    assert torch.equal(nll.chain, nll.parallel)
    model = language_model(heads=BOTH)
    chain = model.nll(some_codes()).chain
    assert chain is not None
    chain.sum().backward()
    assert all(parameter.grad is None for parameter in model.linears.parameters())
    assert model.depth is not None
    for part in (model.transformer, model.emb, model.depth):
        assert all(parameter.grad is not None for parameter in part.parameters())


def test_a_single_codebook_has_nothing_to_chain() -> None:
    model = language_model(n_q=1, heads=BOTH)
    nll = model.nll(some_codes(n_q=1))
    assert model.depth is None and nll.chain is not None and torch.equal(nll.chain, nll.parallel)
    assert model.generate(4, head="chain").shape == (1, 1, 4)


def test_chain_learns_what_parallel_cannot() -> None:
    """Bits per frame in closed form: codebook 1 is codebook 0 with probability 0.9, whose entropy is 0.469.

    Side by side each codebook is uniform: 2 bits. (An exclusive or is learnt too, but in no known number of updates.)
    """

    def draw(batch: int) -> Tensor:
        codes = torch.randint(2, (batch, 2, 8))
        codes[:, 1] = codes[:, 0] ^ (torch.rand(batch, 8) < 0.1).long()
        return codes

    torch.manual_seed(0)
    size = {"dim": 32, "num_heads": 2, "num_layers": 1, "depth_dim": 32, "depth_layers": 2}
    model = LMModel(n_q=2, bins=2, pattern="parallel", heads=BOTH, **size)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        nll = model.nll(draw(32))
        assert nll.chain is not None
        optimizer.zero_grad()
        (nll.parallel.mean() + nll.chain.mean()).backward()
        optimizer.step()
    nll = model.eval().nll(draw(1000))
    assert nll.chain is not None
    bits = [float(each.sum(dim=1).mean()) / math.log(2) for each in (nll.parallel.detach(), nll.chain.detach())]
    assert bits == pytest.approx([2, 1.469], abs=0.1)


@pytest.mark.parametrize("head", BOTH)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("prompted", "guidance"), [(0, 1.0), (2, 3.0)])
@pytest.mark.parametrize("positions", ["sin", "rope"])
def test_cache_changes_no_code(pattern: str, head: str, prompted: int, guidance: float, positions: str) -> None:
    model = language_model(pattern=pattern, heads=BOTH, num_labels=2, positions=positions)
    options: dict[str, Any] = {
        "prompt": some_codes(timesteps=prompted),
        "labels": torch.tensor([0, 1]),
        "guidance": guidance,
        "head": head,
    }
    cached, whole = (
        model.generate(7, use_cache=cache, generator=torch.Generator().manual_seed(0), **options)
        for cache in (True, False)
    )
    assert torch.equal(cached, whole)
    assert torch.equal(cached[..., :prompted], options["prompt"])
    assert cached.shape == (2, 3, 7) and cached.min() >= 0 and cached.max() < 5


@pytest.mark.parametrize("head", BOTH)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_greedy_codes_are_the_likeliest_given_those_before(pattern: str, head: str) -> None:
    model = language_model(pattern=pattern, heads=BOTH)
    codes = model.generate(5, sampling=GREEDY, head=head)
    for k, t in itertools.product(range(3), range(5)):
        others = codes.repeat(5, 1, 1)
        others[:, k, t] = torch.arange(5)
        nll = model.nll(others, valid_only=False)
        each = nll.chain if head == "chain" else nll.parallel
        assert each is not None and int(each[:, k, t].argmin()) == codes[0, k, t]


@pytest.mark.parametrize("head", BOTH)
def test_samples_follow_the_law_of_the_head(head: str) -> None:
    """Chi-square of all pairs of codes of two frames; the joint law of the other head would be refused."""
    model = language_model(n_q=2, bins=2, pattern="delay", heads=BOTH)
    all_codes = torch.tensor(list(itertools.product(range(2), repeat=4))).view(-1, 2, 2)
    nll = model.nll(all_codes, valid_only=False)
    assert nll.chain is not None
    laws = {"parallel": (-nll.parallel.sum(dim=(1, 2))).exp(), "chain": (-nll.chain.sum(dim=(1, 2))).exp()}
    drawn = model.generate(2, num_samples=3000, head=head, generator=torch.Generator().manual_seed(0))
    counts = (drawn.flatten(1) * torch.tensor([8, 4, 2, 1])).sum(dim=1).bincount(minlength=16)
    for name, law in laws.items():
        p_value = scipy.stats.chisquare(counts.numpy(), (3000 * law / law.sum()).detach().numpy()).pvalue
        assert p_value > 0.01 if name == head else p_value < 1e-6


def test_label_is_a_prefix_and_none_is_a_label() -> None:
    model, codes = language_model(num_labels=2), some_codes()
    labelled = [model.nll(codes, torch.full((2,), label)).parallel for label in range(3)]
    assert torch.equal(model.nll(codes).parallel, labelled[model.no_label])
    assert all(not torch.allclose(a, b) for a, b in itertools.combinations(labelled, 2))
    assert model(codes, torch.tensor([0, 1])).shape == (2, 3, 6, 5)


def test_labels_are_dropped_in_training_alone() -> None:
    codes, labels = some_codes(200), torch.zeros(200, dtype=torch.long)
    model = language_model(num_labels=2, label_dropout=0.25)
    without, with_label = model.nll(codes).parallel, model.nll(codes, labels).parallel
    torch.manual_seed(0)
    trained = model.train().nll(codes, labels).parallel
    dropped = (trained == without).all(dim=2).all(dim=1)
    assert torch.equal(trained[~dropped], with_label[~dropped])
    assert 30 <= int(dropped.sum()) <= 70  # 50 ± 20: more than three deviations of a binomial


def test_guidance_extrapolates_from_the_model_without_labels() -> None:
    model, labels = language_model(num_labels=2, pattern="parallel"), torch.tensor([0, 1])
    codes = model.generate(4, labels=labels, guidance=3.0, sampling=GREEDY)
    sequence, _ = model.pattern(4).build(codes, model.special_token)
    with_label, without = model(sequence, labels), model(sequence)
    guided = without + 3 * (with_label - without)
    assert torch.equal(guided[:, :, :-1].argmax(dim=-1), codes)
    nothing = model.generate(4, num_samples=2, sampling=GREEDY)
    assert torch.equal(model.generate(4, labels=labels, guidance=0.0, sampling=GREEDY), nothing)
    assert not torch.equal(codes, nothing)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(temperature=0), [1, 0, 0, 0]),
        (Sampling(temperature=0.5), np.array([0.25, 0.09, 0.0225, 0.0025]) / 0.365),
        (Sampling(top_k=3), np.array([0.5, 0.3, 0.15, 0]) / 0.95),
        (Sampling(top_k=9), [0.5, 0.3, 0.15, 0.05]),
        (Sampling(top_p=0.4), [1, 0, 0, 0]),
        (Sampling(top_p=0.6), [0.625, 0.375, 0, 0]),
        (Sampling(top_k=2, top_p=0.6), [1, 0, 0, 0]),  # 0.5 is 0.625 of the two
    ],
    ids=str,
)
def test_sampling(sampling: Sampling, expected: list[float]) -> None:
    order = [2, 0, 3, 1]  # codes from the likeliest
    logits = torch.tensor([0.3, 0.05, 0.5, 0.15]).log().expand(4000, 4)
    codes = sampling.draw(logits, torch.Generator().manual_seed(0))
    frequencies = codes.bincount(minlength=4)[order] / 4000
    torch.testing.assert_close(frequencies, torch.tensor(expected).to(frequencies), atol=0.03, rtol=0)
    assert torch.equal(frequencies > 0, torch.tensor(expected) > 0)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=50), Sampling(top_p=0.9)], ids=str)
def test_equal_random_numbers_give_mostly_equal_codes_for_similar_scores(sampling: Sampling) -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(2000, 200)
    similar = logits + 0.1 * torch.randn(2000, 200)
    first, second = (sampling.draw(each, torch.Generator().manual_seed(0)) for each in (logits, similar))
    assert 0.9 < float((first == second).float().mean()) < 1


def test_equal_scores_do_not_widen_top_k_or_top_p() -> None:
    logits = torch.zeros(4000, 4)
    for sampling, count in [(Sampling(top_k=1), 1), (Sampling(top_k=3), 3), (Sampling(top_p=0.5), 2)]:
        assert len(sampling.draw(logits, torch.Generator().manual_seed(0)).unique()) == count


def test_initial_values_have_the_deviations_of_musicgen() -> None:
    torch.manual_seed(0)
    model = LMModel(n_q=2, bins=400, dim=64, num_heads=4, num_layers=2, bias_ff=True)
    state = model.state_dict()
    cut = math.sqrt(1 - 6 * scipy.stats.norm.pdf(3) / (2 * scipy.stats.norm.cdf(3) - 1))  # of the tails
    for name, deviation in {
        "emb.1.weight": 1 / 8,
        "linears.0.weight": 1 / 8,
        "transformer.layers.0.linear1.weight": 1 / 8 / math.sqrt(2),
        "transformer.layers.1.linear1.weight": 1 / 8 / math.sqrt(4),
        "transformer.layers.1.linear2.weight": 1 / 16 / math.sqrt(4),
        "transformer.layers.1.self_attn.out_proj.weight": 1 / 8 / math.sqrt(4),
    }.items():
        assert float(state[name].std()) == pytest.approx(cut * deviation, rel=0.05), name
        assert float(state[name].abs().max()) <= 3 * deviation
    assert not state["transformer.layers.0.linear1.bias"].any()


def test_bfloat16() -> None:
    model = language_model(heads=BOTH).float()
    codes = some_codes()
    exact = model.nll(codes).parallel
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.nll(codes).parallel
        generated = model.generate(4, num_samples=2, head="chain")
    assert rough.dtype == torch.float32 and generated.shape == (2, 3, 4)
    torch.testing.assert_close(rough, exact, atol=0.3, rtol=0.1)


def test_refusals_of_settings() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"heads": ("chain",)}, r"allowed are \[parallel\]"),
        ({"heads": ("parallel", "depth")}, r"allowed are \[parallel\]"),
        ({"pattern": "delay", "delays": [0, 1]}, "takes 3"),
        ({"num_heads": 3}, "multiple of the heads"),
        ({"num_heads": 8, "positions": "rope"}, "even"),
        ({"positions": "learned"}, "'learned' are unknown"),
    ]
    for options, message in cases:
        with pytest.raises(ConfigError, match=message):
            language_model(**options)
    for temperature, top_k, top_p in [(-1.0, 0, 1.0), (1.0, -1, 1.0), (1.0, 0, 0.0), (1.0, 0, 1.1), (math.nan, 0, 1.0)]:
        with pytest.raises(ConfigError, match="impossible"):
            Sampling(temperature, top_k, top_p)


def test_refusals_of_codes_and_labels() -> None:
    model, labelled, codes = language_model(), language_model(num_labels=2), some_codes()
    for bad, message in [(codes[:, :2], r"takes \[B, 3, T\]"), (codes[0], r"takes \[B, 3, T\]"), (codes + 1, "0 to 4")]:
        with pytest.raises(DataError, match=message):
            model.nll(bad)
        with pytest.raises(DataError, match=message):
            model.generate(9, prompt=bad)
    with pytest.raises(DataError, match="without labels"):
        model.nll(codes, torch.tensor([0, 1]))
    for labels, message in [([0], "one for each"), ([0, 3], "from 0 to 2"), ([-1, 0], "from 0 to 2")]:
        with pytest.raises(DataError, match=message):
            labelled.nll(codes, torch.tensor(labels))
    with pytest.raises(DataError, match="leaves nothing of the 6"):
        model.generate(6, prompt=codes)
    with pytest.raises(ConfigError, match="has parallel"):
        model.generate(6, head="chain")
    with pytest.raises(ConfigError, match="needs labels"):
        labelled.generate(6, guidance=2.0)
