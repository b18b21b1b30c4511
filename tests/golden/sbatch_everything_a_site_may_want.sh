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
trap '((LINENO == 1)) || audiotok_line=$LINENO' DEBUG
audiotok_fail() {
  local code=$1 line
  [[ -z ${audiotok_ready-} ]] || return "$code"
  mapfile -t -s $((audiotok_line - 1)) -n 1 line <"$0"
  echo "error: setup line $2 (exit code $code): ${line[0]-}" >&2
  trap - EXIT
  exit $((code ? code : 1))
}
trap 'audiotok_code=$?; [[ ${#BASH_SOURCE[@]} != 1 ]] || audiotok_fail "$audiotok_code" failed' ERR
trap 'audiotok_fail $? "ended the script before the training"' EXIT
module purge
module load cuda/12.8  # and nothing else
export NAME="a  b"
trap - DEBUG ERR
audiotok_ready=1
export AUDIOTOK_CLUSTER=site
export AUDIOTOK_DATASET_PATHS='{"/home/ada/it'"'"'s music": "/scratch/ada/music"}'

# command
export SUBMITIT_EXECUTOR=slurm
audiotok_code=0
srun --unbuffered --output /outputs/submissions/grid_80c2febe_1/%A_%a_%t_log.out --cpus-per-task=12 --kill-on-bad-exit=1 --mpi=none singularity exec --nv /images/codec.sif python3 -u -m launchers.job.task /outputs/submissions/grid_80c2febe_1 || audiotok_code=$?
# In a container there is no scontrol: a task that ends with 200 leaves the requeue of its job to this shell
if ((audiotok_code == 200)); then
  id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  id=${id:-$SLURM_JOB_ID}
  until shown=$(scontrol show job -o "$id"); do sleep 2; done
  if [[ $shown == *" JobState=RUNNING "* ]]; then scontrol requeue "$id" && sleep 900; fi
fi
exit "$audiotok_code"
