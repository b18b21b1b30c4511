#!/bin/bash

# Parameters
#SBATCH --array=0-1%2
#SBATCH --comment=grid_80c2febe_1
#SBATCH --export=ALL
#SBATCH --job-name=grid_80c2febe_1
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/outputs/submissions/grid_80c2febe_1/%A_%a_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1200

# command
export SUBMITIT_EXECUTOR=slurm
audiotok_code=0
srun --unbuffered --output /outputs/submissions/grid_80c2febe_1/%A_%a_%t_log.out --kill-on-bad-exit=1 --container-image 'nvcr.io#nvidia/pytorch:24.01-py3' --container-mounts /project:/project,/outputs:/outputs,/data:/data --container-workdir /project python3 -u -m launchers.job.task /outputs/submissions/grid_80c2febe_1 || audiotok_code=$?
# In a container there is no scontrol: a task that ends with 200 leaves the requeue of its job to this shell
if ((audiotok_code == 200)); then
  id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  id=${id:-$SLURM_JOB_ID}
  until shown=$(scontrol show job -o "$id"); do sleep 2; done
  if [[ $shown == *" JobState=RUNNING "* ]]; then scontrol requeue "$id" && sleep 900; fi
fi
exit "$audiotok_code"
