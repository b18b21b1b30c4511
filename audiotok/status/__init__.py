"""The state of an experiment, from its scheduler and from the three files of its folder; times are unix seconds.

- `job.json`, by the launcher that submitted the job: launcher, job_id, submitted; `needs`, the ids of the jobs that it
  waits for, by the signatures of their experiments; `cancelled` (time) once one of our commands cancelled it; `verdict`
  {state, reason, time} once its end is known. A local job's holds all of its record, with state and lock
  (`launchers.local.queue.JobRecord`); a SLURM job's the token of its submission, the cluster, and the uid of its user.
- `task.json`, by the parent of the training process inside a SLURM job: job_id, token, attempt, started, updated
  (heartbeat), ended, state (RUNNING, REQUEUED, or how it ended), reason, exit_code.
- `status.json`, by the trainer: state (RUNNING, COMPLETED, FAILED, DIVERGED or INTERRUPTED), reason, kind (one of
  KINDS: what kind of reason), launcher (its name, or none), job_id, token, host, pid, started, updated, ended,
  epoch (epochs finished), epochs (requested), update (updates done in the current epoch), updates_per_epoch, epoch_s
  (mean duration of an epoch so far, in s), warning (signs of trouble in the training, "" for none), commit (of the
  code), world_size and gpus (of the run).
"""

from audiotok.files import read_json, write_json
from audiotok.status.amendments import AMENDED_FILE
from audiotok.status.judge import experiment_state
from audiotok.status.state import JOB_FILE, STATUS_FILE, TASK_FILE, SchedulerWord, State, Verdict, read_status, same_job
from audiotok.status.writer import KINDS, StatusWriter, job_identity

__all__ = [
    "AMENDED_FILE",
    "JOB_FILE",
    "KINDS",
    "STATUS_FILE",
    "TASK_FILE",
    "SchedulerWord",
    "State",
    "StatusWriter",
    "Verdict",
    "experiment_state",
    "job_identity",
    "read_json",
    "read_status",
    "same_job",
    "write_json",
]
