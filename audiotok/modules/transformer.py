"""Causal transformer with pre-normalisation, and the cache with which it reads a sequence bit by bit.

Sources: Vaswani et al., "Attention Is All You Need", NeurIPS 2017; Xiong et al., "On Layer Normalization in the
Transformer Architecture", ICML 2020 (pre-norm); Su et al., "RoFormer", 2021 (rotary positions). The parameter names and
the layout of positions are those of AudioCraft's `StreamingTransformer`: its weights load.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiotok.errors import ConfigError

POSITIONS = ("sin", "rope")
_MAX_PERIOD = 10_000.0  # in steps, of the slowest angle


class KVCache:
    """Keys and values [2, B, H, S, D] of the steps that one layer has read, in one piece of memory.

    Args:
        capacity: steps at most.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self._memory: Tensor | None = None

    def extend(self, keys_values: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values [2, B, H, S, D] of further steps; returns those of all steps so far, as views."""
        if self._memory is None:
            self._memory = keys_values.new_empty((*keys_values.shape[:3], self.capacity, keys_values.shape[4]))
        start, self.length = self.length, self.length + keys_values.shape[3]
        self._memory[:, :, :, start : self.length] = keys_values
        keys, values = self._memory.narrow(3, 0, self.length).unbind()
        return keys, values


class CausalAttention(nn.Module):
    """Multi-head attention of each step to itself and the steps before it.

    Args:
        dim: channels; a multiple of num_heads.
        num_heads: heads H, of dim / H channels each.
        dropout: probability that an attention weight is dropped in training.
        bias: whether the projections have one.
    """

    in_proj_bias: Tensor | None

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        # One matrix for queries, keys and values, with the name that nn.MultiheadAttention gives it.
        projection = nn.Linear(dim, 3 * dim, bias=bias)
        self.in_proj_weight = projection.weight
        self.register_parameter("in_proj_bias", projection.bias)
        self.out_proj = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor, rotation: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Attend within x [B, S, dim], and to the steps in the cache, which are extended by those of x.

        `rotation` [S, D / 2], complex, turns queries and keys by their positions.
        """
        batch, steps, dim = x.shape
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        projected = projected.view(batch, steps, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = projected
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        past = 0
        if cache is not None:
            past = cache.length
            key, value = cache.extend(torch.stack([key, value]))
        mask = None
        if past and steps > 1:  # is_causal would align the first query with the first key
            mask = torch.ones(steps, past + steps, dtype=torch.bool, device=x.device).tril(past)
        attended = F.scaled_dot_product_attention(
            query, key, value, mask, self.dropout if self.training else 0.0, is_causal=steps > 1 and mask is None
        )
        y: Tensor = self.out_proj(attended.transpose(1, 2).reshape(batch, steps, dim))
        return y


class TransformerLayer(nn.Module):
    """Attention and a feed-forward block with GELU, each normalised before and added to its input.

    Args:
        dim, num_heads: see `CausalAttention`.
        hidden: channels within the feed-forward block.
        dropout: probability, of attention weights, of hidden channels and of what is added.
        bias_attn, bias_ff: whether the matrices of attention and of the feed-forward block have a bias.
    """

    def __init__(
        self, dim: int, num_heads: int, hidden: int, dropout: float = 0.0, bias_attn: bool = True, bias_ff: bool = True
    ) -> None:
        super().__init__()
        self.self_attn = CausalAttention(dim, num_heads, dropout, bias_attn)
        self.linear1 = nn.Linear(dim, hidden, bias=bias_ff)
        self.linear2 = nn.Linear(hidden, dim, bias=bias_ff)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rotation: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Run over x [B, S, dim]; the rest as in `CausalAttention`."""
        x = x + self.dropout(self.self_attn(self.norm1(x), rotation, cache))
        hidden = self.dropout(F.gelu(self.linear1(self.norm2(x))))
        y: Tensor = x + self.dropout(self.linear2(hidden))
        return y


class Transformer(nn.Module):
    """Stacked `TransformerLayer`s with positions; the last normalisation is left to the user.

    Args:
        dim, num_heads, hidden, dropout, bias_attn, bias_ff: see `TransformerLayer`.
        num_layers: layers.
        positions: `sin`, added to the input, or `rope`, a rotation of queries and keys.

    Raises:
        ConfigError: if dim is not a multiple of num_heads, positions are unknown, or the channels they divide are odd.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_layers: int,
        hidden: int,
        dropout: float = 0.0,
        bias_attn: bool = True,
        bias_ff: bool = True,
        positions: str = "sin",
    ) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise ConfigError(f"Positions {positions!r} are unknown; use one of {', '.join(POSITIONS)}.")
        if dim % num_heads or dim < 4 or (dim // num_heads if positions == "rope" else dim) % 2:
            raise ConfigError(
                f"A transformer of {dim} channels and {num_heads} heads with {positions} positions: the channels have "
                "to be a multiple of the heads, at least 4, and even (with rope those of each head)."
            )
        self.positions, self.dim, self.head_dim = positions, dim, dim // num_heads
        self.layers = nn.ModuleList(
            TransformerLayer(dim, num_heads, hidden, dropout, bias_attn, bias_ff) for _ in range(num_layers)
        )
        nn.Module.register_load_state_dict_pre_hook(self, _rename)

    def new_cache(self, capacity: int) -> list[KVCache]:
        """An empty cache for sequences of up to `capacity` steps."""
        return [KVCache(capacity) for _ in self.layers]

    def forward(self, x: Tensor, cache: list[KVCache] | None = None) -> Tensor:
        """Run over x [B, S, dim], which follows the steps in the cache; those are extended by the steps of x."""
        added, rotation = self.position_tables(cache[0].length if cache else 0, x.shape[1])
        if added is not None:
            x = x + added.to(x)
        for index, layer in enumerate(self.layers):
            x = layer(x, rotation, cache[index] if cache else None)
        return x

    def position_tables(self, start: int, steps: int) -> tuple[Tensor | None, Tensor | None]:
        """What `sin` adds to the input [S, dim] at steps from `start` on, and by what `rope` turns them [S, D / 2]."""
        like = next(self.parameters())
        # AudioCraft's positions have this precision; in bfloat16 neighbouring steps of a long sequence would be one.
        exact = torch.float64 if like.dtype == torch.float64 else torch.float32
        time = torch.arange(start, start + steps, device=like.device, dtype=exact)
        if self.positions == "sin":
            return _sinusoids(time, self.dim), None
        return None, _rotation(time, self.head_dim)


def _sinusoids(time: Tensor, dim: int) -> Tensor:
    """Cosines, then sines, [S, dim] of times [S]; the last angle has a period of 2π `_MAX_PERIOD`."""
    half = dim // 2
    exponents = torch.arange(half, device=time.device, dtype=time.dtype) / (half - 1)
    phase = time[:, None] / _MAX_PERIOD**exponents
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def _rotation(time: Tensor, dim: int) -> Tensor:
    """Unit complex numbers [S, dim / 2] that turn each pair of channels by its angle at times [S]."""
    frequencies = _MAX_PERIOD ** (-torch.arange(0, dim, 2, device=time.device, dtype=time.dtype) / dim)
    angles = time[:, None] * frequencies
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring channels of x [B, H, S, D] by rotation [S, D / 2], in float32 or better."""
    exact = x if x.dtype == torch.float64 else x.float()
    pairs = torch.view_as_complex(exact.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotation.to(pairs)).flatten(-2).to(x)


def _rename(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Bring AudioCraft's state dicts into this form: attention by `nn.MultiheadAttention`, and its tables of rope."""
    for name in [name for name in state if name.startswith(prefix)]:
        if name.endswith("rope.frequencies"):
            del state[name]
        elif ".self_attn.mha." in name:
            state[name.replace(".self_attn.mha.", ".self_attn.")] = state.pop(name)
