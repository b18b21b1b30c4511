"""Training a language model over the codes of a codec: cross-entropy of each codebook, by one head or by two.

Source: Copet et al., "Simple and Controllable Music Generation", NeurIPS 2023 (training, names of metrics).
"""

import math
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from audiotok.config_text import escaped, saved_text
from audiotok.data import AudioLoader
from audiotok.data.tokens import TokenSet
from audiotok.errors import CheckpointError, ConfigError
from audiotok.metrics.gap import GapMeter, shrunk
from audiotok.metrics.gap_fit import GapFit
from audiotok.models.codec_lm import CodecLM, CodeFormat, get_code_format, get_language_model
from audiotok.models.lm import CodeNLL
from audiotok.models.pretrained import configuration_of
from audiotok.solvers import builders, lm_data
from audiotok.solvers.averages import State
from audiotok.solvers.lm_evaluation import HeldOut, add_to_gap, gathered, mean_by_codebook, mean_entropies, with_bits
from audiotok.solvers.lm_generation import check_held_out, generate_clips
from audiotok.solvers.randomness import seed_everything
from audiotok.solvers.solver import Metrics, StandardSolver

_ALONE = 4  # one window of so many is enough for the heads without context
_LAST = 0.2  # share of the epochs in which the valid curve shall not fall


class LMSolver(StandardSolver):
    """Solver of `CodecLM`; its codec only makes codes and audio, and is no part of checkpoints.

    Metrics of train and valid: loss and grad_norm (training), ce and ppl (cross-entropy in nats over codebooks, and its
    perplexity), both also for each codebook (ce_q1, …), bits_frame, bits_s; with a chain head ce_chain and
    bits_frame_chain. See docs/lm.md.
    """

    model: CodecLM
    dataloaders: dict[str, AudioLoader]

    def build_dataloaders(self) -> None:
        """Load the codec, have the codes of the four splits made where they are missing, and read them in windows."""
        cfg, root = self.cfg, Path(self.xp.dora.dir)
        self.codec = lm_data.load_codec(cfg.compression_model_checkpoint, root, self.device)
        sets = lm_data.get_token_sets(cfg, self.codec, root)
        self.tokens: dict[str, TokenSet] = {
            split: lm_data.with_labels(tokens, cfg.lm.get("labels"), Path(cfg.datasource[split]))
            for split, tokens in sets.items()
        }
        labels = self.tokens["train"].labels
        if cfg.lm.get("labels") and not labels:
            found = f"lm.labels={cfg.lm.labels}, but no track of {cfg.datasource.train} has one"
            raise ConfigError(f"{found}; give null, folder, or a field of its lines")
        self.dataloaders = lm_data.get_loaders(cfg, self.tokens, labels)
        if cfg.generate.every or cfg.get("execute_only") == "generate":
            check_held_out(self._held_out, cfg, labels)

    def build_model(self) -> None:
        """Model and optimiser."""
        seed_everything(self.cfg.seed)  # loading the codec, and making codes or not, has drawn random numbers
        self.model = get_language_model(self._with_codes).to(self.device)
        for split, loader in self.dataloaders.items():
            lm_data.check_windows(self.model, split, loader)
        self.optimizer = builders.get_optimizer(self.model.trunk_parameters(), self.cfg.optim, fused=True)
        if self.model.alone is not None:
            self.model.alone.logits.data = lm_data.log_counts(self.tokens["train"]).to(self.device)
            # Without weight decay: it would pull these laws away from the frequencies, which they begin with.
            self.optimizer.add_param_group({"params": [*self.model.alone.parameters()], "weight_decay": 0.0})
        self.precision.compile(self.model.transformer)
        self.updates = builders.get_updates(
            self.optimizer,
            self.cfg,
            parameters=list(self.model.parameters()),
            clipped=list(self.model.trunk_parameters()),
            max_norm=self.cfg.optim.max_norm,
            scale=self.precision.new_scale("model"),
            skips=self.skips,
        )

    @cached_property
    def codes(self) -> CodeFormat:
        """Of the codec and of the labels of the training data."""
        tokens = self.tokens["train"]
        return CodeFormat(
            codec=str(self.cfg.compression_model_checkpoint),
            codec_hash=tokens.codec_hash,
            n_q=tokens.n_q,
            bins=tokens.bins,
            frame_rate=tokens.frame_rate,
            sample_rate=tokens.sample_rate,
            channels=tokens.channels,
            labels=list(tokens.labels),
        )

    @property
    def _with_codes(self) -> DictConfig:
        """The configuration with the section `codes`, from which the model can be built without its data."""
        plain = OmegaConf.to_container(self.cfg)
        assert isinstance(plain, dict)
        # A label is text, whatever it looks like: as ${oc.env:NAME} it would carry a variable into checkpoints.
        return OmegaConf.create({**plain, "codes": escaped(asdict(self.codes))})

    @cached_property
    def cfg_text(self) -> str:
        """The configuration as checkpoints hold it, with the section `codes`."""
        return saved_text(self._with_codes, self.xp.cfg)

    @property
    def best_metric(self) -> str:
        """The cross-entropy of the parallel head."""
        return "ce"

    def show(self) -> None:
        """Log the model, its size and its codec."""
        super().show()
        codes = self.codes
        form = f"{codes.n_q} codebooks of {codes.bins} at {codes.frame_rate:g} Hz"
        self.logger.info("codec %s (%s…): %s", codes.codec, codes.codec_hash[:12], form)

    # --- Checkpoints: of this codec and these labels ---

    def check_source(self, cfg: DictConfig, path: Path) -> None:
        """CheckpointError if a checkpoint is of another codec, or of other labels."""
        try:
            theirs = get_code_format(cfg)
        except ConfigError as error:
            raise CheckpointError(f"{path} is no checkpoint of a language model: {error}") from error
        theirs.check_codec(self.codes.codec_hash, self.codes.codec, str(path))
        if list(theirs.labels) != list(self.codes.labels):
            names = [", ".join(labels) or "none" for labels in (theirs.labels, self.codes.labels)]
            raise CheckpointError(f"{path} was trained with the labels {names[0]}; the training data has {names[1]}")

    def _load(self, state: State) -> None:
        self.check_source(configuration_of(state, self.checkpoint_path), self.checkpoint_path)
        super()._load(state)

    # --- Steps ---

    def train(self) -> Metrics:
        """Train stage; see `StandardSolver`."""
        return with_bits(super().train(), self.codes.frame_rate)

    def valid(self) -> Metrics:
        """Valid stage; see `StandardSolver`."""
        return with_bits(super().valid(), self.codes.frame_rate)

    def run_step(self, batch: lm_data.CodeBatch) -> Metrics:
        """Cross-entropy of a batch, and in training an update."""
        nll = self._nll(batch)
        metrics = mean_entropies(nll)
        if self.is_training:
            metrics.update(self._update(metrics["ce"], nll, batch))
        return metrics

    def _nll(self, batch: lm_data.CodeBatch) -> CodeNLL:
        labels = batch.labels if self.model.num_labels else None
        here = self.is_training and self.device.type == "cuda" and self.precision.name == "fp32"
        mixed = here and bool(self.cfg.lm.get("autocast"))
        with torch.autocast(self.device.type, torch.bfloat16) if mixed else self.precision.autocast():
            return self.model.nll(batch.codes, labels)

    def _update(self, ce: Tensor, nll: CodeNLL, batch: lm_data.CodeBatch) -> Metrics:
        """One step on the cross-entropy of the parallel head, of the chain head, and of both without context."""
        loss = ce + self._chain_loss(nll)
        scale = 1.0 if self.updates.scale is None else self.updates.scale.value
        (scale * loss).backward()
        judged = {"loss": loss}
        if self.model.alone is not None:
            alone = self.model.alone.nll(batch.codes[::_ALONE])
            judged["loss_alone"] = mean_by_codebook(alone.parallel, alone.mask).mean() + self._chain_loss(alone)
            (scale * judged["loss_alone"]).backward()
        return {"loss": loss} | self.updates.step(judged)

    def _chain_loss(self, nll: CodeNLL) -> Tensor | float:
        """Mean over the codebooks after the first, which the chain head shares with the parallel head."""
        if nll.chain is None or self.model.n_q == 1:
            return 0.0
        return mean_by_codebook(nll.chain, nll.mask)[1:].mean()

    def evaluate(self) -> Metrics:
        """Cross-entropies and the factorisation gap over windows of the evaluate split that do not overlap.

        The chain heads are scaled as the valid split likes best, for the length of the stage.
        """
        self.model.eval()
        heads = [one.depth for one in (self.model, self.model.alone) if one is not None and one.depth is not None]
        held_out = HeldOut(self.model, self.tokens["evaluate"], self.dataloaders["evaluate"])
        with shrunk(heads if self.model.depth is not None else [], self._gap_of_valid):
            for batch in self.progress_of("evaluate"):
                own = batch.to(self.device)
                held_out.add(self._nll(own), own)
                self.after_step()
        found = held_out.metrics(Path(self.folder))
        return found | (self._convergence() if "gap" in found else {})

    def _gap_of_valid(self) -> GapMeter:
        gap = GapMeter()
        for batch in self.dataloaders["valid"]:
            own = batch.to(self.device)
            add_to_gap(gap, self.model, self._nll(own), own.codes, own.tracks)
            self.after_step()
        return gathered(gap)

    def _convergence(self) -> Metrics:
        """Whether the valid curves of both heads have stopped falling: a gap of two unfinished heads means little."""
        epochs = [*self.history, self._pending_metrics]
        curves = [
            [epoch["valid"][name] for epoch in epochs if "valid" in epoch]
            for name in ("bits_frame", "bits_frame_chain")
        ]
        epoch = len(curves[0])
        before = epoch - max(1, math.ceil(epoch * _LAST))
        fall = max(curve[before - 1] - curve[-1] for curve in curves) if before > 0 else math.inf
        converged = fall <= GapFit.tolerance
        if not converged and epoch == self.cfg.optim.epochs:
            last = f"{epoch - before} epochs" if epoch - before > 1 else "epoch"
            found = f"{fall:.3f} bits per frame in the last {last}" if before > 0 else "one epoch"
            self.logger.warning("the gap has not converged: the valid curves still fall (%s); train longer", found)
        return {"gap_converged": float(converged)} | ({"gap_fall": fall} if before > 0 else {})

    def generate(self) -> Metrics:
        """Draw clips, and write them and their codes under `samples/` of the experiment."""
        self.model.eval()
        folder, after_step = Path(self.folder), self.after_step
        return dict(
            generate_clips(self.model, self.codec, self._held_out, self.cfg, folder, self.epoch, after_step=after_step)
        )

    @property
    def _held_out(self) -> list[TokenSet]:
        """A distance takes several recordings: those of both splits that nothing was chosen by."""
        return [self.tokens["generate"], self.tokens["evaluate"]]
