"""A language model over the codes of a codec: a causal transformer that reads and predicts all codebooks of a step.

Inputs are the summed embeddings of the codes of a step, and two heads predict those of the next step. The `parallel`
head predicts each codebook from the state of the transformer alone, as if the codebooks of a step were independent
given the past. The `chain` head predicts codebook k from the state and from the codebooks before k of the same step, so
that the product of its predictions is a law of the whole step. What `parallel` loses to `chain` is what the codebooks
of a step tell about each other given the past.

Parameter names are those of AudioCraft's `LMModel`: an unconditional, pre-norm state dict of it loads strictly.

Sources: Copet et al., "Simple and Controllable Music Generation", NeurIPS 2023 (model, patterns, guidance); Lee et al.,
"Autoregressive Image Generation using Residual Quantization", CVPR 2022, and Défossez et al., "Moshi", 2024 (networks
over the codebooks of a step); Ho and Salimans, "Classifier-Free Diffusion Guidance", 2021; Holtzman et al., "The
Curious Case of Neural Text Degeneration", ICLR 2020 (top-p).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiotok.errors import ConfigError, DataError
from audiotok.models.patterns import Pattern, get_pattern
from audiotok.modules.decoding import Decoder, Product, prepare
from audiotok.modules.transformer import KVCache, Transformer

HEADS = ("parallel", "chain")
Generators: TypeAlias = torch.Generator | Sequence[torch.Generator]  # of a batch, or on the CPU one for each clip of it


@dataclass
class CodeNLL:
    """Negative log-likelihood of each code, in nats.

    Attributes:
        parallel: [B, K, T], by the parallel head; 0 outside of the mask.
        chain: [B, K, T], by the chain head, given the codebooks before k of the same step of the sequence; None without
            that head. Of the first codebook it is that of `parallel`, without a gradient.
        mask: [K, T], the codes that were predicted. Those of the last times are not where a pattern delays a codebook
            and the sequence is cut to its valid steps.
    """

    parallel: Tensor
    chain: Tensor | None
    mask: Tensor


@dataclass(frozen=True)
class Sampling:
    """How codes are drawn from logits.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest code.
        top_k: draw from that many of the likeliest codes; 0 for all.
        top_p: draw from the fewest likeliest codes whose probabilities, after top_k, sum up to top_p; 1 for all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """ConfigError for a temperature below 0 or not finite, a negative top_k, or top_p outside of (0, 1]."""
        if not (0 <= self.temperature < math.inf and self.top_k >= 0 and 0 < self.top_p <= 1):
            raise ConfigError(f"{self} is impossible: finite temperature >= 0, top_k >= 0 and 0 < top_p <= 1.")

    def draw(self, logits: Tensor, generator: Generators | None = None) -> Tensor:
        """Codes [...] from logits [..., bins]; with a generator for each clip the first axis is that of clips."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        scores, bins = logits.to(torch.promote_types(logits.dtype, torch.float32)), logits.shape[-1]
        if 0 < self.top_k < bins or self.top_p < 1:
            kept, codes = scores.topk(min(self.top_k or bins, bins), dim=-1, sorted=self.top_p < 1)
            if self.top_p < 1:
                probabilities = (kept.double() / self.temperature).softmax(dim=-1)
                above = probabilities.cumsum(dim=-1) - probabilities
                kept = kept.masked_fill(above >= self.top_p, -math.inf)
            scores = torch.full_like(scores, -math.inf).scatter_(-1, codes, kept)
        # With Gumbel noise -log(E), E exponential, the greatest is a draw by the softmax of scores / temperature. Each
        # code has its own noise, whichever the others are: equal noise mostly gives equal codes for similar scores.
        return (scores - self.temperature * _log_exponential(scores, generator)).argmax(dim=-1)


def _log_exponential(like: Tensor, generator: Generators | None) -> Tensor:
    """Logarithms of exponential noise of the shape of scores [..., bins].

    Made of uniform numbers, it takes a quarter of the time of Tensor.exponential_; those of float32 have steps of 6e-8.
    """
    noise, least = torch.empty_like(like), torch.finfo(torch.float32).tiny  # of 0 the logarithm is infinite
    if generator is None or isinstance(generator, torch.Generator):
        noise.uniform_(least, 1, generator=generator)
    else:
        noise = noise.cpu()
        for own, one in zip(noise, generator, strict=True):
            own.uniform_(least, 1, generator=one)
    return noise.to(like.device).log_().neg_().log_()


class ChainHead(nn.Module):
    """What codebooks before k of a step add to the logits of codebook k: a small transformer over codebooks.

    It adds to the logits of the parallel head, and adds nothing before training: what the two heads differ in has been
    learned from the codebooks of the step.

    Args:
        state_dim: channels of the state of a step.
        n_q: codebooks K, at least 2.
        bins: values of a code; `bins` itself stands for none.
        dim, num_heads, num_layers: of the transformer; dim is also the size of its embeddings.
        hidden_scale: hidden channels over dim.
        dropout: probability within the transformer.
    """

    def __init__(
        self,
        state_dim: int,
        n_q: int,
        bins: int,
        *,
        dim: int,
        num_heads: int,
        num_layers: int,
        hidden_scale: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_proj = nn.Linear(state_dim, dim)
        self.emb = nn.ModuleList(_embedding(bins + 1, dim) for _ in range(n_q - 1))
        self.transformer = Transformer(dim, num_heads, num_layers, hidden_scale * dim, dropout)
        self.out_norm = nn.LayerNorm(dim)
        linears = [nn.Linear(dim, bins) for _ in range(n_q - 1)]
        for linear in linears:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.linears = nn.ModuleList(linears)
        _init_layers(self.transformer)

    def forward(self, state: Tensor, codes: Tensor, cache: list[KVCache] | None = None) -> list[Tensor]:
        """What codes [N, k] of steps of state [N, dim] add to the logits [N, bins] of the codebook after each of them.

        The codes begin at codebook 0, or at the codebook after those in the cache.
        """
        start = cache[0].length if cache else 0
        embedded = [self.emb[start + k](codes[:, k]) for k in range(codes.shape[1])]
        x = torch.stack(embedded, dim=1) + self.in_proj(state)[:, None]
        y = self.out_norm(self.transformer(x, cache))
        return [self.linears[start + k](y[:, k]) for k in range(codes.shape[1])]


class LMModel(nn.Module):
    """Transformer over sequences [B, K, S] of codes, in the order of a codebook pattern.

    Args:
        n_q: codebooks K.
        bins: values of a code (`card` in AudioCraft); `bins` itself is the special token of empty positions.
        dim, num_heads, num_layers, dropout, bias_attn, bias_ff, positions: see `Transformer`.
        hidden_scale: hidden channels over dim.
        bias_proj: whether the parallel head has a bias.
        pattern, delays: see `get_pattern`.
        num_labels: class labels, which a prefix of one step gives to the model; 0 for a model without that step.
        label_dropout: probability that a label is dropped in training, so that guidance has a model without labels.
        heads: of `HEADS`; `parallel` is always one of them.
        depth_dim, depth_heads, depth_layers: of the `ChainHead`.

    Raises:
        ConfigError: for a value outside of the above.
    """

    def __init__(
        self,
        *,
        n_q: int,
        bins: int,
        dim: int,
        num_heads: int,
        num_layers: int,
        hidden_scale: int = 4,
        dropout: float = 0.0,
        bias_attn: bool = False,
        bias_ff: bool = False,
        bias_proj: bool = False,
        positions: str = "sin",
        pattern: str = "delay",
        delays: Sequence[int] | None = None,
        num_labels: int = 0,
        label_dropout: float = 0.1,
        heads: Sequence[str] = ("parallel",),
        depth_dim: int = 128,
        depth_heads: int = 4,
        depth_layers: int = 2,
    ) -> None:
        super().__init__()
        if "parallel" not in heads or not set(heads) <= set(HEADS):
            raise ConfigError(f"Heads {list(heads)} of a language model; allowed are [parallel] and [parallel, chain].")
        get_pattern(pattern, n_q, 1, delays)  # refuses what cannot be used
        self.n_q, self.bins, self.num_labels, self.label_dropout = n_q, bins, num_labels, label_dropout
        self.pattern_name, self.delays = pattern, delays
        self.emb = nn.ModuleList(_embedding(bins + 1, dim) for _ in range(n_q))
        self.transformer = Transformer(
            dim, num_heads, num_layers, int(hidden_scale * dim), dropout, bias_attn, bias_ff, positions
        )
        self.out_norm = nn.LayerNorm(dim)
        self.linears = nn.ModuleList(_init_linear(nn.Linear(dim, bins, bias=bias_proj)) for _ in range(n_q))
        self.label_emb = _embedding(num_labels + 1, dim) if num_labels else None
        self.depth: ChainHead | None = None
        if "chain" in heads and n_q > 1:
            self.depth = ChainHead(
                dim, n_q, bins, dim=depth_dim, num_heads=depth_heads, num_layers=depth_layers, dropout=dropout
            )
        self.heads = tuple(heads)
        _init_layers(self.transformer)

    @property
    def special_token(self) -> int:
        """Token of positions without a code."""
        return self.bins

    @property
    def no_label(self) -> int:
        """Label of a clip without one."""
        return self.num_labels

    def pattern(self, timesteps: int) -> Pattern:
        """The pattern of `timesteps` codes of each codebook."""
        return get_pattern(self.pattern_name, self.n_q, timesteps, self.delays)

    def forward(self, sequence: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits [B, K, S, bins] of the parallel head for the steps that follow each step of sequence [B, K, S].

        `labels` [B] are class labels, None for `no_label`.
        """
        state = self.state(sequence, labels)
        return torch.stack([linear(state) for linear in self.linears], dim=1)

    def state(self, sequence: Tensor, labels: Tensor | None = None, cache: list[KVCache] | None = None) -> Tensor:
        """State [B, S, dim] after each step of sequence [B, K, S], which follows the steps in the cache."""
        x = self._embed(sequence)
        if self.label_emb is not None and not (cache and cache[0].length):
            if labels is None:
                labels = sequence.new_full((len(sequence),), self.no_label)
            x = torch.cat([self.label_emb(labels)[:, None], x], dim=1)
        state: Tensor = self.out_norm(self.transformer(x, cache))
        return state[:, -sequence.shape[2] :]  # without the label

    def _embed(self, sequence: Tensor) -> Tensor:
        """Sum [B, ..., dim] of the embeddings of the codebooks of sequence [B, K, ...]."""
        first, *others = (emb(codes) for emb, codes in zip(self.emb, sequence.unbind(1), strict=True))
        x: Tensor = first
        for embedded in others:
            x = x + embedded
        return x

    def nll(self, codes: Tensor, labels: Tensor | None = None, *, valid_only: bool = True) -> CodeNLL:
        """Negative log-likelihood of codes [B, K, T], with all codes before them as context.

        In training mode labels are dropped with `label_dropout`. The chain head learns from what it adds and sends its
        gradient to the transformer, but not to the parallel head, which stays the best that this head can be.

        Args:
            codes: of the codec.
            labels: [B], from 0 to `no_label`.
            valid_only: leave out steps where the end of the clip empties positions; right for segments of tracks.

        Raises:
            DataError: for codes of another number of codebooks or out of range, or labels that do not exist.
        """
        self._check(codes, labels)
        pattern = self.pattern(codes.shape[2])
        sequence, _ = pattern.build(codes, self.special_token, valid_only=valid_only)
        targets = sequence[..., 1:]
        if self.training and labels is not None and self.label_dropout:
            dropped = torch.rand(labels.shape, device=labels.device) < self.label_dropout
            labels = labels.masked_fill(dropped, self.no_label)
        state = self.state(sequence[..., :-1], labels)
        logits = [linear(state) for linear in self.linears]
        parallel = torch.stack([self._cross_entropy(x, targets[:, k]) for k, x in enumerate(logits)], dim=1)
        by_code, mask = pattern.undo(F.pad(parallel, (1, 0)), 0.0)
        chain = None
        if self.depth is not None:
            # The parallel logits are a constant here, so that the chain's loss does not change the parallel head.
            added = self.depth(state.flatten(0, 1), targets[:, :-1].transpose(1, 2).flatten(0, 1))
            both = [x.detach() + more.view_as(x) for x, more in zip(logits[1:], added, strict=True)]
            later = [self._cross_entropy(x, targets[:, k]) for k, x in enumerate(both, start=1)]
            in_steps = torch.stack([parallel[:, 0].detach(), *later], dim=1)
            chain, _ = pattern.undo(F.pad(in_steps, (1, 0)), 0.0)
        elif "chain" in self.heads:
            chain = by_code.detach()  # a single codebook
        return CodeNLL(by_code, chain, mask)

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Nats [B, S] of targets [B, S] under logits [B, S, bins]; 0 for the special token."""
        flat = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=self.special_token, reduction="none"
        )
        return flat.view(targets.shape)

    @torch.no_grad()
    def generate(
        self,
        timesteps: int,
        *,
        num_samples: int = 1,
        prompt: Tensor | None = None,
        labels: Tensor | None = None,
        guidance: float = 1.0,
        sampling: Sampling | None = None,
        head: str = "parallel",
        generator: Generators | None = None,
        use_cache: bool = True,
    ) -> Tensor:
        """Codes [B, K, timesteps] drawn from the model, which has to be in evaluation mode.

        Args:
            timesteps: codes of each codebook, with those of the prompt.
            num_samples: clips B; given by prompt or labels if there are any.
            prompt: codes [B, K, T'] that the clips begin with, T' < timesteps.
            labels: [B], from 0 to `no_label`.
            guidance: factor w of logits = without + w · (with - without labels); 1 for the model as it is.
            sampling: how codes are drawn; by default from all of them at temperature 1.
            head: which of `heads` draws them.
            generator: source of randomness, on the device of the model; or one for each clip, on the CPU, so that a
                clip does not depend on the others of its batch.
            use_cache: whether each step is read once, rather than all steps for each new one.

        Within torch.autocast the weights are kept in its type. In bfloat16 codes are others than in float32; on a CPU
        large models are faster by it from four clips on (docs/benchmarks/lm.md).

        Raises:
            ConfigError: for a head that the model does not have, or guidance without labels.
            DataError: for a prompt or labels that do not fit.
        """
        assert not self.training, "with dropout a model is another at each step: call eval() first"
        if head not in self.heads:
            raise ConfigError(f"Head {head!r} of a language model that has {', '.join(self.heads)}.")
        if not math.isfinite(guidance):
            raise ConfigError(f"Guidance of {guidance}; give a finite number.")
        if guidance != 1 and labels is None:
            raise ConfigError(f"Guidance of {guidance} needs labels; give some, or a guidance of 1.")
        device = self.out_norm.weight.device
        if prompt is None:
            batch = num_samples if labels is None else len(labels)
            prompt = torch.zeros(batch, self.n_q, 0, dtype=torch.long, device=device)
        self._check(prompt, labels)
        given = prompt.shape[2]
        if given >= timesteps:
            raise DataError(f"A prompt of {given} frames leaves nothing of the {timesteps} to generate.")
        pattern = self.pattern(timesteps)
        sequence, _ = pattern.build(F.pad(prompt, (0, timesteps - given), value=-1), self.special_token)
        copies = 1 if guidance == 1 else 2
        if copies == 2 and labels is not None:
            labels = torch.cat([labels, torch.full_like(labels, self.no_label)])
        rows = copies * len(sequence)
        cache = self.transformer.new_cache(pattern.length + 1) if use_cache else None
        decoder: Decoder | None = None
        drawer = _Drawer(self, head == "chain", rows, guidance, sampling or Sampling(), generator)
        for step in range(int(pattern.steps[:, given].min()), pattern.length):
            if decoder is None:
                state = self.state(sequence[..., :step].repeat(copies, 1, 1), labels, cache)[:, -1]
                decoder = Decoder(self.transformer, cache, rows) if cache is not None else None
            else:
                codes = sequence[..., step - 1]
                codes = codes if copies == 1 else codes.repeat(copies, 1)
                state = self.out_norm(decoder.read(self._embed(codes)))
            drawer.fill(sequence[..., step], state)
        return pattern.undo(sequence, self.special_token)[0]

    def _check(self, codes: Tensor, labels: Tensor | None) -> None:
        """DataError for codes or labels that this model cannot read."""
        if codes.dim() != 3 or codes.shape[1] != self.n_q:
            raise DataError(f"Codes are {list(codes.shape)}; this language model takes [B, {self.n_q}, T].")
        low, high = (int(codes.min()), int(codes.max())) if codes.numel() else (0, 0)
        if low < 0 or high >= self.bins:
            raise DataError(f"Codes go from {low} to {high}; this language model takes 0 to {self.bins - 1}.")
        if labels is None:
            return
        if self.label_emb is None:
            raise DataError("Labels were given to a language model without labels (num_labels=0).")
        if labels.shape != codes.shape[:1]:
            raise DataError(f"Labels are {list(labels.shape)} for {codes.shape[0]} clips; give one for each.")
        if int(labels.min()) < 0 or int(labels.max()) > self.no_label:
            raise DataError(f"Labels have to be from 0 to {self.no_label}, which stands for no label.")


class _Drawer:
    """Draws the codes of a step from its state.

    Args:
        model: of which the weights of the heads are copied.
        chain: whether the chain head draws, if there is one.
        rows: states of a step.
        guidance, sampling, generator: see `LMModel.generate`.
    """

    def __init__(
        self,
        model: LMModel,
        chain: bool,
        rows: int,
        guidance: float,
        sampling: Sampling,
        generator: Generators | None,
    ) -> None:
        self.shape = (rows, model.n_q, model.bins)
        self.guidance, self.sampling, self.generator = guidance, sampling, generator
        self.heads = _prepare(model.linears, rows)
        self.depth = model.depth if chain else None
        if self.depth is not None:
            self.in_proj = _prepare([self.depth.in_proj], rows)
            self.linears = [_prepare([linear], rows) for linear in self.depth.linears]
            self.decoder = Decoder(self.depth.transformer, self.depth.transformer.new_cache(model.n_q - 1), rows)

    def fill(self, column: Tensor, state: Tensor) -> None:
        """Draw the codes that are -1 of column [B, K] from state [B, dim], or [2 B, dim] with guidance."""
        logits = self.heads(state).view(self.shape)
        if self.depth is None:
            column.copy_(torch.where(column == -1, self._draw(logits), column))
            return
        projected, copies = self.in_proj(state), len(state) // len(column)
        for cache in self.decoder.cache:
            cache.length = 0
        for k in range(column.shape[1]):
            each = logits[:, k]
            if k:
                x = projected + self.depth.emb[k - 1](column[:, k - 1].repeat(copies))
                each = each + self.linears[k - 1](self.depth.out_norm(self.decoder.read(x)))
            column[:, k] = torch.where(column[:, k] == -1, self._draw(each), column[:, k])

    def _draw(self, logits: Tensor) -> Tensor:
        """Codes [B, ...] from logits [B, ..., bins], or [2 B, ..., bins] with guidance."""
        if self.guidance != 1:
            with_label, without = logits.chunk(2)
            logits = without + self.guidance * (with_label - without)
        return self.sampling.draw(logits, self.generator)


def _prepare(linears: Iterable[nn.Module], rows: int) -> Product:
    """As `prepare`, of linear layers."""
    each = [linear for linear in linears if isinstance(linear, nn.Linear)]
    return prepare([linear.weight for linear in each], [linear.bias for linear in each], rows)


def _embedding(size: int, dim: int) -> nn.Embedding:
    """Gaussian vectors of norm about 1."""
    table = nn.Embedding(size, dim)
    _gaussian(table.weight, 1 / math.sqrt(dim))
    return table


def _init_linear(linear: nn.Linear, depth: float = 0.5) -> nn.Linear:
    """Gaussian weights of variance 1 / (2 · depth · inputs), and no bias.

    This is AudioCraft's choice for MusicGen (`weight_init: gaussian`, `depthwise_init: current`).
    """
    _gaussian(linear.weight, 1 / math.sqrt(2 * depth * linear.in_features))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


def _init_layers(transformer: Transformer) -> None:
    """Initialise the matrices of each layer by its depth, from 1; that of queries, keys and values stays PyTorch's."""
    for depth, layer in enumerate(transformer.layers, start=1):
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                _init_linear(module, depth)


def _gaussian(values: Tensor, deviation: float) -> None:
    """Fill with Gaussian values, cut at three deviations."""
    nn.init.trunc_normal_(values, std=deviation, a=-3 * deviation, b=3 * deviation)
