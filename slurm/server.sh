#!/usr/bin/env bash
# What srun starts for each sampler server: server.sh <first port> <arguments>. Not to be submitted.
set -euo pipefail
source slurm/common.sh
# USR1 is for the trainers: a server serves until they have ended, and is started again when it dies. TERM ends it.
trap '' USR1
port=$(($1 + SLURM_PROCID))
shift
if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
  IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
  export CUDA_VISIBLE_DEVICES=${gpus[SLURM_LOCALID]:?a server takes a GPU: lower APR_SERVERS_PER_NODE}
fi
exec "$APR_PYTHON" scripts/serve_sampler.py --host "$(address_of "$SLURMD_NODENAME")" --port "$port" "$@"
