#!/bin/bash

# Parameters
#SBATCH --comment=grid_80c2febe_1
#SBATCH --cpus-per-task=3
#SBATCH --export=ALL
#SBATCH --gpus-per-node=a100:4
#SBATCH --job-name=grid_80c2febe_1
#SBATCH --mem-per-cpu=2560M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/outputs/submissions/grid_80c2febe_1/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1200

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
source /etc/profile.d/site.sh
trap - DEBUG ERR
audiotok_ready=1

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /outputs/submissions/grid_80c2febe_1/%j_%t_log.out --cpus-per-task=3 --kill-on-bad-exit=1 PYTHON -u -m launchers.job.task /outputs/submissions/grid_80c2febe_1
