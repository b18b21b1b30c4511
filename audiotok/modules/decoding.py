"""A transformer that reads one step at a time: what `Transformer.forward` computes with a cache, for generation.

Reading a step is a product of each matrix with a row for each clip. It takes as long as reading the matrices from
memory, and for small models as long as what Python does around it: hence products by the operation that is fastest for
so many rows, tables of positions, and no third dimension. Figures: docs/benchmarks/lm.md.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from audiotok.modules.transformer import KVCache, Transformer, TransformerLayer, rotate

Product = Callable[[Tensor], Tensor]
_LARGE = 2**16  # weights; of smaller matrices calls cost more than products
_FBGEMM = "fbgemm" in torch.backends.quantized.supported_engines  # its embedding_bag is the one that is fast


def prepare(weights: Sequence[Tensor], biases: Sequence[Tensor | None], rows: int) -> Product:
    """The product of x [rows, dim] with stacked weights [out, dim], and biases [out], of linear layers.

    The weights are as they are now, and in the type of autocast where that is on. The result has the type of x.
    """
    weight = weights[0].detach() if len(weights) == 1 else torch.cat([each.detach() for each in weights])
    bias = None if biases[0] is None else torch.cat([each.detach() for each in biases if each is not None])
    device = weight.device.type
    rough = torch.is_autocast_enabled(device) and weight.dtype == torch.float32
    if rough:
        dtype = torch.get_autocast_dtype(device)
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    elif device == "cpu" and weight.dtype == torch.float32 and weight.numel() >= _LARGE:
        for product in (_weighted_sum, _with_columns, _in_blocks):
            prepared = product(weight, bias, rows)
            if prepared is not None:
                return prepared
    if device == "cpu" and rows == 1 and weight.shape[0] > weight.shape[1]:
        # Long rows of memory are read 1.3 (1024 channels) to 2 times (256 channels) as fast as short ones.
        weight = weight.t().contiguous().t()
    if rough:
        return lambda x: F.linear(x.to(weight.dtype), weight, bias).to(x.dtype)
    return lambda x: F.linear(x, weight, bias)


def _weighted_sum(weight: Tensor, bias: Tensor | None, rows: int) -> Product | None:
    """One row: the sum of the weights of each input channel times its value, read 1.1 to 1.5 times as fast."""
    if rows != 1 or not _FBGEMM:
        return None
    by_input = weight.t().contiguous()
    channels = torch.arange(len(by_input))[None]

    def product(x: Tensor) -> Tensor:
        y = F.embedding_bag(channels, by_input, mode="sum", per_sample_weights=x)
        return y if bias is None else y + bias

    return product


def _with_columns(weight: Tensor, bias: Tensor | None, rows: int) -> Product | None:
    """Two to five rows: the weights times the rows as columns (1024 channels at most) take 0.5 to 0.7 of the time."""
    channels = weight.shape[1]
    if not 1 < rows <= 5 or (channels > 1024 and channels % 512):
        return None
    pieces = channels // 512 if channels > 1024 else 1
    split = weight.reshape(len(weight), pieces, -1).transpose(0, 1).contiguous()  # no copy of a single piece

    def product(x: Tensor) -> Tensor:
        columns = x.view(rows, pieces, -1).permute(1, 2, 0)
        y = torch.mm(split[0], columns[0]) if pieces == 1 else torch.bmm(split, columns).sum(dim=0)
        y = y.t().contiguous()
        return y if bias is None else y + bias

    return product


def _in_blocks(weight: Tensor, bias: Tensor | None, rows: int) -> Product | None:
    """Six to sixteen rows: a batch of products with 64 outputs each takes 0.75 to 0.95 of the time of a single one."""
    if not 5 < rows <= 16 or len(weight) % 64:
        return None
    blocks = weight.reshape(-1, 64, weight.shape[1]).transpose(1, 2).contiguous()

    def product(x: Tensor) -> Tensor:
        y = torch.bmm(x.expand(len(blocks), *x.shape), blocks).transpose(0, 1).reshape(rows, -1)
        return y if bias is None else y + bias

    return product


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
        projected = self.in_proj(self.norm1(x)).view(len(x), 3, self.num_heads, 1, -1).transpose(0, 1)
        if rotation is not None:
            projected = torch.cat([rotate(projected[:2], rotation), projected[2:]])
        query, (keys, values) = projected[0], cache.extend(projected[1:])
        attended = F.scaled_dot_product_attention(query.to(keys.dtype), keys, values)
        x = x + self.out_proj(attended.reshape(x.shape).to(x.dtype))
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))
