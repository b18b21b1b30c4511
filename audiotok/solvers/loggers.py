"""A training in TensorBoard and in Weights & Biases: curves of steps and of epochs, samples, spectrograms.

They are written to here rather than by flashy's own loggers, which confuse the names of clips, drop scalars with the
media, ask a server for the run before it exists, write points again after a resume, and end the training when they
fail. Only the first process writes. The file `logged.json` of an experiment holds how far each of the two is, so that a
resumed run writes what comes after, and one that is switched on later has all epochs of the history first.
"""

import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import flashy
import numpy as np
import yaml
from dora import XP
from omegaconf import DictConfig

from audiotok.config_text import LOCAL_SECTIONS
from audiotok.data.audio import read_audio
from audiotok.errors import first_line
from audiotok.files import read_json, write_json
from audiotok.solvers.settings import settings
from audiotok.text import number_in
from audiotok.utils.commit import current_commit

LOGGED_FILE = "logged.json"
_AXES = ("update", "epoch")
_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
_EXTRA = "pip install 'audiotok[loggers]'"
# Most seconds that closing takes at the end of the training, for which the other ranks wait: NCCL ends them after 600;
# and of a run that is stopped: with 10 a scheduler kills.
_END_S, _STOP_S = 480.0, 5.0
# Weights & Biases keeps points in memory for so long, 15 by default; they are lost when this process is killed.
_FLUSHED_S = 0.1

Image = np.ndarray[Any, np.dtype[np.uint8]]  # [H, W, 3]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _About:
    """What leads from a curve back to its experiment."""

    sig: str
    grids: list[str]  # that have the experiment
    commit: str
    overrides: list[str]
    updates_per_epoch: int
    config: dict[str, Any]  # as checkpoints hold it: without what reads the environment, or is of a machine


@dataclass(frozen=True)
class _Clip:
    """One sample of the generate stage; `takes` by name: estimate, and reference where there is one."""

    name: str
    takes: dict[str, tuple[Path, np.ndarray[Any, np.dtype[np.float32]]]]  # file, [C, T] of full scale 1
    sample_rate: int
    spectrogram: Image  # of the reference above that of the estimate


class _Backend(Protocol):
    """One of the two; anything it raises switches it off."""

    def write(self, axis: str, position: int, values: Mapping[str, float], clips: Sequence[_Clip]) -> None:
        """Write values, and samples, at an update or an epoch, by `axis`; they shall outlive this process."""

    def close(self, failed: bool) -> None:
        """End; it may wait for a server."""

    def leave(self) -> str:
        """Have nothing wait for a `close` that has not ended; what to do about the rest."""


class RunLog:
    """Writes a training to backends, a point never twice.

    Args:
        folder: of the experiment.
        makers: of the backends by name; called with whether to begin anew, without the points of an earlier attempt.
        every: updates between two points of the curves of steps; 0: none.
        samples: clips of a generate stage; 0: none.
    """

    def __init__(
        self,
        folder: Path,
        makers: Mapping[str, Callable[[bool], _Backend]] | None = None,
        *,
        every: int = 0,
        samples: int = 0,
    ) -> None:
        self._folder, self._makers, self._every, self._samples = folder, makers or {}, every, samples
        self._backends: dict[str, _Backend] = {}
        self._marks: dict[str, dict[str, int]] = {}  # by name: the last update and epoch that are written

    @contextmanager
    def opened(
        self, history: Sequence[Mapping[str, Any]], updates: int, stop: Callable[[], object] = lambda: False
    ) -> Iterator[None]:
        """Write within the block; `history` and `updates` are what is done before it, `stop` whether to end soon."""
        found = (read_json(self._folder / LOGGED_FILE) or {}) if self._makers and (history or updates) else {}
        for name, make in self._makers.items():
            mark = found.get(name)
            known = {axis: int(number_in(mark, axis) or 0) for axis in _AXES} if isinstance(mark, dict) else None
            with self._guarded(name):
                self._backends[name] = _made(lambda make=make, known=known: make(known is None), stop)  # type: ignore[misc]
                self._marks[name] = known or dict.fromkeys(_AXES, 0)
        # Those that are off in this run, or fail, go on from there in the next.
        self._marks |= {
            name: mark for name, mark in found.items() if name not in self._marks and isinstance(mark, dict)
        }
        for epoch, stages in enumerate(history, 1):
            self.epoch(epoch, stages)
        try:
            yield
        except BaseException:
            self._close(True, stop)
            raise
        self._close(False, stop)

    def step(self, metrics: Mapping[str, float], update: int) -> None:
        """Write the metrics of a training step, if it is due; updates count from 1 at the start of training."""
        if self._backends and self._every and update % self._every == 0:
            self._write("update", update, {f"step/{name}": value for name, value in metrics.items()})

    def epoch(self, epoch: int, stages: Mapping[str, Mapping[str, float]]) -> None:
        """Write the metrics of the stages of an epoch that is done, and its samples if it has any."""
        if all(epoch <= self._marks[name]["epoch"] for name in self._backends):
            return
        values = {f"{stage}/{name}": value for stage, metrics in stages.items() for name, value in metrics.items()}
        self._write("epoch", epoch, values, self._clips(epoch) if "generate" in stages else [])

    def _write(self, axis: str, position: int, values: Mapping[str, float], clips: Sequence[_Clip] = ()) -> None:
        for name, backend in [*self._backends.items()]:
            if position > self._marks[name][axis]:
                with self._guarded(name):
                    backend.write(axis, position, values, clips)
                    self._marks[name][axis] = position
        try:
            write_json(self._folder / LOGGED_FILE, self._marks, sync=False)
        except OSError as error:  # at worst a resumed run writes points again
            logger.warning("could not write %s: %s", self._folder / LOGGED_FILE, error.strerror)

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Whatever a backend raises switches it off, with one line in the log, and training continues."""
        try:
            yield
        except ImportError as error:
            self._backends.pop(name, None)
            logger.warning("%s is off: %s; %s", name, first_line(error), _EXTRA)
        except Exception as error:
            self._backends.pop(name, None)
            logger.warning("%s is off until this run is resumed: %s", name, first_line(error))

    def _close(self, failed: bool, stop: Callable[[], object]) -> None:
        for name, backend in [*self._backends.items()]:
            with self._guarded(name):
                took_s = _within(lambda backend=backend: backend.close(failed), failed, stop)  # type: ignore[misc]
                if took_s is not None:
                    logger.warning("%s has not ended within %.0f s and is left; %s", name, took_s, backend.leave())
        self._backends = {}

    def _clips(self, epoch: int) -> list[_Clip]:
        """Samples of an epoch, spread over their names; none if they cannot be read."""
        if not self._samples:
            return []
        folder = self._folder / "samples"
        try:
            files = sorted(path for path in (folder / f"epoch_{epoch:04d}").iterdir() if path.suffix in _SUFFIXES)
            chosen = files[:: -(-len(files) // self._samples) or 1]
            return [_clip(path, folder / "reference" / path.name) for path in chosen]
        except Exception as error:  # a logger ends no training
            logger.warning("the samples of epoch %d are not logged: %s", epoch, first_line(error))
            return []


def _made(make: Callable[[], _Backend], stop: Callable[[], object]) -> _Backend:
    """What a function makes; TimeoutError if it is still at it, maybe waiting for a server, some time after a stop."""
    found: list[_Backend] = []
    took_s = _within(lambda: found.append(make()), False, stop)
    if took_s is None:
        return found[0]
    if "wandb" in sys.modules:
        _leave_wandb()
    raise TimeoutError(f"it has not begun within {took_s:.0f} s")


def _within(end: Callable[[], None], hurried: bool, stop: Callable[[], object]) -> float | None:
    """Call a function, at most for so long that a scheduler which stops this process need not kill it.

    Returns None when it has ended, raising what it raised; else the seconds after which it was left in a thread.
    """
    errors: list[Exception] = []

    def run() -> None:
        try:
            end()
        except Exception as error:
            errors.append(error)

    thread, began = threading.Thread(target=run, daemon=True), time.monotonic()
    thread.start()
    deadline = began + (_STOP_S if hurried else _END_S)
    while thread.is_alive() and (now := time.monotonic()) < deadline:
        if not hurried and stop():
            hurried, deadline = True, min(deadline, now + _STOP_S)
        thread.join(0.1)
    if errors:
        raise errors[0]
    return time.monotonic() - began if thread.is_alive() else None


def get_run_log(cfg: DictConfig, cfg_text: str, xp: XP, updates_per_epoch: int) -> RunLog:
    """What `logging` of a configuration has switched on; of a run that was frozen before, with today's defaults."""
    options = settings(cfg.logging)
    if not flashy.distrib.is_rank_zero():
        return RunLog(Path(xp.folder))
    makers: dict[str, Callable[[bool], _Backend]] = {}
    if options.get("log_tensorboard"):
        makers["TensorBoard"] = lambda anew: _TensorBoard(
            Path(xp.folder), _about(cfg_text, xp, updates_per_epoch), anew
        )
    if options.get("log_wandb"):
        wandb = options.get("wandb") or {}
        makers["Weights & Biases"] = lambda anew: _WandB(
            Path(xp.folder), _about(cfg_text, xp, updates_per_epoch), anew, **wandb
        )
    return RunLog(Path(xp.folder), makers, every=options.get("every", 100), samples=options.get("samples", 4))


def _about(cfg_text: str, xp: XP, updates_per_epoch: int) -> _About:
    grids = sorted(link.parent.name for link in (Path(xp.dora.dir) / "grids").glob(f"*/{xp.sig}"))
    overrides = [word for word in xp.argv if re.split(r"[.=@]", word.lstrip("+~"))[0] not in LOCAL_SECTIONS]
    return _About(xp.sig, grids, current_commit(), overrides, updates_per_epoch, yaml.safe_load(cfg_text))


class _TensorBoard:
    """Event files in `tensorboard/` of the experiment."""

    def __init__(self, folder: Path, about: _About, anew: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Purging from 0 hides the points of an earlier attempt, whose files stay.
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=0 if anew else None)
        text = {"signature": about.sig, "grid": ", ".join(about.grids), "commit": about.commit}
        text |= {"overrides": " ".join(about.overrides)}
        lines = [f"- {name}: `{value}`" for name, value in text.items() if value]
        block = yaml.safe_dump(about.config, sort_keys=False).replace("\n", "\n    ")
        self._writer.add_text("experiment", "\n".join([*lines, "", f"    {block}"]), 0)

    def write(self, axis: str, position: int, values: Mapping[str, float], clips: Sequence[_Clip]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, position)
        for clip in clips:
            for take, (_, wav) in clip.takes.items():  # it plays one channel
                mono = wav.mean(axis=0).clip(-1, 1)
                self._writer.add_audio(f"{clip.name}/{take}", mono, position, sample_rate=clip.sample_rate)
            self._writer.add_image(f"{clip.name}/spectrogram", clip.spectrogram, position, dataformats="HWC")
        self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()

    def leave(self) -> str:
        return "the last points may be missing"


class _WandB:
    """A run of Weights & Biases whose id and name are the signature, in `wandb/` of the experiment.

    Curves have the axes `update` and `epoch`. The steps of Weights & Biases, which must grow, are by the updates done,
    so that those of a resumed run, also of one that is uploaded later in parts, come after those before it.
    """

    def __init__(
        self,
        folder: Path,
        about: _About,
        anew: bool,
        *,
        mode: Literal["offline", "online"] = "offline",
        project: str = "audiotok",
        entity: str | None = None,
    ) -> None:
        import wandb

        logging.getLogger("wandb").propagate = False  # it describes all it does, the configuration included
        self._wandb: Any = wandb
        self._updates_per_epoch = about.updates_per_epoch
        # Of the machine only what the run itself logs goes out: no arguments, packages, source, output or git remote,
        # whose address may hold a password.
        quiet = wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, save_code=False, x_disable_meta=True,
            x_disable_machine_info=True, x_save_requirements=False, x_transaction_log_flush_interval=_FLUSHED_S,
        )  # fmt: skip
        origin = {"signature": about.sig, "grids": about.grids, "commit": about.commit, "overrides": about.overrides}
        self._run: Any = wandb.init(
            dir=str(folder), mode=mode, project=project, entity=entity, id=about.sig, name=about.sig,
            group=about.grids[0] if about.grids else None, config={**about.config, "experiment": origin},
            resume=None if anew or mode == "offline" else "allow", reinit="create_new", settings=quiet,
        )  # fmt: skip
        self._files = self._run.settings.sync_dir
        for axis in _AXES:
            self._run.define_metric(axis, hidden=True)
        self._run.define_metric("*", step_metric="epoch")
        self._run.define_metric("step/*", step_metric="update")

    def write(self, axis: str, position: int, values: Mapping[str, float], clips: Sequence[_Clip]) -> None:
        media = {}
        for clip in clips:
            for take, (path, _) in clip.takes.items():
                media[f"{clip.name}/{take}"] = self._wandb.Audio(str(path), sample_rate=clip.sample_rate)
            media[f"{clip.name}/spectrogram"] = self._wandb.Image(clip.spectrogram)
        # The place of an epoch is after that of its last update. A process of its own writes, `_FLUSHED_S` later.
        step = 2 * position if axis == "update" else 2 * position * self._updates_per_epoch + 1
        self._run.log({axis: position, **values, **media}, step=step, commit=True)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))

    def leave(self) -> str:
        _leave_wandb()
        return f"`wandb sync {self._files}` uploads the rest"


def _leave_wandb() -> None:
    """Have the exit of this process not wait for the package, which it does unless it is being taken down by then."""
    import wandb

    thread = threading.Thread(target=wandb.teardown, kwargs={"exit_code": 1}, daemon=True)
    thread.start()
    thread.join(1.0)


def _clip(estimate: Path, reference: Path) -> _Clip:
    """A sample with its reference, where there is one; DataError if a file cannot be read."""
    files = ([("reference", reference)] if reference.is_file() else []) + [("estimate", estimate)]
    takes, rate = {}, 0
    for name, path in files:
        wav, rate = read_audio(path)
        takes[name] = path, wav.numpy()
    return _Clip(f"samples/{estimate.stem}", takes, rate, _spectrogram([wav for _, wav in takes.values()], rate))


def _spectrogram(wavs: Sequence[np.ndarray[Any, np.dtype[np.float32]]], sample_rate: int) -> Image:
    """Spectrograms of signals [C, T] one above the other, in the colours of the first."""
    from matplotlib import colormaps

    from audiotok.report.listening import RANGE_DB, power_spectrogram

    seconds = max(wav.shape[-1] for wav in wavs) / sample_rate
    powers = [
        power_spectrogram(wav.mean(axis=0).astype(np.float64), sample_rate, seconds=seconds, highest_hz=sample_rate / 2)
        for wav in wavs
    ]
    loudest = max(float(powers[0].max()), 1e-20)
    levels = [1 + 10 * np.log10(np.maximum(power, 1e-20) / loudest) / RANGE_DB for power in powers]
    image: Image = colormaps["magma"](np.concatenate([level[::-1] for level in levels]).clip(0, 1), bytes=True)
    return image[..., :3]
