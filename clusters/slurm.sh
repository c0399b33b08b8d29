#!/bin/bash
# One study on a Slurm allocation: every machine starts Ray, the first one runs the study, and all stop when it ends.
#   sbatch clusters/slurm.sh quick --gpus-per-trial 0.25          from the project's folder, on a file system that all machines share
# The same command again continues a study that ran out of time. Lines that you must change end in CHANGE.
#SBATCH --job-name=scaling-study
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=1                   # CHANGE: as many as a machine has
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail
source .venv/bin/activate                   # CHANGE: where the project is installed, made with: make .venv/.installed
export RAY_AUTH_MODE=token                  # the machines share ~/.ray/auth_token; other users of the network are refused
ray get-auth-token --generate > /dev/null
export RAY_USAGE_STATS_ENABLED=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300  # half a minute, Ray's own, is short for a slow file system
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | awk 'NR == 1')  # which reads to the end: a program whose reader is gone ends the job
address=$(getent ahostsv4 "$head" | awk 'NR == 1 {print $1}')
port=$((20000 + SLURM_JOB_ID % 10000))      # jobs that share a network must not meet
# NVIDIA's MPS, with which trials that share a GPU run at the same time; it goes with the job. mps=true instead: they take turns.
mps='mkdir -p "$CUDA_MPS_PIPE_DIRECTORY"; nvidia-cuda-mps-control -d'
export CUDA_MPS_PIPE_DIRECTORY=/tmp/mps-$SLURM_JOB_ID CUDA_MPS_LOG_DIRECTORY=/tmp/mps-$SLURM_JOB_ID
# ray symmetric-run ends with `ray stop`, which ends every Ray process of yours on the machine: hence --exclusive.
exec srun --kill-on-bad-exit=1 bash -c "$mps; "'exec "$@"' bash \
  ray symmetric-run --address "$address:$port" --min-nodes "$SLURM_JOB_NUM_NODES" -- python -m study.run "$@" --address "$address:$port"
