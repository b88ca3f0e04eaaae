"""What every test shares: one thread a process, no network, the same random examples each time."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# Before anything imports torch or vLLM, which read these once. Child processes inherit them.
os.environ.update(
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    WANDB_MODE="offline",
    VLLM_NO_USAGE_STATS="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    PYTHONPATH=os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
)
for launcher in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
    os.environ.pop(launcher, None)

settings.register_profile("project", derandomize=True, deadline=None, database=None)
settings.load_profile("project")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def warm_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that is right now and then, so that there is a gradient to get wrong."""
    from real_runs import MODEL, SFT, start

    folder = tmp_path_factory.mktemp("policy") / "warm"
    start(folder, *MODEL, *SFT)
    return folder / "sft"


@pytest.fixture(scope="session")
def seconds_table() -> Iterator[None]:
    """Prints what the chaos tests have measured."""
    yield
    from chaos import table

    print(f"\n{table()}")
