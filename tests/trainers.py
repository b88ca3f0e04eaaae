"""A GRPO trainer over prepared trajectories: everything real but the sampler, so that gradients can be compared."""

import asyncio
import os
import random
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from helpers import Judge, toy_tokens
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from apr_train.arguments import grpo_arguments
from apr_train.config import Config, LoraConfig
from apr_train.gap import GapGate
from apr_train.grpo_trainer import ForkJoinGRPOTrainer
from apr_train.lora import adapt
from apr_train.rollouts import Rollouts
from apr_train.tasks.base import Problem
from rewards.build import make_reward
from rewards.verdict import Verdict
from rollout.demonstration import Block, Demonstration
from rollout.dialects import dialect_class, make_dialect
from rollout.engine import Completion, Prompt, Sampling
from rollout.engines.replay import ReplayEngine
from rollout.orchestrator import Budget, run_trajectory
from rollout.strategies.base import Solved, finished
from rollout.trajectory import Trajectory
from rollout.viewer import Recorded

TOKENS = toy_tokens()
TAGS = sorted(TOKENS.tag(name) for name in dialect_class("threadweaver").tags({}))
DIALECT = make_dialect("threadweaver", TOKENS)
BUDGET = Budget(response=500, answer=8, threads=8, blocks=8)


def solved(trajectory: Trajectory) -> Solved:
    """What a policy's one response comes to."""
    return Solved(trajectory, finished(trajectory))


def tiny_model(attention: str, seed: int = 0) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.1}
    config = Qwen3Config(vocab_size=len(TOKENS.tokenizer), tie_word_embeddings=True, **sizes, **heads)
    config._attn_implementation = attention
    return Qwen3ForCausalLM(config)


def random_demonstration(rng: random.Random) -> Demonstration:
    """0 to 2 blocks of 1 to 3 threads, few letters: rollouts of a group share tokens."""
    pieces: list[str | Block] = []
    for _ in range(rng.randint(0, 2)):
        pieces.append("".join(rng.choices("ab", k=rng.randint(0, 3))))
        pieces.append(
            Block(tuple((rng.choice("ab"), "".join(rng.choices("12", k=3))) for _ in range(rng.randint(1, 3))))
        )
    return Demonstration(tuple(pieces), rng.choice("12"))


class PreparedSampler:
    """Plays random demonstrations; their "sampler" log-probs are fixed offsets from what a tiny policy would say."""

    def __init__(self, seed: int, noise: float) -> None:
        self.max_context, self.policy_version = 1000, 0
        self.rng, self.noise = random.Random(seed), noise
        self.loaded: list[dict[str, Tensor]] = []

    def close(self) -> None: ...

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        self.loaded.append({name: tensor.clone() for name, tensor in named_tensors})
        self.policy_version += 1

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        raise NotImplementedError

    def run(self, coroutines: Iterable[Coroutine[Any, Any, Solved]]) -> list[Solved]:
        """All ranks play the same trajectories and each keeps its share: two ranks see what one would."""
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        mine = 0
        for coroutine in coroutines:
            coroutine.close()
            mine += 1
        played: list[Trajectory] = []
        for number in range(mine * world):
            engine = ReplayEngine(DIALECT.write(random_demonstration(self.rng)), self.max_context)
            prompt = TOKENS.prompt(f"a{number // 4}=")
            trajectory = asyncio.run(run_trajectory(engine, DIALECT, f"p{number}", prompt, BUDGET))
            played.append(self._scored(trajectory))
        return [solved(each) for each in played[rank * mine : (rank + 1) * mine]]

    def policy(self) -> Qwen3ForCausalLM:
        """Who is said to have sampled."""
        return tiny_model("sdpa")

    def _scored(self, trajectory: Trajectory) -> Trajectory:
        """The log-probs of the policy, one plain forward per call, plus noise."""
        model = self.policy()
        segments = list(trajectory.segments)
        for call in trajectory.calls:
            context, sampled = trajectory.context_ids(call), segments[call.sampled].ids
            logps = separate_logps(model, context, sampled).tolist()
            noisy = tuple(value + self.rng.uniform(-self.noise, self.noise) for value in logps)
            segments[call.sampled] = replace(segments[call.sampled], logprobs=noisy)
        return replace(trajectory, segments=tuple(segments))


def separate_logps(model: Qwen3ForCausalLM, context: list[int], sampled: tuple[int, ...]) -> Tensor:
    """log p(sampled | context), one ordinary forward, nothing shared: the brute force."""
    ids = torch.tensor([[*context, *sampled]])
    logits = model(input_ids=ids).logits[0, len(context) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(sampled)[:, None])[:, 0]


def make_trainer(
    folder: Path,
    *,
    packed: bool,
    micro_batches: int = 1,
    noise: float = 0.05,
    stage: int | None = None,
    offload: bool = False,
    checkpointing: bool = False,
    reward: dict[str, Any] | None = None,
    model: Any = None,
    **algorithm: Any,
) -> ForkJoinGRPOTrainer:
    """4 prompts x 4 rollouts, two steps; `algorithm` sets keys of AlgorithmConfig."""
    config = Config()
    for name, value in algorithm.items():
        setattr(config.algorithm, name, value)
    config.algorithm.prompts_per_step, config.algorithm.group_size, config.algorithm.steps = 4, 4, 2
    config.algorithm.micro_batches, config.algorithm.learning_rate = micro_batches, 1e-2
    config.rollout.max_response_tokens, config.model.gradient_checkpointing = 500, checkpointing
    config.deepspeed.stage, config.deepspeed.offload_optimizer, config.checkpoint.every = stage, offload, 0

    def verdict(response: str, answer: str) -> Verdict:
        return "correct" if response.endswith(answer) else "wrong"

    arguments = grpo_arguments(config, folder, int(os.environ.get("WORLD_SIZE", "1")))
    return ForkJoinGRPOTrainer(
        model or tiny_model("tree" if packed else "sdpa"),
        arguments,
        TOKENS.tokenizer,
        [Problem(f"p{i}", f"a{i}=", "1") for i in range(8)],
        rollouts=Rollouts(PreparedSampler(7, noise), DIALECT, TOKENS, Judge(verdict), BUDGET),
        reward=make_reward(reward or {"outcome": {}}),
        algorithm=config.algorithm,
        gate=GapGate(warn=1.0, stop=5.0),
        packed=packed,
        on_rollouts=lambda *_: None,
        callbacks=[],
    )


def rows_of_a_step(trainer: ForkJoinGRPOTrainer) -> list[dict[str, int]]:
    return [{"problem": i // 4} for i in range(16)]


def step_gradient(trainer: ForkJoinGRPOTrainer) -> Tensor:
    """The whole gradient of one optimizer step, all its micro-batches, as one vector."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.zero_grad()
    for _ in range(trainer.args.steps_per_generation):
        inputs = trainer._prepare_inputs(rows_of_a_step(trainer))
        trainer.compute_loss(trainer.model, inputs).backward()
        trainer._step += 1
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad])


def handed_out(trainer: ForkJoinGRPOTrainer) -> list[Recorded]:
    """What the trainer hands out of the step it is in."""
    found: list[Recorded] = []
    trainer.step_record.on_rollouts = found.extend
    trainer.step_record.hand_out()
    return found


def gradient_norms(trainer: ForkJoinGRPOTrainer) -> list[float]:
    """Of each step, as logged: Adam hides a gradient's scale in the weights, so scale is compared here."""
    return [row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row]


def adapted(model: Any, **settings: Any) -> Any:
    """The model with adapters of rank 4 whose B is no longer zero, as after a step; `settings`: keys of LoraConfig."""
    found = adapt(model, LoraConfig(**{"rank": 4, "alpha": 8.0} | settings), TAGS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return found
