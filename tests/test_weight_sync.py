"""After an update each rank's sampler has what was trained: every ZeRO stage, with an offloaded optimizer, with LoRA.

Real processes, gloo, DeepSpeed; what was trained is read off the optimizer's own copies, not as the sync reads it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from trainers import PreparedSampler, adapted, make_trainer, tiny_model

HERE = Path(__file__).parent
CASES = [(stage, "here", kind) for stage in ("none", "0", "1", "2", "3") for kind in ("full", "lora")]
CASES += [(stage, "offload", kind) for stage in ("1", "2", "3") for kind in ("full", "lora")]
CASES += [("3", "here", "checkpointed")]
QUICK = [("3", "here", "lora"), ("2", "offload", "full")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, dict[str, torch.Tensor]]:
    """By whether LoRA trains: the weights after a step of one rank without DeepSpeed."""
    found: dict[bool, dict[str, torch.Tensor]] = {}
    for with_lora in (False, True):
        model = adapted(tiny_model("sdpa")) if with_lora else None
        trainer = make_trainer(tmp_path_factory.mktemp("alone"), packed=False, model=model)
        trainer.train()
        found[with_lora] = cast(PreparedSampler, trainer.rollouts.sampler).loaded[1]
    return found


def case(stage: str, offload: str, kind: str) -> Any:
    marks = [] if (stage, offload, kind) in QUICK else [pytest.mark.slow]
    return pytest.param(stage, offload, kind, marks=marks)


@pytest.mark.parametrize(("stage", "offload", "kind"), [case(*each) for each in CASES])
def test_every_rank_samples_with_what_was_trained(
    tmp_path: Path, alone: dict[bool, dict[str, torch.Tensor]], stage: str, offload: str, kind: str
) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(HERE / "synced_weights.py"), stage, offload, kind, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0]["digest"] == found[1]["digest"]
    for each in found:
        assert each["changed"] > 1e-3 and each["unmoved"]
        assert each["frozen"] == (0 if kind == "full" else 9)  # norms: four a layer and the last
        if kind == "full":
            assert each["weights"] == each["logits"] == 0.0
        else:  # the sum is rounded, and the trainer's forward adds in another order
            assert each["weights"] < 1e-6 and each["logits"] < 1e-5
    weights, expected = torch.load(tmp_path / "weights.pt", weights_only=True), alone[kind != "full"]
    assert weights.keys() == expected.keys()
    ours, theirs = (torch.cat([each[name].flatten() for name in expected]) for each in (weights, expected))
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-4
