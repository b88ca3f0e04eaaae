# What the sbatch scripts share. They source it from the checkout that they were submitted from.
#
# From the environment, all optional:
#   APR_VENV            folder of the environment (.venv)
#   APR_RANKS_PER_NODE  ranks on each node (one a GPU, or one)
#   APR_PORT            port of the rendezvous (from the job's number)
#   APR_REQUEUES        how many requeues in a row may bring nothing (3)
# shellcheck shell=bash
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

# Where Slurm reaches a node; its name alone need not resolve.
address_of() {
  local shown
  shown=$(scontrol show node --oneliner "$1")
  [[ $shown =~ NodeAddr=([^ ]+) ]] || fail "scontrol names no address of node $1"
  echo "${BASH_REMATCH[1]}"
}

# The run's folder comes from its name, never from the time: a requeued job finds what it saved.
# Sets run (the folder) and arguments (for scripts/train.py): the job's name is the run's, unless name= is given.
read_arguments() {
  local name=$SLURM_JOB_NAME argument
  run=
  for argument in "$@"; do
    case $argument in
      name=*) name=${argument#*=} ;;
      output_dir=*) run=${argument#*=} ;;
    esac
  done
  run=${run:-outputs/$name}
  arguments=("$@" "name=$name" "output_dir=$run")
  # A requeued job goes on with what it began, also where its first start was to begin anew.
  if [[ " $* " == *" resume=never "* ]] && ((${SLURM_RESTART_COUNT:-0})); then
    arguments+=(resume=auto)
  fi
}

# One torchrun on each of the given nodes: train <comma-separated nodes> <arguments>. Ends the job.
train() {
  local nodes=$1 code=0 again=$run/start_again
  local -a names
  shift
  mapfile -t names < <(scontrol show hostnames "$nodes")
  APR_RENDEZVOUS=$(address_of "${names[0]}"):${APR_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
  # Where the ranks of node n tell that they were told to stop: <this>.n, on a disk of the node itself, which no cache
  # delays. Node 0 is where this script runs.
  APR_STOPPED=${TMPDIR:-/tmp}/apr-stopped-$SLURM_JOB_ID
  export APR_RENDEZVOUS APR_STOPPED APR_NODES=${#names[@]}
  local stopped=$APR_STOPPED.0
  rm -f "$stopped" "$again"
  echo "$(date --iso-8601=seconds) start ${SLURM_RESTART_COUNT:-0} of $run on $nodes"
  srun --nodes="$APR_NODES" --ntasks="$APR_NODES" --ntasks-per-node=1 --nodelist="$nodes" \
    --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=1 \
    slurm/node.sh "$@" || code=$?
  if ((code == 0)) && [[ -e $stopped ]]; then
    local reached
    reached=$(<"$stopped")
    rm -f "$stopped"
    requeue "told to stop and saved" "$reached"
  fi
  # A rank ran out of memory and wrote down how all are to cut their micro-batches from the next start on.
  if ((code)) && [[ -e $again ]]; then
    requeue "ended to start again" "$(<"$again")"
  fi
  exit "$code"
}

# Starts the job again, unless that has brought nothing several times in a row.
requeue() {
  local why=$1 reached=$2 count=0 before=
  if [[ -e $run/requeues ]]; then
    read -r count before <"$run/requeues"
  fi
  if [[ $reached == "$before" ]]; then count=$((count + 1)); else count=0; fi
  if ((count >= ${APR_REQUEUES:-3})); then
    rm -f "$run/requeues" # a start by hand has all its chances again
    echo "error: $count requeues in a row came no further than: $reached; raise --time" >&2
    exit 85
  fi
  echo "$count $reached" >"$run/requeues"
  echo "$(date --iso-8601=seconds) $why: $reached; requeued"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}

[[ -x ${APR_VENV:-.venv}/bin/python ]] || fail "no environment in ${APR_VENV:-.venv}: make setup, or set APR_VENV"
export APR_PYTHON=${APR_VENV:-.venv}/bin/python OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
