"""Makes room: running jobs write a checkpoint, end, and wait in the queue to go on (`audiotok requeue`)."""

from collections.abc import Sequence

from audiotok.errors import LaunchError
from audiotok.launchers.engine import LIVE_STATES, job_of
from audiotok.launchers.shepherd import GridShepherd


def requeue(shepherd: GridShepherd, sigs: Sequence[str]) -> list[str]:
    """Stop the running jobs of experiments with a checkpoint and queue them again.

    Returns:
        Their job ids.

    Raises:
        ConfigError: if there is no experiment of a signature.
        LaunchError: if a job does not run, or cannot be queued again.
    """
    jobs = {sig: job_of(shepherd.get_sheep_from_sig(sig).xp.folder) for sig in dict.fromkeys(sigs)}
    shepherd.update()
    for sig, job in jobs.items():
        state = "no job" if job is None else shepherd.verdict(job).state
        if job is None or state not in LIVE_STATES:
            raise LaunchError(f"{sig} has {state}; only a job that runs can be queued again (`dora grid --retry`).")
    running = [job for job in jobs.values() if job is not None and shepherd.verdict(job).state != "PENDING"]
    for name, engine in shepherd.engines.items():
        engine.requeue([job for job in running if job.engine == name])
    return [job.job_id for job in running]
