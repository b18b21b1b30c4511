"""Run an experiment with its frozen configuration, without Hydra.

So `hydra.*` settings have no effect, there is no `HydraConfig`, and the current folder stays. The log and the `.hydra/`
files are written here, for tools that read them.
"""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dora.xp import XP
from hydra import __version__ as hydra_version
from omegaconf import OmegaConf

from audiotok.config_text import LOCAL_SECTIONS, escaped
from audiotok.errors import LaunchError
from audiotok.files import NoLocksError, hold_lock, read_json, shown, write_text
from audiotok.status import JOB_FILE, State, experiment_state, read_status
from audiotok.text import number_in

LEAVING_S = 5.0  # what an earlier run has started, such as readers of data, ends within this time


@contextlib.contextmanager
def alone(xp: XP) -> Iterator[None]:
    """Keep a second run by hand off an experiment for the length of the block; jobs look after themselves.

    Raises:
        LaunchError: if a job of it waits or runs, or another run by hand is under way.
    """
    if _rank() != 0 or xp.cfg.get("show"):
        yield
        return
    job, status = read_json(xp.folder / JOB_FILE) or {}, read_status(xp.folder) or {}
    is_later = (number_in(status, "started") or 0.0) > (number_in(job, "submitted") or 0.0)
    verdict = None if not job or (is_later and status.get("job_id") is None) else experiment_state(xp.folder)
    if verdict is not None and verdict.state.live:
        also = f"`dora info -f {xp.sig} -t` follows it, `dora info -f {xp.sig} -C` cancels it"
        raise LaunchError(f"job {job.get('job_id')} of experiment {xp.sig} is {verdict.state}; {also}.")
    lock = xp.folder / "run.lock"
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(hold_lock(lock, patience_s=LEAVING_S))
        except NoLocksError:
            held = True
        if not held:
            raise LaunchError(
                f"another process runs experiment {xp.sig} in {shown(xp.folder)}; wait for it, or end it."
            )
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                lock.unlink()


def run_frozen(xp: XP, main: Callable[..., Any], job_name: str, config_name: str) -> Any:
    """Call the training function with the configuration of an experiment, whose folder must exist.

    Args:
        xp: the experiment.
        main: the training function, whose result is returned.
        job_name: as Hydra has it; names the log.
        config_name: as Hydra has it.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    is_first = _rank() == 0
    if is_first:
        _write_hydra_files(xp, job_name, config_name)
        handlers.append(logging.FileHandler(xp.folder / f"{job_name}.log"))
    form = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"  # Hydra's
    logging.basicConfig(level=logging.INFO, format=form, handlers=handlers)
    began = time.time()
    if is_first:
        _say(f"experiment {xp.sig} runs in {shown(xp.folder)}")
    try:
        return main(xp.cfg)
    finally:
        if is_first:
            _say(_ending(xp, began))


def _rank() -> int:
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def _ending(xp: XP, began: float) -> str:
    """How the run ended, by its `status.json`; where it writes none, as to look at the model, just where it ran."""
    status, folder = read_status(xp.folder) or {}, shown(xp.folder)
    if (number_in(status, "started") or 0.0) < began:
        return f"experiment {xp.sig} is in {folder}"
    state, reason = State.of(status.get("state")), " ".join(str(status.get("reason") or "").split())
    text = f"experiment {xp.sig} {state} in {folder}{f': {reason}' if reason else ''}"
    if state in (State.COMPLETED, State.DIVERGED) or "the same command resumes" in text:
        return text
    advice = "when that is corrected, " if status.get("kind") in ("config", "data") else ""
    return f"{text.rstrip('.')}; {advice}the same command resumes"


def _write_hydra_files(xp: XP, job_name: str, config_name: str) -> None:
    folder = xp.folder / ".hydra"
    folder.mkdir(exist_ok=True)
    runtime = {"version": hydra_version, "cwd": str(Path.cwd()), "output_dir": str(xp.folder)}
    hydra = {
        "overrides": {"hydra": [], "task": list(xp.argv)},
        "job": {"name": job_name, "config_name": config_name},
        "runtime": {**runtime, "choices": getattr(xp, "choices", {})},
    }
    shared = OmegaConf.masked_copy(xp.cfg, [key for key in xp.cfg if key not in LOCAL_SECTIONS])
    write_text(folder / "config.yaml", OmegaConf.to_yaml(shared))
    write_text(folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(escaped(list(xp.argv)))))
    write_text(folder / "hydra.yaml", OmegaConf.to_yaml(OmegaConf.create({"hydra": escaped(hydra)})))
