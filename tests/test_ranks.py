"""The update does not know how many ranks made it, nor which ZeRO stage: real processes, gloo, DeepSpeed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainers import gradient_norms, make_trainer

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights after two steps of one rank without DeepSpeed, row by row."""
    trainer = make_trainer(tmp_path_factory.mktemp("alone"), packed=False)
    trainer.train()
    weights = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    return weights | {"gradient norms": torch.tensor(gradient_norms(trainer))}


def weights_of(tmp_path: Path, ranks: int, stage: str, packed: str, **algorithm: str) -> dict[str, torch.Tensor]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += [str(HERE / "two_ranks_update.py"), stage, packed, str(tmp_path / "weights.pt"), json.dumps(algorithm)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(tmp_path / "weights.pt", weights_only=True)


@pytest.mark.parametrize(
    ("ranks", "stage", "packed"),
    [
        (2, "none", "packed"),
        (2, "3", "packed"),
        pytest.param(1, "0", "packed", marks=pytest.mark.slow),
        pytest.param(1, "1", "packed", marks=pytest.mark.slow),
        pytest.param(2, "1", "packed", marks=pytest.mark.slow),
        pytest.param(2, "2", "packed", marks=pytest.mark.slow),
        pytest.param(2, "2", "rows", marks=pytest.mark.slow),
    ],
)
def test_ranks_and_zero_stages_lead_to_the_same_weights(
    tmp_path: Path, alone: dict[str, torch.Tensor], ranks: int, stage: str, packed: str
) -> None:
    found, norms = weights_of(tmp_path, ranks, stage, packed), alone["gradient norms"]
    assert found.keys() == alone.keys()
    # Adam hides a gradient scaled by the number of ranks or micro-batches; its norm does not. (Stage 0 reports none.)
    reported = found.pop("gradient norms")
    assert torch.allclose(reported, norms, rtol=1e-4) if stage != "0" else not len(reported)
    together = torch.cat([tensor.flatten() for tensor in found.values()])
    expected = torch.cat([alone[name].flatten() for name in found])
    assert float((together - expected).norm() / expected.norm()) < 1e-4


def test_what_is_taken_over_the_whole_step_is_taken_over_all_ranks(tmp_path: Path) -> None:
    """The batch's deviation and APR's counts of tokens and trajectories: a rank's own would be others."""
    algorithm = {"scale_rewards": "batch", "credit": "per_call_mean"}
    trainer = make_trainer(tmp_path / "alone", packed=True, **algorithm)
    trainer.train()
    norms = gradient_norms(trainer)
    assert weights_of(tmp_path, 2, "none", "packed", **algorithm)["gradient norms"].tolist() == pytest.approx(
        norms, rel=1e-4
    )
