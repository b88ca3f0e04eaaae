#!/usr/bin/env bash
# Builds the documentation into site/, or serves it on this machine alone; installs MkDocs Material where it is missing.
#
#   scripts/docs.sh build|serve [folder of the environment] [options of mkdocs]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

verb=${1:?build or serve}
venv=${2:-.venv}
source scripts/uv_env.sh "$venv"
VIRTUAL_ENV=$venv "$venv/bin/uv" pip install --quiet --no-deps -r requirements/docs.txt
export NO_MKDOCS_2_WARNING=1 # a notice about a release that is not pinned here
if [[ $verb == serve ]]; then
  exec "$venv/bin/python" -m mkdocs serve --dev-addr 127.0.0.1:8000 "${@:3}"
fi
exec "$venv/bin/python" -m mkdocs build --strict --clean "${@:3}"
