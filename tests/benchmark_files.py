"""Where the benchmark files lie on this machine, if they do: they are not in the repository."""

import pytest
from conftest import ROOT

FOLDERS = [ROOT / "data/benchmarks", ROOT / "shared/data/benchmarks", ROOT.parent / "shared/data/benchmarks"]
FOLDER = next((folder for folder in FOLDERS if folder.is_dir()), None)
needs_files = pytest.mark.skipif(
    FOLDER is None, reason="data/benchmarks is not fetched: python scripts/fetch_benchmarks.py"
)
