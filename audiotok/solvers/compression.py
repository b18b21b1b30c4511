"""Training a neural codec: reconstruction, adversaries, the quantiser's penalty, and independent codebooks.

Source: Defossez et al., High Fidelity Neural Audio Compression, 2022 (losses, balancer, discriminators); Lemercier et
al., An Independence-promoting Loss for Music Generation with Language Models, ICML 2024 (MMD over codebooks).
"""

from pathlib import Path
from typing import Any

import flashy
import torch
from torch import Tensor, nn

from audiotok.adversarial import AdversarialLoss
from audiotok.data.names import clip_name, note_source
from audiotok.errors import ConfigError
from audiotok.models.encodec import CompressionModel, EncodecModel, get_compression_model
from audiotok.solvers import builders
from audiotok.solvers.averages import State
from audiotok.solvers.evaluation import evaluate_codec
from audiotok.solvers.gradient_share import GradientProbe
from audiotok.solvers.macro_batch import MacroBatch, MMDWeight
from audiotok.solvers.samples import save_sample
from audiotok.solvers.solver import Metrics, StandardSolver


class CompressionSolver(StandardSolver):
    """Solver of `EncodecModel`, with the MMD between codebooks.

    Metrics of train and valid: bandwidth (kb/s), adv and feat (also by adversary), d_loss, the signal losses by their
    name in `losses`, penalty, mmd, mmd_share, g_loss, grad_norm; sisnr is in dB, higher is better. See docs/metrics.md.
    """

    model: EncodecModel
    adversaries: dict[str, AdversarialLoss]

    def build_model(self) -> None:
        """Codec, adversaries, losses, balancer and the MMD step."""
        cfg = self.cfg
        model = get_compression_model(cfg)
        if not isinstance(model, EncodecModel):
            raise ConfigError(f"compression_model={cfg.compression_model!r} cannot be trained; choose encodec")
        self.model = model.to(self.device)
        self.optimizer = builders.get_optimizer(self.model.parameters(), cfg.optim)
        self.adversaries = builders.get_adversaries(cfg, self.device)
        self.adv_losses = nn.ModuleDict(self.adversaries)
        self.aux_losses, self.info_losses = builders.get_signal_losses(cfg)
        self.aux_losses.to(self.device)
        self.info_losses.to(self.device)
        self.balancer = builders.get_balancer(cfg)
        self.register_stateful("adv_losses", "balancer")
        builders.get_evaluation_metrics(cfg)  # a package that a metric needs and lacks is found now
        self.macro_batch: MacroBatch | None = None
        self.probe: GradientProbe | None = None
        self.mmd_weight = MMDWeight(cfg.losses.mmd, cfg.mmd.start_epoch, cfg.mmd.ramp_epochs)
        if self.model.num_codebooks > 1:
            self.macro_batch = builders.get_macro_batch(cfg)
            self.register_stateful("macro_batch")
            if cfg.losses.mmd > 0:
                self.probe = GradientProbe(self.model.decoder)

    def build_dataloaders(self) -> None:
        """Loaders of the four splits."""
        self.dataloaders = builders.get_dataloaders(self.cfg)

    def run_epoch(self) -> None:
        """Run the stages of an epoch; see `StandardSolver`."""
        # A generator apart, equal on all ranks: they train the adversaries at the same steps, a collective.
        self.rng = torch.Generator().manual_seed(self.cfg.seed + self.epoch)
        super().run_epoch()

    def rank_state(self) -> State:
        """With the averages of the balancer, which differ between ranks, and the draws of the adversaries."""
        return super().rank_state() | {"balancer": self.balancer.state_dict(), "adversaries": self.rng.get_state()}

    def load_rank_state(self, state: State) -> None:
        """Restore `rank_state`."""
        super().load_rank_state(state)
        if "balancer" in state:
            self.balancer.load_state_dict(state["balancer"])
        if "adversaries" in state and self.progress.begun:
            self.rng.set_state(state["adversaries"])

    def run_step(self, batch: Tensor) -> Metrics:
        """Reconstruct a batch [B, C, T], measure, and in training update adversaries and codec."""
        result = self.model(batch)
        metrics: Metrics = {"bandwidth": result.bandwidth.mean()}
        if self.is_training:
            metrics.update(self._train_adversaries(result.x, batch))
        losses = self._balanced_losses(result.x, batch)
        metrics.update(losses)
        for kind in ("adv", "feat") if self.adversaries else ():
            metrics[kind] = torch.stack([losses[f"{kind}_{name}"] for name in self.adversaries]).sum()
        if result.penalty is not None:
            metrics["penalty"] = result.penalty
        if self.is_training:
            metrics.update(self._update(batch, result, losses))
        else:  # what is only reported need not slow training down
            metrics.update(self._valid_mmd(batch))
            metrics.update({name: loss(estimate=result.x, reference=batch) for name, loss in self.info_losses.items()})
        if "sisnr" in metrics:
            metrics["sisnr"] = -metrics["sisnr"]  # the loss is minimised; people read dB, higher is better
        return metrics

    def _train_adversaries(self, estimate: Tensor, reference: Tensor) -> Metrics:
        if not self.adversaries or torch.rand(1, generator=self.rng).item() > 1 / self.cfg.adversarial.every:
            return {}
        losses = {f"d_{name}": a.train_adv(fake=estimate, real=reference) for name, a in self.adversaries.items()}
        return {"d_loss": torch.stack(list(losses.values())).sum(), **losses}

    def _balanced_losses(self, estimate: Tensor, reference: Tensor) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for name, adversary in self.adversaries.items():
            losses[f"adv_{name}"], losses[f"feat_{name}"] = adversary(fake=estimate, real=reference)
        return losses | {name: loss(estimate=estimate, reference=reference) for name, loss in self.aux_losses.items()}

    def _update(self, batch: Tensor, result: Any, losses: dict[str, Tensor]) -> Metrics:
        """Gradients of penalty, balanced losses and, when its batches are there, the MMD; then one optimiser step."""
        metrics: Metrics = {}
        if result.penalty is not None:
            result.penalty.backward(retain_graph=True)  # the balancer walks the encoder's graph again
        metrics["g_loss"] = self.balancer.backward(losses, result.x)
        metrics.update(self.balancer.metrics)
        metrics.update(self._mmd_step(batch, result.codes.shape[1]))
        # Once, after all backward passes; which parameters have a gradient by then is the same on every rank.
        flashy.distrib.sync_gradients(self.model.parameters())
        limit = self.cfg.optim.max_norm or float("inf")
        metrics["grad_norm"] = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return metrics

    def _mmd_step(self, batch: Tensor, n_q: int) -> Metrics:
        """The MMD step, if this batch completes it; n_q, also a draw of quantiser dropout, is the same on all ranks."""
        macro = self.macro_batch
        if macro is None:
            return {}
        if self.probe is not None:
            macro.share.add_reconstruction(self.probe.norm)
        if not macro.add(batch) or n_q == 1:
            return {}
        metrics: Metrics = {"mmd": macro.value(self.model, self.mmd_weight(self.epoch), n_q)}
        return metrics if self.probe is None else metrics | {"mmd_share": macro.reached}

    def valid(self) -> Metrics:
        """Valid stage; its MMD is the training criterion on as many batches."""
        if self.macro_batch is not None:
            # Of its own: the training batches that are pending must still be there in the next epoch.
            self.valid_batches = builders.get_macro_batch(self.cfg)
            self.valid_batches.num_batches = min(self.valid_batches.num_batches, len(self.dataloaders["valid"]))
        return super().valid()

    def _valid_mmd(self, batch: Tensor) -> Metrics:
        if self.macro_batch is None or not self.valid_batches.add(batch) or not self.model.quantizer.ready:
            return {}
        return {"mmd": self.valid_batches.value(self.model, weight=0.0)}

    def evaluate(self) -> Metrics:
        """Reconstruction metrics over the evaluate split, and measures of the codebooks."""
        self.model.eval()
        batches, clips = self.progress_of("evaluate"), len(self.dataloaders["evaluate"].dataset)
        folder = Path(self.folder)
        return evaluate_codec(self.model, self.cfg, batches, clips=clips, folder=folder, after_step=self.after_step)

    def generate(self) -> Metrics:
        """Write the generate split and its reconstruction under `samples/` of the experiment.

        Each process writes its own clips; beside a reference, `NAME.json` says which file it is from.
        """
        self.model.eval()
        audio = self.cfg.generate.audio
        folder = Path(self.folder) / "samples"
        for batch, infos in self.progress_of("generate"):
            estimates = self.model(batch.to(self.device)).x.cpu()
            for reference, estimate, info in zip(batch, estimates, infos, strict=True):
                name = f"{clip_name(info)}.{audio.format}"
                note_source(folder / "reference", info)
                for parent, wav in (("reference", reference), (f"epoch_{self.epoch:04d}", estimate)):
                    save_sample(folder / parent / name, wav[:, : info.n_frames], self.cfg.sample_rate, audio.strategy)
            self.after_step()
        flashy.distrib.barrier()
        return {}

    @staticmethod
    def model_from_checkpoint(checkpoint_path: str | Path, device: torch.device | str = "cpu") -> CompressionModel:
        """Model of a checkpoint, with its best weights, in eval mode; see `CompressionModel.get_pretrained`.

        CheckpointError if it cannot be found or read.
        """
        return CompressionModel.get_pretrained(checkpoint_path, device)
