"""A transformer that reads one step at a time: what `Transformer.forward` computes with a cache, for generation.

Reading a step is a product of each matrix with a row for each clip. It takes as long as reading the matrices from
memory, and for small models as long as what Python does around it: hence weights in the order that is read fastest,
tables of positions, and no third dimension. Figures: docs/benchmarks/lm.md.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from audiotok.modules.transformer import KVCache, Transformer, TransformerLayer, rotate

Product = Callable[[Tensor], Tensor]
_FEW, _SHORT = 4, 1024  # rows, and channels of a row


def prepare(weights: Sequence[Tensor], biases: Sequence[Tensor | None], rows: int) -> Product:
    """The product of x [rows, dim] with stacked weights [out, dim], and biases [out], of linear layers.

    The weights are as they are now, and in the type of autocast where that is on. The result has the type of x.
    """
    weight = weights[0].detach() if len(weights) == 1 else torch.cat([each.detach() for each in weights])
    bias = None if biases[0] is None else torch.cat([each.detach() for each in biases if each is not None])
    device, rough = weight.device.type, False
    if torch.is_autocast_enabled(device) and weight.dtype == torch.float32:
        dtype, rough = torch.get_autocast_dtype(device), True
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if device == "cpu" and rows == 1 and weight.shape[0] > weight.shape[1]:
        # Long rows of memory are read 1.3 (1024 channels) to 2 times (256 channels) as fast as short ones.
        weight = weight.t().contiguous().t()
    if rough:
        return lambda x: F.linear(x.to(weight.dtype), weight, bias).to(x.dtype)
    if device == "cpu" and 1 < rows <= _FEW and weight.shape[1] <= _SHORT and weight.dtype == torch.float32:
        # The weights times the rows as columns: 1.3 to 1.9 times as fast as F.linear, slower beyond these limits.
        return lambda x: _transposed_product(x, weight, bias)
    return lambda x: F.linear(x, weight, bias)


def _transposed_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What F.linear computes, as the transpose of a product with the weights in front."""
    y = torch.mm(weight, x.t()) if bias is None else torch.addmm(bias[:, None], weight, x.t())
    return y.t().contiguous()


class Decoder:
    """Reads steps one by one, after those in a cache.

    Args:
        transformer: its weights are read as they are now.
        cache: of the transformer, with the steps read so far; extended at each step.
        rows: clips B.
    """

    def __init__(self, transformer: Transformer, cache: list[KVCache], rows: int) -> None:
        self.cache = cache
        self._positions, self._rotations = transformer.position_tables(0, cache[0].capacity)
        self._layers = [_Layer(layer, rows) for layer in transformer.layers if isinstance(layer, TransformerLayer)]

    def read(self, x: Tensor) -> Tensor:
        """Output [B, dim] of the transformer for the next step x [B, dim]."""
        time = self.cache[0].length
        if self._positions is not None:
            x = x + self._positions[time].to(x)
        rotation = None if self._rotations is None else self._rotations[time : time + 1]
        with torch.autocast(x.device.type, enabled=False):
            for layer, cache in zip(self._layers, self.cache, strict=True):
                x = layer.read(x, rotation, cache)
        return x


class _Layer:
    """A `TransformerLayer` for one step."""

    def __init__(self, layer: TransformerLayer, rows: int) -> None:
        attention = layer.self_attn
        self.num_heads = attention.num_heads
        self.norm1, self.norm2 = layer.norm1, layer.norm2
        self.in_proj = prepare([attention.in_proj_weight], [attention.in_proj_bias], rows)
        self.out_proj, self.linear1, self.linear2 = (
            prepare([linear.weight], [linear.bias], rows)
            for linear in (attention.out_proj, layer.linear1, layer.linear2)
        )

    def read(self, x: Tensor, rotation: Tensor | None, cache: KVCache) -> Tensor:
        """Output [B, dim] for x [B, dim]; `rotation` [1, D / 2] turns query and key."""
        query, key, value = self.in_proj(self.norm1(x)).view(len(x), 3, self.num_heads, 1, -1).unbind(1)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        keys, values = cache.extend(key, value)
        attended = F.scaled_dot_product_attention(query.to(keys.dtype), keys, values)
        x = x + self.out_proj(attended.reshape(x.shape).to(x.dtype))
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))
