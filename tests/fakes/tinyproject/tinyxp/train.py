"""An experiment that writes metrics, takes its time and ends as it is told; launched and stopped as the real one is.

What it computes depends on every step that came before, so that a step done twice or left out shows in its metrics.
Each process that works on it leaves a file in `runs/`, renewed with each step: so two at once show too.
"""

import os
import resource
import signal
import subprocess as sp
import sys
import time
from pathlib import Path
from typing import Any

from dora.xp import get_xp

from audiotok.errors import AudiotokError, ConfigError, DataError, DivergedError
from audiotok.experiments import experiment_main
from audiotok.launchers.dora_patches import install
from audiotok.status import StatusWriter, job_identity, read_json, write_json

SEEN = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "WORLD_SIZE", "SLURM_CPUS_PER_TASK", "SLURM_JOB_NUM_NODES")
STOPPED = 128 + signal.SIGTERM
DIVERGED = 3
_asked_to_stop = False


@experiment_main(config_name="config", config_path="config", version_base="1.3")
def main(cfg: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN if cfg.end == "stubborn" else _stop)
    status = StatusWriter(get_xp().folder, epochs=cfg.optim.epochs)
    try:
        if cfg.data == "nowhere":
            raise DataError("no manifest nowhere")
        training = Training(cfg, status)
        status.start(epoch=training.epoch)
        training.run()
        end(cfg)
    except BaseException as error:
        status.end(*ending(error))
        if isinstance(error, DivergedError):
            sys.exit(DIVERGED)
        raise
    status.end("COMPLETED")


def ending(error: BaseException) -> tuple[str, str, str]:
    """State, reason and kind, as `audiotok.train` tells them."""
    if isinstance(error, SystemExit):
        return "INTERRUPTED", "stopped by a signal; the same command resumes it", "interrupted"
    if isinstance(error, DivergedError):
        return "DIVERGED", str(error), "diverged"
    if isinstance(error, AudiotokError):
        return "FAILED", str(error), "config" if isinstance(error, ConfigError) else "data"
    return "FAILED", f"{type(error).__name__}: {error}", "error"


def _stop(*_: object) -> None:
    global _asked_to_stop
    _asked_to_stop = True


class Training:
    """Steps and epochs, from where the last process left them."""

    def __init__(self, cfg: Any, status: StatusWriter) -> None:
        self.cfg, self.status, self.xp = cfg, status, get_xp()
        self.folder = Path(self.xp.folder)
        kept = read_json(self.folder / "progress.json") or {"epoch": 0, "step": 0, "value": 0, "history": []}
        self.epoch, self.step, self.value = int(kept["epoch"]), int(kept["step"]), int(kept["value"])
        if os.environ.get("RANK", "0") != "0":  # Dora tells ranks apart by torch.distributed, which is not there
            self.xp.link.history_file = None
        self.xp.link.update_history(kept["history"])
        launcher, job_id = job_identity(os.environ)
        self.seen: dict[str, Any] = {
            "began": time.time(),
            "from": [self.epoch, self.step],
            "pid": os.getpid(),
            "host": os.environ.get("SLURMD_NODENAME", "here"),
            "python": sys.executable,
            "launcher": launcher,
            "job_id": job_id,
            "restart": os.environ.get("SLURM_RESTART_COUNT", "0"),
            "memory": os.environ.get("SLURM_MEM_PER_NODE"),
        }
        self.log = self.folder / "runs" / f"{time.time_ns()}-{os.getpid()}.json"
        self.log.parent.mkdir(exist_ok=True)
        self.earlier = len(list(self.log.parent.iterdir()))

    def run(self) -> None:
        self.beat()
        for _ in range(self.cfg.children):
            sp.Popen(["sleep", "600"], cwd=self.folder)
        where = f"epoch {self.epoch} step {self.step}"
        print(f"index {self.cfg.index} here in {Path.cwd()}, from {where}", flush=True)
        use_memory(self.cfg)
        while self.epoch < self.cfg.optim.epochs:
            time.sleep(self.cfg.seconds / self.cfg.optim.epochs / self.cfg.steps)
            if self.may_step():
                self.value = following(self.value, self.cfg.index)
                self.step += 1
            if self.step == self.cfg.steps:
                self.finish_epoch()
            self.beat()
            if _asked_to_stop:
                self.save()
                print(f"stopped in epoch {self.epoch} after step {self.step}", flush=True)
                sys.exit(STOPPED)
        environ = {name: os.environ.get(name) for name in SEEN}
        write_json(
            self.folder / "span.json",
            {"began": self.seen["began"], "ended": time.time(), "environ": environ, "argv": list(self.xp.argv)},
        )

    def may_step(self) -> bool:
        """False in the middle of the second epoch while the experiment is to be struck by another fault."""
        return self.earlier >= self.cfg.faults or (self.epoch, self.step) != (1, self.cfg.steps // 2)

    def finish_epoch(self) -> None:
        self.epoch, self.step = self.epoch + 1, 0
        metrics = {"train": {"value": self.value}, "valid": {"loss": 1.0 / self.epoch + self.cfg.index}}
        self.xp.link.push_metrics(metrics)
        self.status.beat(epoch=self.epoch)
        self.save()

    def save(self) -> None:
        progress = {"epoch": self.epoch, "step": self.step, "value": self.value, "history": self.xp.link.history}
        write_json(self.folder / "progress.json", progress)

    def beat(self) -> None:
        write_json(self.log, {**self.seen, "to": [self.epoch, self.step], "beat": time.time()}, sync=False)


def following(value: int, index: int) -> int:
    """Return the value after one more step."""
    return (value * 1103515245 + 12345 + index) % 2**31


def use_memory(cfg: Any) -> None:
    """Take the memory that the experiment needs, where no more may be had than the job was given."""
    granted_mb = float(os.environ.get("SLURM_MEM_PER_NODE", "inf"))
    if cfg.end == "oom" or cfg.need_mb > granted_mb:
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
        bytearray(2**33)


def end(cfg: Any) -> None:
    """End as the experiment was told to."""
    if cfg.end == "exception":
        raise RuntimeError("told to fail")
    if cfg.end == "mistake":
        raise DataError("no audio in /nowhere; run `audiotok data` first.")
    if cfg.end == "config":
        raise ConfigError(f"index={cfg.index}; choose another.")
    if cfg.end == "diverge":
        raise DivergedError("loss is nan in epoch 2")
    if cfg.end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


# The one place where a project plugs in our launchers.
install(main)

if __name__ == "__main__":
    main()
