"""Models with a vector per thread, and what they say by a decoder that is written out by hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from stitched_trees import Meaning
from torch import Tensor
from torch.nn.functional import silu

from rollout.engines import thread_vectors
from rollout.orchestrator import Strategy
from rollout.trajectory import Call, Segment, Trajectory

COUNT = 6
VECTORS = Strategy(thread_vectors=True)


def with_vectors(model: Any, size: float = 0.5) -> Any:
    """The model with vectors that no log-prob can overlook."""
    thread_vectors.install(model, COUNT)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for table in tables(model):
            table.copy_(size * torch.randn(table.shape, generator=generator))
    return model


def tables(model: Any) -> list[Tensor]:
    return [weight for name, weight in model.named_parameters() if "thread_vectors" in name]


def numbered(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    return [replace(each, thread_vectors=True) for each in trajectories]


def path(number: int, ids: tuple[int, ...]) -> Trajectory:
    """A prompt and one thread of this number."""
    segments = (Segment("prompt", (5, 6)), Segment("sampled", ids, (-1.0,) * len(ids), (0,), (0, number)))
    calls = (Call((0,), 1, "join"),)
    return Trajectory("p", "test", segments, calls, "answered", attention="stitched", thread_vectors=True)


# ---- the definition, by hand


def by_hand(model: Any, ids: list[int], positions: list[int], sees: list[set[int]], threads: list[int]) -> Tensor:
    """Logits (tokens, vocabulary) of a Qwen3 or Llama with vectors, from its weights and the published rule alone."""
    config, weights = model.config, dict(model.named_parameters())
    heads, dim, eps = (config.num_attention_heads, config.num_key_value_heads), config.head_dim, config.rms_norm_eps
    mask = torch.tensor([[j in seen for j in range(len(ids))] for seen in sees])
    speed = config.rope_parameters["rope_theta"] ** (-torch.arange(0, dim, 2) / dim)
    angle = torch.tensor(positions)[:, None, None] * torch.cat([speed, speed])

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + eps).rsqrt() * weights[name]

    def turn(x: Tensor) -> Tensor:
        return x * angle.cos() + torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], -1) * angle.sin()

    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config.num_hidden_layers):
        at = f"model.layers.{layer}"
        h = norm(x, f"{at}.input_layernorm.weight")
        q, k, v = ((h @ weights[f"{at}.self_attn.{n}_proj.weight"].T).unflatten(-1, (-1, dim)) for n in "qkv")
        if f"{at}.self_attn.k_norm.weight" in weights:
            q, k = norm(q, f"{at}.self_attn.q_norm.weight"), norm(k, f"{at}.self_attn.k_norm.weight")
        table = weights[f"{at}.self_attn.thread_vectors.weight"]
        own = torch.stack([table[n - 1] if n else torch.zeros(dim) for n in threads])[:, None]
        q, k, v = turn(q), turn(k + own), v + own
        shared = heads[0] // heads[1]
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        scores = torch.einsum("ihd,jhd->hij", q, k) * dim**-0.5
        read = torch.einsum("hij,jhd->ihd", scores.masked_fill(~mask, -torch.inf).softmax(-1), v)
        x = x + read.flatten(1) @ weights[f"{at}.self_attn.o_proj.weight"].T
        h = norm(x, f"{at}.post_attention_layernorm.weight")
        gate, up, down = (weights[f"{at}.mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
        x = x + (silu(h @ gate.T) * (h @ up.T)) @ down.T
    out = norm(x, "model.norm.weight")
    return out @ weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).T


def call_logps(model: Any, trajectory: Trajectory, call: Call) -> Tensor:
    """log p of what a call sampled, by hand."""
    segments, ids = trajectory.segments, trajectory.segments[call.sampled].ids
    if not ids:
        return torch.zeros(0)
    scene = Meaning(trajectory).scene(call)
    whose = [segments[s].thread[-1] if segments[s].thread else 0 for s, _ in scene.tokens]
    logits = by_hand(model, [segments[s].ids[o] for s, o in scene.tokens], scene.positions, scene.sees, whose)
    return logits[scene.inputs].log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
