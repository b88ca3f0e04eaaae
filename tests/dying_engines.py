"""Engines that die on purpose, and whose tokens depend on prompt, seed and weights alone: a restart shows in them.

torchrun --nproc-per-node 2 tests/dying_engines.py STAGE FILE DEATHS [RESTARTS]

DEATHS: after how many answers the last rank's engine dies, e.g. 3,9, or none; or the addresses of servers, which die by
themselves. Two GRPO steps; each rank writes what it sampled and loaded.
"""

import asyncio
import hashlib
import json
import random
import sys
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from helpers import toy_tokens
from torch import Tensor
from trainers import TOKENS, make_trainer

from apr_train.checkpoint import Checkpoints
from apr_train.compose import one_line_errors
from apr_train.config import Config
from apr_train.lifecycle import StopFlag
from apr_train.revival import Revival
from apr_train.rollouts import Rollouts
from apr_train.run import leave_world, start_world
from apr_train.sampler import make_sampler
from apr_train.saving import Saver
from rollout.dialects import make_dialect
from rollout.engine import Completion, EngineDied, Prompt, Sampling
from rollout.engines.calls import together
from rollout.orchestrator import Budget
from rollout.view import View

PARALLEL = toy_tokens("parathinker")
DIALECT = make_dialect("parathinker", PARALLEL)  # every trajectory has a block of threads
BUDGET = Budget(response=160, answer=8, threads=8, blocks=4)


def digest(weights: Iterable[tuple[str, Tensor]]) -> str:
    found = hashlib.sha256()
    for name, tensor in weights:
        found.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return found.hexdigest()


def tokens_of(prompt: list[int], sampling: dict[str, Any], weights: str, size: int) -> Completion:
    """What a policy of these weights "samples": a few letters, then often a stop id."""
    rng = random.Random(repr((prompt, sampling["seed"], weights)))
    count = min(sampling["max_tokens"], rng.randint(1, 12))
    stops = sorted(sampling["stop_ids"])
    ids = [rng.choice([i for i in range(size) if i not in stops]) for _ in range(count)]
    stopped = bool(stops) and (count < sampling["max_tokens"] or rng.random() < 0.5)
    if stopped:
        ids[-1] = rng.choice(stops)
    return Completion(tuple(ids), tuple(-rng.random() for _ in ids), "stop" if stopped else "length")


class DyingSampler:
    """Dies when it has answered as many calls as one of `deaths` says; is not there the first `absent` times."""

    def __init__(self, deaths: Iterable[int] = (), absent: int = 0, size: int = 40) -> None:
        self.max_context, self.policy_version, self.size = 1000, 0, size
        self.deaths, self.absent = sorted(deaths), absent
        self.calls = self.answered = self.loads = self.revived = 0
        self.dead, self.weights = False, "start"

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        self.calls += 1
        number = self.calls
        for _ in range(number % 5):  # calls end in another order than they begin
            await asyncio.sleep(0)
        if not self.dead and self.deaths and self.answered >= self.deaths[0]:
            del self.deaths[0]
            self.dead = True
        if self.dead:
            raise EngineDied("vLLM failed while decoding: CUDA error")
        self.answered += 1
        ids = prompt.ids if isinstance(prompt, View) else list(prompt)
        asked = {"seed": sampling.seed, "max_tokens": sampling.max_tokens, "stop_ids": sampling.stop_ids}
        return tokens_of(ids, asked, self.weights, self.size)

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        if self.dead:
            raise EngineDied("vLLM failed while decoding: CUDA error")
        self.weights = digest(named_tensors)
        self.loads += 1
        self.policy_version += 1

    def revive(self, seconds: float) -> None:
        if self.absent:
            self.absent -= 1
            raise EngineDied("no vLLM server: start one")
        self.dead, self.weights, self.policy_version = False, "start", 0
        self.revived += 1

    def run(self, coroutines: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
        return asyncio.run(together(coroutines))

    def close(self) -> None: ...


def forking_trainer(folder: Path, sampler: Any, restarts: int, stage: int | None = None) -> Any:
    """Two steps of GRPO on what `sampler` samples, saved when stopped; `.seen`: (version, trajectory) by step."""
    seen: list[Any] = []
    trainer: Any = make_trainer(folder, packed=True, stage=stage, gap_stop=1e9)
    trainer.gate.stop = 1e9  # the sampler's log-probs are made up
    trainer.rollouts = Rollouts(
        *(sampler, trainer.rollouts.dialect, TOKENS, trainer.rollouts.verifier, replace(BUDGET, response=100)),
        restarts=restarts,
    )
    trainer.revival = Revival(trainer.rollouts)

    def write(drawn: Any) -> None:
        seen.append([[each.trajectory.policy_version, each.trajectory.to_json()] for each in drawn])

    trainer.step_record.on_rollouts, trainer.seen = write, seen

    def restore(step: int, state: dict[str, Any]) -> None:
        sampler.policy_version = state.get("policy_version", 0)

    def state() -> dict[str, Any]:
        return {"policy_version": sampler.policy_version}

    trainer.attach(Saver(Checkpoints(folder / "checkpoints"), TOKENS.tokenizer, StopFlag(), state, restore))
    return trainer


def asking(config: Config, urls: list[str], folder: Path) -> Any:
    """The client of this rank."""
    model = folder / f"model-{PartialState().process_index}"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"vocab_size": len(TOKENS.tokenizer)}))
    config.rollout.engine, config.rollout.urls, config.model.max_context = "vllm_http", urls, 1000
    return make_sampler(config, model)


def main() -> None:
    stage, file, deaths = None if sys.argv[1] == "none" else int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    config = Config()
    config.deepspeed.stage = stage
    world = start_world(config)
    sampler: Any
    if deaths.startswith("http"):
        sampler = asking(config, deaths.split(","), file.parent)
    else:
        mine = [] if deaths == "none" or not world.is_last_process else map(int, deaths.split(","))
        sampler = DyingSampler(mine, size=len(TOKENS.tokenizer))
    with one_line_errors(every_rank=True):
        trainer = forking_trainer(file.parent, sampler, int((sys.argv[4:] or ["3"])[0]), stage)
        trainer.resume_training()
        told = {"seen": trainer.seen, "version": sampler.policy_version, "restarts": trainer.revival.used}
        if isinstance(sampler, DyingSampler):
            told |= {"revived": sampler.revived, "answered": sampler.answered, "weights": sampler.weights}
        file.with_suffix(f".{world.process_index}").write_text(json.dumps(told))
        leave_world(world)


if __name__ == "__main__":
    main()
