"""A transformer that reads one step at a time: what the whole sequence gives, in each form of the weights."""

import pytest
import torch
from torch import nn

from audiotok.modules.decoding import Decoder, prepare
from audiotok.modules.transformer import Transformer


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("positions", ["sin", "rope"])
def test_steps_give_what_the_whole_gives(positions: str, rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    model = Transformer(8, 2, 2, 16, 0.3, bias, bias, positions).double().eval()
    x = torch.randn(rows, 6, 8, dtype=torch.float64)
    cache = model.new_cache(6)
    with torch.no_grad():
        first = model(x[:, :2], cache)
        decoder = Decoder(model, cache, rows)
        others = [decoder.read(x[:, step]) for step in range(2, 6)]
        whole = model(x)
    torch.testing.assert_close(torch.cat([first, torch.stack(others, dim=1)], dim=1), whole, atol=1e-12, rtol=0)
    assert [layer.length for layer in cache] == [6, 6]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 4])
def test_product_with_stacked_weights(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    linears = [nn.Linear(5, 7, bias=bias) for _ in range(3)]
    product = prepare([linear.weight for linear in linears], [linear.bias for linear in linears], rows)
    x = torch.randn(rows, 5)
    expected = torch.cat([linear(x) for linear in linears], dim=1)
    torch.testing.assert_close(product(x), expected.detach())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [256, 100])
@pytest.mark.parametrize("inputs", [1024, 1100, 2048])
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 16, 17])
def test_products_with_large_weights(rows: int, inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs, bias=bias)
    x = torch.randn(rows, 2, inputs)[:, 1]  # as the state of a last step lies in memory
    with torch.no_grad():
        product, expected = prepare([linear.weight], [linear.bias], rows)(x), linear.double()(x.double())
    assert product.dtype == torch.float32 and product.is_contiguous()
    torch.testing.assert_close(product.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 4])
def test_product_within_autocast_rounds_weights_and_input_to_its_type(rows: int) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 96), torch.randn(rows, 64)
    with torch.autocast("cpu", torch.bfloat16):
        product = prepare([linear.weight], [linear.bias], rows)
    weight, bias = linear.weight.detach().bfloat16().double(), linear.bias.detach().bfloat16().double()
    exact = x.bfloat16().double() @ weight.T + bias
    assert product(x).dtype == torch.float32
    torch.testing.assert_close(product(x).double(), exact, atol=1e-3, rtol=2**-7)  # the result has 8 bits
    assert float((product(x) - linear(x).detach()).abs().max()) > 1e-3


def test_a_prepared_product_keeps_the_parameters_and_their_layout() -> None:
    for size in (16, 256):
        linear = nn.Linear(size, 4 * size)
        before, strides = linear.weight.detach().clone(), linear.weight.stride()
        prepare([linear.weight], [linear.bias], 1)(torch.ones(1, size))
        assert torch.equal(linear.weight, before) and linear.weight.stride() == strides
