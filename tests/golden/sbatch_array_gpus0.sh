#!/bin/bash

# Parameters
#SBATCH --array=0-3%4
#SBATCH --cpus-per-task=1
#SBATCH --job-name=tinyxp_array_368ed012
#SBATCH --mem=103M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=OUTPUTS/arrays/tinyxp_array_368ed012/%A_%a_0_log.out
#SBATCH --signal=USR2@90
#SBATCH --time=5
#SBATCH --wckey=submitit

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output OUTPUTS/arrays/tinyxp_array_368ed012/%A_%a_%t_log.out --cpus-per-task=1 --kill-on-bad-exit=1 PYTHON -u -m submitit.core._submit OUTPUTS/arrays/tinyxp_array_368ed012
