"""Run by torchrun: two GRPO steps; what each rank's sampler got before the second is compared with what was trained.

torchrun --nproc-per-node 2 tests/synced_weights.py STAGE OFFLOAD KIND FOLDER

STAGE: none, 0, 1, 2 or 3; OFFLOAD: offload or here; KIND: full, lora or checkpointed (lora, packed, with gradient
checkpointing). The main rank writes what its sampler got to weights.pt, every rank <rank>.json:

changed    how far the sampler's weights moved in the first step, at most
weights    how far they are from the trained ones, as DeepSpeed's own reading of the optimizer's float32 copies has them
logits     how far a fresh plain model with the sampler's weights is from the trained one
unmoved    whether everything that LoRA freezes is what it was, bit for bit
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trainers import TAGS, TOKENS, adapted, make_trainer, tiny_model
from transformers import TrainerCallback

from apr_train import lora
from apr_train.config import Config
from apr_train.run import leave_world, start_world

IDS = torch.arange(30)[None] % len(TOKENS.tokenizer)


def whole(parameter: Any, stage: int | None) -> Tensor:
    """A parameter as the optimizer has it, read by other means than the sync."""
    if stage in (None, 0):
        return parameter.detach().clone()
    from deepspeed.utils import safe_get_full_fp32_param

    found = safe_get_full_fp32_param(parameter)
    assert found is not None
    return found.clone()


def trained_weights(model: Any, stage: int | None) -> dict[str, Tensor]:
    """All that is trained, by the names of the plain model; with LoRA W + s B A from the start's W, which is known."""
    start = dict(tiny_model("sdpa").named_parameters())
    found: dict[str, Tensor] = {}
    for name, parameter, added in lora.plain_parameters(model):
        if added is not None:
            a, b = whole(added.a, stage), whole(added.b, stage)
            found[name] = (start[name].detach().double() + added.scale * b.double() @ a.double()).float()
        elif parameter.requires_grad:
            found[name] = whole(parameter, stage)
    return found


class Look(TrainerCallback):
    """After the first step: what was trained, and what it says."""

    def __init__(self, trainer: Any, stage: int | None) -> None:
        self.trainer, self.stage = trainer, stage

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step != 1:
            return
        self.weights = trained_weights(self.trainer.policy(), self.stage)
        with torch.no_grad():
            plain = {"input_ids": IDS, "position_ids": torch.arange(IDS.shape[1])[None], "use_cache": False}
            self.logits = self.trainer.model_wrapped(**plain).logits.clone()


def main() -> None:
    stage, offload = None if sys.argv[1] == "none" else int(sys.argv[1]), sys.argv[2] == "offload"
    kind, folder = sys.argv[3], Path(sys.argv[4])
    config = Config()
    config.deepspeed.stage, config.deepspeed.offload_optimizer = stage, offload
    world = start_world(config)
    start = dict(tiny_model("sdpa").named_parameters())
    packed = kind == "checkpointed"
    plain = tiny_model("tree" if packed else "sdpa")
    trainer: Any = make_trainer(
        folder,
        packed=packed,
        checkpointing=packed,
        micro_batches=2,
        stage=stage,
        offload=offload,
        model=plain if kind == "full" else adapted(plain),
    )
    look = Look(trainer, stage)
    trainer.add_callback(look)
    trainer.train()
    before, after = trainer.rollouts.sampler.loaded
    fresh = tiny_model("sdpa", seed=3)
    missing = fresh.load_state_dict(after, strict=False)
    assert not missing.unexpected_keys and after.keys() == start.keys()
    with torch.no_grad():
        logits = fresh(input_ids=IDS).logits
    frozen = [name for name in after if name not in look.weights]
    rows = sorted(set(range(len(TOKENS.tokenizer))) - set(TAGS)) if kind != "full" else []
    table = "model.embed_tokens.weight"
    found = {
        "changed": max(float((after[name] - before[name]).abs().max()) for name in look.weights),
        "weights": max(float((after[name] - weight).abs().max()) for name, weight in look.weights.items()),
        "logits": float((logits - look.logits).abs().max()),
        "unmoved": all(torch.equal(after[name], start[name]) for name in frozen)
        and torch.equal(after[table][rows], start[table][rows]),
        "frozen": len(frozen),
        "digest": float(torch.cat([tensor.double().flatten() for tensor in after.values()]).sum()),
    }
    if world.is_main_process:
        torch.save(after, folder / "weights.pt")
    (folder / f"{world.process_index}.json").write_text(json.dumps(found))
    leave_world(world)


if __name__ == "__main__":
    main()
