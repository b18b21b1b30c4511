"""A language model that sees no past: both heads of `LMModel` on one state that is the same for every step."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiotok.models.lm import ChainHead, CodeNLL, LMModel
from audiotok.models.patterns import get_pattern


class NoContextModel(nn.Module):
    """What `LMModel` would be without its transformer; learned beside it, from the same loss.

    The parallel head becomes a law of each codebook, and the chain head one of the codes of a step, in the alignment of
    the pattern: what parallel loses to chain is the total correlation of a step that knows nothing of the past. The
    heads of a trained model on an empty state are not that: they have never met it.

    Args:
        model: the language model whose codebooks, pattern and chain head this one has.
        depth_dim, depth_heads, depth_layers, dropout: of the `ChainHead`.
    """

    def __init__(
        self, model: LMModel, *, depth_dim: int = 64, depth_heads: int = 4, depth_layers: int = 2, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.n_q, self.special_token = model.n_q, model.special_token
        self.pattern_name, self.delays = model.pattern_name, model.delays
        self.logits = nn.Parameter(torch.zeros(model.n_q, model.bins))
        self.depth = None
        if model.n_q > 1:  # its state is the bias of its first layer
            size = {"dim": depth_dim, "num_heads": depth_heads, "num_layers": depth_layers}
            self.depth = ChainHead(1, model.n_q, model.bins, dropout=dropout, **size)

    def nll(self, codes: Tensor, *, valid_only: bool = True) -> CodeNLL:
        """Negative log-likelihood of codes [B, K, T] that the language model can read; see `LMModel.nll`."""
        pattern = get_pattern(self.pattern_name, self.n_q, codes.shape[2], self.delays)
        sequence, _ = pattern.build(codes, self.special_token, valid_only=valid_only)
        steps = sequence[..., 1:].transpose(1, 2).flatten(0, 1)
        laws = [law.expand(len(steps), -1) for law in self.logits]
        added = self.depth(self.logits.new_zeros(len(steps), 1), steps[:, :-1]) if self.depth is not None else []
        later = [law.detach() + more for law, more in zip(laws[1:], added, strict=True)]
        parallel = torch.stack([self._cross_entropy(law, steps[:, k]) for k, law in enumerate(laws)], dim=1)
        chained = [self._cross_entropy(logits, steps[:, k]) for k, logits in enumerate(later, start=1)]
        chain = torch.stack([parallel[:, 0].detach(), *chained], dim=1)
        by_code = [
            pattern.undo(F.pad(each.view(len(codes), -1, self.n_q).transpose(1, 2), (1, 0)), 0.0)
            for each in (parallel, chain)
        ]
        return CodeNLL(by_code[0][0], by_code[1][0], by_code[0][1])

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Nats [N] of targets [N] under logits [N, bins]; 0 for the special token."""
        return F.cross_entropy(logits, targets, ignore_index=self.special_token, reduction="none")
