"""What a job says about itself, for anybody to read, and the one verdict on an experiment from its files alone.

Three files of an experiment folder, none of which needs torch, Dora or a scheduler:

- `job.json`: what the launcher submitted (`launchers.engine.Job`): launcher, job_id, submitted; `cancelled` (unix
  seconds) once one of our commands cancelled it; `verdict` {state, reason, time} once the scheduler told the end.
- `task.json`: what the parent of the training process saw inside the job: job_id, attempt, started, updated (its
  heartbeat), ended, state (RUNNING, REQUEUED, or how it ended in SLURM's words), reason, exit_code.
- `status.json`: what the trainer says itself. Fields (times are unix seconds): state (one of STATES), reason, kind (one
  of KINDS: what kind of reason), launcher (local, slurm or none), job_id, host, pid, started, updated (the heartbeat),
  ended, epoch (epochs finished), epochs (asked for), update (updates done in the current epoch), updates_per_epoch,
  epoch_s (mean duration of an epoch so far, in s), commit (of the code), world_size and gpus (of the run).

`experiment_state` makes one verdict of them.
"""

from audiotok.files import is_locked, read_json, write_json
from audiotok.status.folder import JOB_FILE, STATUS_FILE, TASK_FILE, read_status
from audiotok.status.judge import experiment_state
from audiotok.status.state import State, Verdict
from audiotok.status.writer import KINDS, STATES, StatusWriter, job_identity

__all__ = [
    "JOB_FILE",
    "KINDS",
    "STATES",
    "STATUS_FILE",
    "TASK_FILE",
    "State",
    "StatusWriter",
    "Verdict",
    "experiment_state",
    "is_locked",
    "job_identity",
    "read_json",
    "read_status",
    "write_json",
]
