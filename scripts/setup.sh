#!/usr/bin/env bash
# Makes the virtual environment from a pinned list, once; later runs see the stamp and leave at once.
#
#   scripts/setup.sh [cpu|gpu] [folder]     (make setup EXTRA=gpu VENV=folder does the same)
#
# Without cpu or gpu: what the folder already holds, else cpu.
# A changed list, project file or checkout folder installs again on top; a set-up that was cut short starts over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${2:-.venv}
stamp=$venv/.setup-done
unfinished=$venv/.setup-unfinished
held=$(cat "$unfinished" "$stamp" 2>/dev/null | head -n 1 | cut -d ' ' -f 1) || true
extra=${1:-${held:-cpu}}
list=requirements/$extra.txt
[[ -f $list ]] || { echo "setup: no list $list; EXTRA is cpu or gpu" >&2; exit 2; }
key="$extra $({ echo "$PWD"; cat "$list" pyproject.toml scripts/setup.sh scripts/uv_env.sh; } | sha256sum)"

is_done() { [[ -x $venv/bin/python && ! -e $unfinished && $(cat "$stamp" 2>/dev/null) == "$key" ]]; }
is_done && exit 0

exec 9<scripts/setup.sh # two makes at once: the second waits here, then finds the work done
flock 9
is_done && exit 0

find_python() {
  local candidate
  for candidate in python3.11 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "setup: Python 3.11 is needed and was not found on PATH" >&2
  exit 2
}

if [[ $held != "" && $held != "$extra" && ! -e $unfinished ]]; then
  echo "setup: $venv holds the $held set, and $extra cannot go on top: name another folder (VENV=...) or remove it" >&2
  exit 2
fi

# Only an environment that a set-up left half done, or whose Python is gone, is thrown away: never another folder.
if [[ -e $venv && ! -e $unfinished && ! -e $stamp && ! -e $venv/pyvenv.cfg ]]; then
  echo "setup: $venv exists and is not a virtual environment; name another folder (VENV=...)" >&2
  exit 2
fi
if [[ -e $unfinished ]] || { [[ -e $venv ]] && ! "$venv/bin/python" -c '' 2>/dev/null; }; then
  echo "setup: $venv is unfinished or broken, starting over"
  rm -rf -- "$venv"
fi
echo "setup: $extra environment in $venv (about two minutes, once)"
if [[ ! -e $venv ]]; then
  python=$(find_python)
  mkdir -p "$venv"
  echo "$extra" >"$unfinished"
  "$python" -m venv "$venv" || { echo "setup: '$python -m venv' failed; on Debian: apt-get install python3.11-venv" >&2; exit 2; }
fi
echo "$extra" >"$unfinished"
export VIRTUAL_ENV=$venv
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip --upgrade >/dev/null
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv==0.13.9

source scripts/uv_env.sh "$venv"
export UV_COMPILE_BYTECODE_TIMEOUT=600 # seconds; a busy machine needs more than uv's 60
export DS_BUILD_OPS=0 # DeepSpeed compiles what it needs when it needs it
[[ $extra == cpu ]] || torch_backend=()
uv=$venv/bin/uv
"$uv" pip install --quiet --no-deps --compile-bytecode "${torch_backend[@]}" -r "$list"
"$uv" pip install --quiet --no-deps --no-build-isolation -e .
echo "$key" >"$stamp"
rm -f "$unfinished"
echo "setup: done in ${SECONDS} s"
