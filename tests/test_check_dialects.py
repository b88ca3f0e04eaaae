"""The check of sampler against trainer can fail: each figure goes wrong when what it watches does."""

import asyncio
import json
import random
from dataclasses import replace

import pytest
import torch
from helpers import toy_tokens
from transformers import Qwen3Config, Qwen3ForCausalLM

from apr_train.fidelity import compare
from rollout.dialects import make_dialect
from rollout.engines.torch_engine import TorchEngine
from rollout.orchestrator import Budget, Strategy, run_trajectory
from rollout.tokens import Tokens
from rollout.trajectory import Trajectory
from scripts import check_dialects
from scripts.check_dialects import Row, Spy, cells, refusal, replays


def model_for(tokens: Tokens) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokens.tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        initializer_range=0.2,
        max_position_embeddings=400,
    )
    config._attn_implementation = "tree"
    return Qwen3ForCausalLM(config)


def sampled(name: str, strategy: str = "fork_join") -> tuple[Qwen3ForCausalLM, list[Trajectory], list[Spy]]:
    """Random rollouts of a dialect that the client forks, so that no policy need learn to."""
    tokens = toy_tokens(name)
    join = None if name == "parathinker" else "stitched"
    dialect, model = make_dialect(name, tokens, join), model_for(tokens)
    spies = [Spy(TorchEngine(model, max_context=400)) for _ in range(2)]
    budget = Budget(120, 8, threads=8, blocks=2, thread=12)
    coroutines = [
        run_trajectory(spy, dialect, "p", tokens.prompt("a="), budget, seed=n, strategy=Strategy(strategy))
        for n, spy in enumerate(spies)
    ]
    return model, [asyncio.run(coroutine) for coroutine in coroutines], spies


@pytest.mark.parametrize("strategy", ["fork_join", "group_think"])
def test_a_log_prob_that_is_not_the_samplers_shows(strategy: str) -> None:
    model, trajectories, spies = sampled("parathinker", strategy)
    dlogp, grad, forced = compare(model, trajectories)
    assert dlogp < 1e-4 and grad < 1e-5 and forced == 0.0
    assert all(replays(t, spy) for t, spy in zip(trajectories, spies, strict=True))
    first = trajectories[0].calls[0].sampled
    segment = trajectories[0].segments[first]
    wrong = replace(segment, logprobs=tuple(x - 0.01 for x in segment.logprobs or ()))
    segments = tuple(wrong if s == first else each for s, each in enumerate(trajectories[0].segments))
    assert compare(model, [replace(trajectories[0], segments=segments)])[0] > 5e-3


def test_threads_trained_under_another_mask_than_was_sampled_show() -> None:
    model, trajectories, spies = sampled("parathinker", "group_think")
    hidden = [replace(t, attention="causal") for t in trajectories]
    assert compare(model, hidden)[0] > 1e-3
    moved = [replace(t, stride=t.stride + 1) for t in trajectories]
    assert compare(model, moved)[0] > 1e-4
    shorter = replace(trajectories[0], calls=trajectories[0].calls[:-1])
    assert not replays(shorter, spies[0])


def test_a_row_fails_for_each_of_its_reasons() -> None:
    good = Row("npr", "stitched", "torch", dlogp=1e-6, grad=1e-7, forced=0.0, replay=True, trip=True, forks=0.5)
    good.judge()
    assert good.passed and not good.why
    wrong = {"dlogp": 1e-3, "grad": 1e-3, "forced": 1e-9, "replay": False, "trip": False, "forks": 0.0}
    for name, value in wrong.items():
        row = replace(good, **{name: value})
        row.judge()
        assert not row.passed and row.why
    nan = replace(good, dlogp=float("nan"))
    nan.judge()
    assert not nan.passed


def test_what_vllm_cannot_sample_is_refused_with_the_engine_that_can() -> None:
    for row in cells(["multiverse", "dc_cot", "parathinker", "asyncthink"]):
        why = refusal(row.dialect, row.join, row.engine, row.strategy, row.thread_vectors)
        hogwild = row.strategy == "hogwild"
        cannot = row.engine == "vllm" and (row.join == "stitched" or row.strategy != "fork_join")
        assert bool(why) == (cannot or hogwild), (row, why)
        assert "rollout=torch" in why if cannot else True
        assert "\n" not in why


def test_vectors_are_checked_beside_the_stitched_join_without_them() -> None:
    found = [row for row in cells(["multiverse", "parathinker"]) if row.thread_vectors]
    assert [(row.dialect, row.join, row.engine, row.strategy) for row in found] == [
        ("parathinker", "stitched", engine, "fork_join") for engine in ("torch", "vllm")
    ]
    assert len({row.cell for row in cells(["parathinker"])}) == 5


@pytest.mark.slow
def test_the_command_checks_a_dialect_from_warm_start_to_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["check_dialects.py", "--dialect", "npr", "--engine", "torch", "--count", "16"])
    random.seed(0)
    assert check_dialects.main() == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [(row["dialect"], row["join"], row["pass"]) for row in rows] == [
        ("npr", "stitched", True),
        ("npr", "transcript", True),
    ]
