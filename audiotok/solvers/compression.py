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
from audiotok.adversarial.discriminators import MultiDiscriminator
from audiotok.data.names import clip_name, note_source
from audiotok.errors import ConfigError, DivergedError
from audiotok.models.encodec import CompressionModel, EncodecModel, get_compression_model
from audiotok.quantization import DummyQuantizer
from audiotok.solvers import builders
from audiotok.solvers.averages import State
from audiotok.solvers.evaluation import evaluate_codec
from audiotok.solvers.gradient_share import GradientProbe
from audiotok.solvers.macro_batch import LatentError, MacroBatch, MMDWeight
from audiotok.solvers.samples import save_sample
from audiotok.solvers.solver import Metrics, StandardSolver
from audiotok.solvers.updates import Snapshot, Updates
from audiotok.solvers.watching import CHANCES, Watch, get_watch


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
        self._prepare_updates()
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

    def _prepare_updates(self) -> None:
        """Precision and compilation of the networks, and what follows their backward passes."""
        cfg, options = self.cfg, {"skips": self.skips}
        scale = self.precision.new_scale("model")
        self.precision.prepare([self.model.encoder, self.model.decoder], scale)
        parameters = list(self.model.parameters())
        self.updates = builders.get_updates(
            self.optimizer, cfg, parameters=parameters, max_norm=cfg.optim.max_norm, scale=scale, **options
        )
        self.adversary_updates: dict[str, Updates] = {}
        for name, one in self.adversaries.items():
            scale = self.precision.new_scale(name)
            self.precision.prepare(one.adversary.get_submodule("discriminators").children(), scale)
            parameters = list(one.adversary.parameters())
            self.adversary_updates[name] = builders.get_updates(
                one.optimizer, cfg, parameters=parameters, scale=scale, name=name, **options
            )
        self.adversaries_due = False
        self.lowered: set[str] = set()  # adversaries whose scale this update has lowered by their own gradient

    def build_dataloaders(self) -> None:
        """Loaders of the four splits."""
        self.dataloaders = builders.get_dataloaders(self.cfg)

    def build_watch(self) -> Watch:
        """Watch the losses that are no scores of a discriminator, its own loss, and the codebooks."""
        chances = {}
        for name, one in self.adversaries.items():
            assert isinstance(one.adversary, MultiDiscriminator)
            parts = 1 if one.normalize else one.adversary.num_discriminators
            chances[f"d_{name}"] = CHANCES[self.cfg.adversarial.adv_loss] * parts
        losses = [name for name in self.aux_losses if name != "sisnr"]  # the one that may be negative
        quantizer = self.model.quantizer
        return get_watch(
            self.cfg,
            metrics=["grad_norm", "penalty", *losses, *chances],
            chances=chances,
            codebooks=None if isinstance(quantizer, DummyQuantizer) else (quantizer.total_codebooks, quantizer.bins),
            device=self.device,
        )

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
        if self.is_training and self.updates.guarded and self.updates.batches == 0:
            self.before = Snapshot(self.model, self.balancer, self.macro_batch)
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
            if not metrics.get("skipped"):
                self.watch.add_codes(result.codes)
        else:  # what is only reported need not slow training down
            metrics.update(self._valid_mmd(batch))
            metrics.update({name: loss(estimate=result.x, reference=batch) for name, loss in self.info_losses.items()})
        if "sisnr" in metrics:
            metrics["sisnr"] = -metrics["sisnr"]  # the loss is minimised; people read dB, higher is better
        return metrics

    def _train_adversaries(self, estimate: Tensor, reference: Tensor) -> Metrics:
        self.lowered.clear()
        if self.adversaries and self.updates.batches == 0:  # all batches of an update, or none
            self.adversaries_due = torch.rand(1, generator=self.rng).item() <= 1 / self.cfg.adversarial.every
        if not self.adversaries or not self.adversaries_due:
            return {}
        losses: Metrics = {}
        for name, adversary in self.adversaries.items():
            loss = adversary.adversary_loss(fake=estimate, real=reference)
            loss.backward()
            found = self.adversary_updates[name].step({f"d_{name}": loss}, norm=False)
            if not found.get("skipped"):
                losses[f"d_{name}"] = loss.detach()
            elif self.adversary_updates[name].overflowed:
                self.lowered.add(name)
        return {"d_loss": torch.stack(list(losses.values())).sum(), **losses} if losses else {}

    def _balanced_losses(self, estimate: Tensor, reference: Tensor) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for name, adversary in self.adversaries.items():
            losses[f"adv_{name}"], losses[f"feat_{name}"] = adversary(fake=estimate, real=reference)
        return losses | {name: loss(estimate=estimate, reference=reference) for name, loss in self.aux_losses.items()}

    def _update(self, batch: Tensor, result: Any, losses: dict[str, Tensor]) -> Metrics:
        """Gradients of a batch, and what follows them; see `Updates`."""
        judged = losses if result.penalty is None else losses | {"penalty": result.penalty}
        try:
            metrics = self._gradients(batch, result, losses)
        except DivergedError as error:  # of the balancer or the MMD, on all ranks
            if not self.updates.guarded:
                raise
            what = str(error).partition("; ")[0]  # without its advice: `Skips` has its own
            others = ["the encoder's output"] * isinstance(error, LatentError)
            metrics = self.updates.skip(what, judged, *others)
        else:
            mmd = {"mmd": metrics["mmd"]} if "mmd" in metrics else {}
            metrics |= self.updates.step(judged | mmd)
        if metrics.get("skipped"):
            self.before.restore()
            for name, updates in self.adversary_updates.items():
                updates.drop()
                # The codec's gradient runs through its networks, too; but one bad batch is one overflow.
                if updates.scale is not None and self.updates.overflowed and name not in self.lowered:
                    updates.scale.update(False)
        return metrics

    def _gradients(self, batch: Tensor, result: Any, losses: dict[str, Tensor]) -> Metrics:
        """Backward passes of penalty, balanced losses and, when its batches are there, the MMD."""
        # The penalty in the same pass, which would walk the encoder's graph once more.
        metrics: Metrics = {"g_loss": self.balancer.backward(losses, result.x, result.penalty)}
        metrics.update(self.balancer.metrics)
        metrics.update(self._mmd_step(batch, result.codes.shape[1]))
        return metrics

    def _mmd_step(self, batch: Tensor, n_q: int) -> Metrics:
        """The MMD step, if this batch completes it; n_q, also a draw of quantiser dropout, is the same on all ranks."""
        macro = self.macro_batch
        if macro is None or (macro.once and macro.epoch == self.epoch):
            return {}
        if self.probe is not None:
            macro.share.add_reconstruction(self.probe.norm)
        if not macro.add(batch) or n_q == 1:
            return {}
        macro.epoch = self.epoch
        # An update takes the mean over its batches; of them one has the MMD, or one in `num_batches`. A share is clip
        # by clip, and each clip is once in either gradient, of which the same mean is taken.
        times = 1 if macro.weighting == "share" else min(self.updates.accumulate, macro.num_batches)
        metrics: Metrics = {"mmd": macro.value(self.model, times * self.mmd_weight(self.epoch), n_q)}
        return metrics if self.probe is None else metrics | {"mmd_share": macro.reached}

    def valid(self) -> Metrics:
        """Valid stage; its MMD is the training criterion on as many batches."""
        if self.macro_batch is not None:
            # Of its own: the training batches that are pending must still be there in the next epoch.
            self.valid_batches = builders.get_macro_batch(self.cfg)
            self.valid_batches.num_batches = min(self.valid_batches.num_batches, len(self.dataloaders["valid"]))
        return super().valid()

    def _valid_mmd(self, batch: Tensor) -> Metrics:
        macro = self.valid_batches if self.macro_batch is not None else None
        if macro is None or (macro.once and macro.steps) or not macro.add(batch) or not self.model.quantizer.ready:
            return {}
        return {"mmd": macro.value(self.model, weight=0.0)}

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
