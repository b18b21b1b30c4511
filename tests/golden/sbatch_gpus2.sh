#!/bin/bash

# Parameters
#SBATCH --cpus-per-task=1
#SBATCH --gres=gpu:2
#SBATCH --job-name=tinyxp_80c2febe
#SBATCH --mem=205M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --open-mode=append
#SBATCH --output=OUTPUTS/xps/80c2febe/submitit/%j_0_log.out
#SBATCH --partition=fast
#SBATCH --signal=USR2@90
#SBATCH --time=5
#SBATCH --wckey=submitit

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output OUTPUTS/xps/80c2febe/submitit/%j_%t_log.out --cpus-per-task=1 --kill-on-bad-exit=1 PYTHON -u -m submitit.core._submit OUTPUTS/xps/80c2febe/submitit
