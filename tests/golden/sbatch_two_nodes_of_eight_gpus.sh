#!/bin/bash

# Parameters
#SBATCH --comment=grid_80c2febe_1
#SBATCH --cpus-per-task=10
#SBATCH --export=ALL
#SBATCH --gres=gpu:8
#SBATCH --job-name=grid_80c2febe_1
#SBATCH --mem=491520M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/outputs/submissions/grid_80c2febe_1/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=4320

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /outputs/submissions/grid_80c2febe_1/%j_%t_log.out --cpus-per-task=10 --kill-on-bad-exit=1 PYTHON -u -m launchers.job.task /outputs/submissions/grid_80c2febe_1
