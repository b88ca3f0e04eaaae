#!/usr/bin/env bash
# What srun starts on each node: one torchrun, whose ranks are told to stop by Slurm itself. Not to be submitted.
set -euo pipefail
# Slurm signals every process of a step. Ignored here is ignored in torchrun, which would end its ranks on TERM, in 30
# seconds at most, and die of USR1; the ranks take both for themselves, save, and end.
trap '' USR1 TERM
export APR_STOPPED=${APR_STOPPED:?started by common.sh}.$SLURM_PROCID
rm -f "$APR_STOPPED"
host=false
if ((SLURM_PROCID == 0)); then host=true; fi
code=0
"$APR_PYTHON" -m torch.distributed.run --nnodes="$APR_NODES" \
  --nproc-per-node="${APR_RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}" --signals-to-handle=SIGINT \
  --rdzv-backend=c10d --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="$APR_RENDEZVOUS" --rdzv-conf="is_host=$host" \
  "${APR_SCRIPT:-scripts/train.py}" "$@" || code=$?
# torchrun says 1 whatever its ranks said. That they were told to stop is no failure, for which srun would kill others.
if [[ -e $APR_STOPPED ]]; then exit 0; fi
exit "$code"
