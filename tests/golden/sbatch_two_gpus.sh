#!/bin/bash

# Parameters
#SBATCH --comment=grid_80c2febe_1
#SBATCH --cpus-per-task=1
#SBATCH --export=ALL
#SBATCH --gres=gpu:2
#SBATCH --job-name=grid_80c2febe_1
#SBATCH --mem=205M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=/outputs/submissions/grid_80c2febe_1/%j_0_log.out
#SBATCH --partition=fast
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=5

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /outputs/submissions/grid_80c2febe_1/%j_%t_log.out --cpus-per-task=1 --kill-on-bad-exit=1 PYTHON -u -m launchers.job.task /outputs/submissions/grid_80c2febe_1
