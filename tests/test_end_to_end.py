"""The whole run on real parts: vLLM samples what the trainer trains, and the same seed gives the same run."""

import json
from pathlib import Path
from typing import Any

import pytest

from apr_train.config import Config
from apr_train.run import run
from apr_train.stored import read_recorded
from apr_train.vocabulary import reproducible


def tiny_run(folder: Path, seed: int) -> list[dict[str, Any]]:
    config = Config()
    config.name, config.output_dir, config.seed = folder.name, str(folder), seed
    config.model.hidden_size, config.model.layers, config.model.intermediate_size = 64, 2, 64
    config.model.heads = config.model.kv_heads = 2
    config.data.task, config.data.train_problems = "arithmetic", 64
    config.data.options = {"parts_max": 3, "steps_min": 3, "steps_max": 4}
    config.sft.steps, config.sft.problems_per_step, config.sft.warmup_steps = 150, 16, 5
    config.sft.parallel_share = 1.0
    config.reward.terms = {"outcome": {}, "acceleration": {"rho": 0.5, "cap": 0.2, "gate": ["correct"]}}
    config.algorithm.steps, config.algorithm.prompts_per_step, config.algorithm.group_size = 3, 4, 4
    config.algorithm.learning_rate, config.algorithm.micro_batches = 1e-3, 2
    config.rollout.max_response_tokens, config.rollout.kv_cache_gib = 120, 0.2
    config.rollout.max_thread_tokens = 20
    config.logger.wandb, config.logger.progress, config.logger.rollouts_every = "disabled", False, 1
    config.eval.problems = 12
    run(config)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[list[dict[str, Any]]]:
    return [tiny_run(folder / name, seed) for name, seed in (("one", 5), ("two", 5), ("other", 6))]


def curves(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [reproducible(row) for row in rows]


def test_the_sampler_is_the_policy_that_is_trained(runs: list[list[dict[str, Any]]]) -> None:
    """Mean |log p_vllm - log p_trainer| after every update; weights move, so a lost sync would show."""
    gaps = [row["gap/logprob_mean_abs"] for rows in runs for row in rows if row["stage"] == "rl"]
    assert len(gaps) == 9 and max(gaps) <= 1e-4


def test_forks_happened_and_were_trained(runs: list[list[dict[str, Any]]]) -> None:
    last = [row for row in runs[0] if row["stage"] == "rl"][-1]
    assert last["tree/trigger_rate"] > 0 and last["perf/packing_ratio"] > 1.5
    assert any(row["optim/grad_norm"] > 0 for row in runs[0] if row["stage"] == "rl")


def test_same_seed_same_run(runs: list[list[dict[str, Any]]]) -> None:
    assert curves(runs[0]) == curves(runs[1])
    assert curves(runs[0]) != curves(runs[2])


def test_recorded_rollouts_hold_the_parts_of_their_rewards(runs: list[list[dict[str, Any]]], folder: Path) -> None:
    recorded = read_recorded([folder / "one/rollouts-rank0.jsonl"])
    assert len(recorded) == 3 * 16
    for each in recorded:
        assert set(each.terms) == {"outcome", "acceleration"}
        assert sum(each.terms.values()) == pytest.approx(each.reward)
    assert any(each.terms["acceleration"] > 0 for each in recorded)


def test_every_end_is_named_and_shares_sum_to_one(runs: list[list[dict[str, Any]]]) -> None:
    for row in (row for rows in runs for row in rows if row["stage"] == "rl"):
        for group in ("stop/", "verify/"):
            assert sum(v for k, v in row.items() if k.startswith(group)) == pytest.approx(1)
