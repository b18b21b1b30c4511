"""An experiment that writes metrics, takes its time and ends as it is told; launched as the real one is."""

import json
import os
import signal
import subprocess as sp
import time
from pathlib import Path
from typing import Any

from dora.hydra import hydra_main
from dora.xp import get_xp

from audiotok.errors import DataError
from audiotok.status import StatusWriter
from launchers.hooks import install

SEEN = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "WORLD_SIZE", "SLURM_CPUS_PER_TASK", "SLURM_JOB_NUM_NODES")


@hydra_main(config_name="config", config_path="config", version_base="1.3")  # type: ignore[untyped-decorator]
def main(cfg: Any) -> None:
    if cfg.end == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    status = StatusWriter(get_xp().folder, epochs=cfg.epochs)
    status.start(epoch=0)
    try:
        train(cfg, status)
    except Exception as error:
        status.end("FAILED", f"{type(error).__name__}: {error}")
        raise
    status.end("COMPLETED")


def train(cfg: Any, status: StatusWriter) -> None:
    xp, began = get_xp(), time.time()
    for _ in range(cfg.children):
        sp.Popen(["sleep", "600"], cwd=xp.folder)
    print(f"index {cfg.index} here in {Path.cwd()}", flush=True)
    for epoch in range(1, cfg.epochs + 1):
        time.sleep(cfg.seconds / cfg.epochs)
        xp.link.push_metrics({"valid": {"loss": 1.0 / epoch + cfg.index}})
        status.beat(epoch=epoch)
    seen = {name: os.environ.get(name) for name in SEEN}
    content = {"began": began, "ended": time.time(), "environ": seen, "argv": list(xp.argv)}
    (Path(xp.folder) / "span.json").write_text(json.dumps(content))
    if cfg.end == "exception":
        raise RuntimeError("told to fail")
    if cfg.end == "mistake":
        raise DataError("no audio in /nowhere; run `audiotok data` first.")
    if cfg.end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)


# The one place where a project plugs in our launchers.
install(main)

if __name__ == "__main__":
    main()
