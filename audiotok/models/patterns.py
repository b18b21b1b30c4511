"""Codebook patterns: at which step of a sequence a language model sees which code.

A model with one input and one head for each codebook reads sequences [B, K, S]. A pattern places the codes [B, K, T] of
a codec in them: code t of codebook k at step `steps[k, t]`, all other positions a special token. Step 0 holds special
tokens alone, so that outputs at step s predict step s + 1 from the start.

Source: Copet et al., "Simple and Controllable Music Generation", NeurIPS 2023, section 2.3. Sequences are those of
AudioCraft's pattern providers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from audiotok.errors import ConfigError

PATTERNS = ("parallel", "delay", "flatten", "coarse_first")
_AUDIOCRAFT_NAMES = {"unroll": "flatten"}


@dataclass(frozen=True, eq=False)
class Pattern:
    """Where T codes of each of K codebooks stand in a sequence.

    Attributes:
        steps: [K, T], the step of each code; ascending along T.
        length: steps S of the whole sequence, with the empty step 0.
        valid_length: steps of its beginning whose empty positions are empty in a longer sequence too. After them
            codebooks have run out of codes, as at the end of a track, but not at that of a segment from its middle.
    """

    steps: Tensor
    length: int
    valid_length: int

    def build(self, codes: Tensor, special: int, *, valid_only: bool = False) -> tuple[Tensor, Tensor]:
        """Sequence [B, K, S] of codes [B, K, T], and the mask [K, S] of positions that hold a code.

        Args:
            codes: of any type of integer.
            special: token of all other positions.
            valid_only: whether S is `valid_length`, without the codes at later steps; else it is `length`.
        """
        steps = self.steps.to(codes.device)
        sequence = codes.new_full((codes.shape[0], len(steps), self.length), special)
        sequence.scatter_(2, steps.expand_as(codes), codes)
        mask = torch.zeros(len(steps), self.length, dtype=torch.bool, device=codes.device).scatter_(1, steps, True)
        end = self.valid_length if valid_only else self.length
        return sequence[..., :end], mask[:, :end]

    def undo(self, sequence: Tensor, special: float) -> tuple[Tensor, Tensor]:
        """Codes [B, K, T] of a sequence [B, K, S], and the mask [K, T] of those that are in it.

        A sequence of S < `length` steps lacks some codes: they become `special`. Any values of positions will do.
        """
        steps = self.steps.to(sequence.device)
        mask = steps < sequence.shape[-1]
        padded = F.pad(sequence, (0, 1), value=special)
        return padded.gather(2, steps.clamp(max=sequence.shape[-1]).expand(len(sequence), -1, -1)), mask


def get_pattern(name: str, n_q: int, timesteps: int, delays: Sequence[int] | None = None) -> Pattern:
    """Pattern of `timesteps` codes of each of n_q codebooks.

    Args:
        name: one of `PATTERNS`.
            parallel: all codebooks of a time in one step.
            delay: codebook k later by delays[k] steps.
            flatten: one code a step: all codebooks of a time, then those of the next (`unroll` in AudioCraft).
            coarse_first: codebook 0 of all times, then the others in parallel, codebook k later by delays[k - 1].
        n_q: codebooks K, at least 1.
        timesteps: codes T of each, at least 1.
        delays: steps, of `delay` (n_q of them, 0, 1, 2, … by default) and `coarse_first` (n_q - 1, by default 0).

    Raises:
        ConfigError: for an unknown name, or delays that are negative or of another number.
    """
    name = _AUDIOCRAFT_NAMES.get(name, name)
    if name not in PATTERNS:
        raise ConfigError(f"Pattern {name!r} is unknown; use one of {', '.join(PATTERNS)}.")
    if n_q < 1 or timesteps < 1:
        raise ConfigError(f"A pattern of {n_q} codebooks and {timesteps} steps; both have to be at least 1.")
    number = {"delay": n_q, "coarse_first": n_q - 1}.get(name, 0)
    if delays is None:
        delays = range(n_q) if name == "delay" else [0] * number
    if len(delays) != number or any(delay < 0 for delay in delays):
        raise ConfigError(
            f"Pattern {name} of {n_q} codebooks has the delays {list(delays)}; it takes {number}, none negative."
        )
    return _pattern(name, n_q, timesteps, tuple(delays))


@lru_cache(100)
def _pattern(name: str, n_q: int, timesteps: int, delays: tuple[int, ...]) -> Pattern:
    """As `get_pattern`, of checked arguments; a result is shared and not to be changed."""
    with torch.device("cpu"):  # also where a model is being built on another, such as meta
        time, books = 1 + torch.arange(timesteps), torch.arange(n_q)[:, None]
        late = torch.tensor(delays or [0]).reshape(-1, 1)
    if name == "flatten":
        steps = n_q * (time - 1) + 1 + books
    elif name == "coarse_first" and n_q > 1:
        steps = torch.cat([time[None], timesteps + time + late])
    else:
        steps = time + late.expand(n_q, 1)
    length = 1 + int(steps.max())
    return Pattern(steps, length, length - int(late.max() - late.min()))
