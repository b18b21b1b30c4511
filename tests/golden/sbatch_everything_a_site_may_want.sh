#!/bin/bash

# Parameters
#SBATCH --account=music@h100
#SBATCH --array=0-2%3
#SBATCH --comment='grid_80c2febe_1 Ada'"'"'s first #grid'
#SBATCH --constraint='h100&nvlink'
#SBATCH --cpus-per-task=12
#SBATCH --exclude='n[3-5],n9'
#SBATCH --exclusive
#SBATCH --export=ALL
#SBATCH --gres=gpu:h100:4
#SBATCH --job-name=grid_80c2febe_1
#SBATCH --mem=409600M
#SBATCH --nice=50
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/outputs/submissions/grid_80c2febe_1/%A_%a_0_log.out
#SBATCH --partition=gpu,gpu-long
#SBATCH --qos=qos_gpu-t3
#SBATCH --requeue
#SBATCH --reservation=course
#SBATCH --signal=USR2@300
#SBATCH --time=2880

# setup
module purge
module load cuda/12.8  # and nothing else
export NAME="a  b"
export AUDIOTOK_CLUSTER=site
export AUDIOTOK_DATASET_PATHS='{"/home/ada/it'"'"'s music": "/scratch/ada/music"}'

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /outputs/submissions/grid_80c2febe_1/%A_%a_%t_log.out --cpus-per-task=12 --kill-on-bad-exit=1 --mpi=none singularity exec --nv /images/codec.sif python3 -u -m launchers.job.task /outputs/submissions/grid_80c2febe_1
