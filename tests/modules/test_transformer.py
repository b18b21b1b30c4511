"""The causal transformer: reading in pieces, dropout, positions. Its numbers are held in tests/models/test_lm.py."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audiotok.modules.transformer import KVCache, Transformer, TransformerLayer


def transformer(positions: str = "sin", dropout: float = 0.0) -> Transformer:
    torch.manual_seed(0)
    return Transformer(8, 2, 2, 16, dropout, positions=positions).double()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.sampled_from(["sin", "rope"]))
def test_pieces_give_what_the_whole_gives(pieces: list[int], positions: str) -> None:
    model = transformer(positions).eval()
    x = torch.randn(3, sum(pieces), 8, dtype=torch.float64)
    cache = model.new_cache(x.shape[1] + 2)
    in_pieces = torch.cat([model(piece, cache) for piece in x.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(in_pieces, model(x), atol=1e-12, rtol=0)
    assert [layer.length for layer in cache] == [x.shape[1]] * 2


def test_a_step_sees_itself_and_those_before() -> None:
    model = transformer().eval()
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    changed = x.clone()
    changed[0, 3, 0] += 1
    assert (model(x) != model(changed)).any(dim=2)[0].tolist() == [False] * 3 + [True] * 3


def test_cache_keeps_keys_and_values_in_order() -> None:
    cache, first, second = KVCache(5), torch.randn(2, 3, 1, 4), torch.randn(2, 3, 2, 4)
    cache.extend(torch.stack([first, -first]))
    key, value = cache.extend(torch.stack([second, -second]))
    assert torch.equal(key, torch.cat([first, second], dim=2)) and torch.equal(value, -key)


def test_dropout_acts_in_training_alone_and_keeps_the_mean_of_what_a_layer_adds() -> None:
    model, without = transformer(dropout=0.3), transformer()
    x = torch.randn(1, 4, 8, dtype=torch.float64)
    assert torch.equal(model.eval()(x), without(x))
    layer = TransformerLayer(8, 2, 16, dropout=0.3).double()
    # With zero weights and a bias of one, attention and the feed-forward block add one each, unless it is dropped.
    for linear in (layer.self_attn.out_proj, layer.linear2):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.ones_(linear.bias)
    with torch.no_grad():
        added = torch.stack([layer(x) - x for _ in range(500)])
    assert float(added.mean()) == pytest.approx(2, abs=0.05)
    values, counts = added.round(decimals=4).unique(return_counts=True)
    assert values.tolist() == pytest.approx([0, 1 / 0.7, 2 / 0.7], abs=1e-3)
    assert (counts / counts.sum()).tolist() == pytest.approx([0.09, 0.42, 0.49], abs=0.02)


def test_positions_are_exact_in_bfloat16() -> None:
    """In its 8 bits 3003 would be 3008, and the positions of half of all steps those of others."""
    model = transformer().eval()
    model.load_state_dict({name: value.bfloat16().double() for name, value in model.state_dict().items()})
    x = torch.ones(1, 3004, 8, dtype=torch.float64)
    exact = model(x)[:, 3000:]
    rough = model.bfloat16()(x.bfloat16())[:, 3000:]
    torch.testing.assert_close(rough.double(), exact, atol=0.1, rtol=0)
