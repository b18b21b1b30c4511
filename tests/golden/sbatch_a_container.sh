#!/bin/bash

# Parameters
#SBATCH --comment=grid_80c2febe_1
#SBATCH --cpus-per-task=10
#SBATCH --export=ALL
#SBATCH --gres=gpu:1
#SBATCH --job-name=grid_80c2febe_1
#SBATCH --mem=40960M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/outputs/submissions/grid_80c2febe_1/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1200

# setup
export AUDIOTOK_DATASET_PATHS='{"/home/ada/music": "/scratch/ada/music"}'

# command
export SUBMITIT_EXECUTOR=slurm
audiotok_code=0
srun --unbuffered --output /outputs/submissions/grid_80c2febe_1/%j_%t_log.out --cpus-per-task=10 --kill-on-bad-exit=1 $(command -v apptainer || command -v singularity || echo apptainer) exec --nv --bind /project --bind /outputs --bind /scratch/ada/music --bind /data --bind /here:/there:ro --pwd /project /images/codec.sif python3 -u -m launchers.job.task /outputs/submissions/grid_80c2febe_1 || audiotok_code=$?
# In a container there is no scontrol: a task that ends with 200 leaves the requeue of its job to this shell
if ((audiotok_code == 200)); then
  id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  id=${id:-$SLURM_JOB_ID}
  until shown=$(scontrol show job -o "$id"); do sleep 2; done
  if [[ $shown == *" JobState=RUNNING "* ]]; then scontrol requeue "$id" && sleep 900; fi
fi
exit "$audiotok_code"
