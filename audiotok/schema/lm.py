"""The sections of the solver of language models: `config/solver/lm/default.yaml`."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from audiotok.schema.common import Common, Generate
from audiotok.schema.values import Count, Decay, Flag, PositiveShare, Real, Seed, Share, Text, Whole, Width

Heads = Annotated[
    list[Literal["parallel", "chain"]],
    Field(strict=True, min_length=1, max_length=2),
    "[parallel] or [parallel, chain]",
]
Delays = Annotated[
    list[Annotated[int, Field(strict=True, ge=0, le=10**6)]],
    Field(strict=True, min_length=1, max_length=1000),
    "a list of whole numbers, from 0 to 1000000",
]


class Lm(TypedDict, total=False):
    """Section `lm`."""

    dim: Width
    num_heads: Width
    num_layers: Annotated[int, Field(strict=True, ge=1, le=1000), "a whole number, from 1 to 1000"]
    hidden_scale: Annotated[int, Field(strict=True, ge=1, le=100), "a whole number, from 1 to 100"]
    dropout: Decay
    bias_attn: Flag
    bias_ff: Flag
    bias_proj: Flag
    positions: Literal["sin", "rope"]
    pattern: Literal["parallel", "delay", "flatten", "coarse_first"]
    delays: Delays | None
    heads: Heads
    depth_dim: Width
    depth_heads: Width
    depth_layers: Annotated[int, Field(strict=True, ge=1, le=1000), "a whole number, from 1 to 1000"]
    no_context: Flag
    labels: Text | None
    label_dropout: Share
    autocast: Flag


class Tokens(TypedDict, total=False):
    """Section `tokens`."""

    batch_size: Count | None
    num_workers: Count


class GenerateLm(TypedDict, total=False):
    """Section `generate.lm`."""

    temperature: Real
    top_k: Whole
    top_p: PositiveShare
    guidance: Real
    prompt_duration: Real
    num_clips: Count
    seed: Seed


class GenerateOfLm(Generate, total=False):
    """Section `generate`."""

    lm: GenerateLm


class LanguageModel(Common, total=False):
    """The configuration of the solver of language models."""

    compression_model_checkpoint: Text | None
    lm: Lm
    tokens: Tokens
    generate: GenerateOfLm  # type: ignore[misc]  # more keys than of every solver
