"""The warm start trains every sampled token of every demonstration once, whatever it shares a batch with."""

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import toy_tokens
from trainers import BUDGET, DIALECT, TOKENS, separate_logps, tiny_model
from trl.trainer.utils import add_fused_lm_head

from apr_train.sft import collate_tries, demonstration_rows, record_demonstration, trajectory_rows
from apr_train.tasks import make_task
from apr_train.tasks.base import TaskError
from rollout.demonstration import Block, Demonstration
from rollout.dialects import make_dialect
from rollout.engine import EngineError
from rollout.engines.replay import ReplayEngine
from rollout.orchestrator import Budget, run_trajectory

TASK = make_task("arithmetic", {"parts_max": 3, "steps_min": 3, "steps_max": 4})


def examples(count: int, share: float = 0.5) -> list[dict[str, Any]]:
    problems = TASK.problems("train", count, 0)
    return list(demonstration_rows(TASK, problems, DIALECT, TOKENS, BUDGET, 1000, parallel_share=share, seed=0))


def test_gradient_is_that_of_each_call_by_itself_and_twins_count_twice() -> None:
    batch = examples(6)
    batch.append(batch[2])
    packed, separate = tiny_model("tree"), tiny_model("sdpa")
    add_fused_lm_head(packed)
    inputs = {k: v for k, v in collate_tries(batch).items() if k not in ("labels", "examples")}
    (-packed(**inputs, fused_lm_head=True).log_probs.sum()).backward()
    for example in batch:
        for row, context in zip(example["rows"], example["contexts"], strict=True):
            (-separate_logps(separate, row[:context], tuple(row[context:])).sum()).backward()
    for (name, ours), theirs in zip(packed.named_parameters(), separate.parameters(), strict=True):
        assert float((ours.grad - theirs.grad).norm() / theirs.grad.norm()) < 1e-5, name


def test_the_label_count_that_divides_the_loss_is_the_number_of_sampled_tokens() -> None:
    batch = examples(6)
    sampled = sum(len(row) - c for e in batch for row, c in zip(e["rows"], e["contexts"], strict=True))
    assert int((collate_tries(batch)["shift_labels"] != -100).sum()) == sampled


def test_threads_of_equal_headers_that_begin_alike_count_once_each() -> None:
    """Two paths after one <Path>: what they share is sampled twice, and so it is trained twice."""
    tokens = toy_tokens("parallel_r1")
    dialect = make_dialect("parallel_r1", tokens)
    shown = Demonstration((Block((("", "12a"), ("", "12b"))),), "3")
    engine = ReplayEngine(dialect.write(shown), 1000)
    trajectory = asyncio.run(run_trajectory(engine, dialect, "p", tokens.prompt("a="), BUDGET))
    batch = list(trajectory_rows([trajectory]))
    packed, separate = tiny_model("tree"), tiny_model("sdpa")
    for model in (packed, separate):
        model.resize_token_embeddings(len(tokens.tokenizer))
    separate.load_state_dict(packed.state_dict())
    add_fused_lm_head(packed)
    inputs = {k: v for k, v in collate_tries(batch).items() if k not in ("labels", "examples")}
    (-packed(**inputs, fused_lm_head=True).log_probs.sum()).backward()
    for row, context in zip(batch[0]["rows"], batch[0]["contexts"], strict=True):
        (-separate_logps(separate, row[:context], tuple(row[context:])).sum()).backward()
    for (name, ours), theirs in zip(packed.named_parameters(), separate.parameters(), strict=True):
        assert float((ours.grad - theirs.grad).norm() / theirs.grad.norm()) < 1e-5, name


def test_one_part_is_never_shown_in_parallel_and_others_at_the_chosen_share() -> None:
    problems = TASK.problems("train", 300, 0)
    rows = examples(300)
    forked = {1: [], 2: [], 3: []}
    for problem, example in zip(problems, rows, strict=True):
        forked[problem.parts or 0].append(len(example["rows"]) > 1)
    assert not any(forked[1])
    assert 0.35 < sum(forked[2] + forked[3]) / len(forked[2] + forked[3]) < 0.65


def test_the_checked_form_takes_its_share_from_the_sequential_one_alone() -> None:
    problems = TASK.problems("train", 300, 0)
    options = {"parallel_share": 0.4, "seed": 0}
    plain = list(demonstration_rows(TASK, problems, DIALECT, TOKENS, BUDGET, 1000, **options))
    mixed = list(demonstration_rows(TASK, problems, DIALECT, TOKENS, BUDGET, 1000, checked_share=0.3, **options))
    forked = [len(example["rows"]) > 1 for example in plain]
    changed = [one != other for one, other in zip(plain, mixed, strict=True)]
    assert not any(was and now for was, now in zip(forked, changed, strict=True))
    assert 0.2 < sum(changed) / len(changed) < 0.4
    with pytest.raises(TaskError, match="countdown has no checked form"):
        demonstration_rows(make_task("countdown", {}), [], DIALECT, TOKENS, BUDGET, 1000, checked_share=0.1, **options)


def test_a_demonstration_that_breaks_its_budget_is_refused_before_training() -> None:
    problem = next(p for p in TASK.problems("train", 9, 0) if p.parts == 3)
    small = Budget(response=30, answer=8, threads=8, blocks=8)
    with pytest.raises(TaskError, match="max_response_tokens"):
        record_demonstration(TASK, problem, "parallel", DIALECT, TOKENS, small, 1000)


def test_a_demonstration_that_its_dialect_writes_wrongly_is_not_called_too_long() -> None:
    problem = next(p for p in TASK.problems("train", 9, 0) if p.parts == 3)
    plain = DIALECT.write(TASK.demonstration(problem, "sequential"))[()]

    def writes(*turns: tuple[int, ...]) -> Any:
        def write(demonstration: Any) -> Any:
            return {(): list(turns)}

        own = {name: getattr(DIALECT, name) for name in dir(DIALECT) if name[0] != "_"}
        return SimpleNamespace(**own | {"write": write})

    record = partial(record_demonstration, TASK, problem, "sequential")
    with pytest.raises(EngineError, match="no further turn"):  # no stop at its end
        record(writes(plain[0][:-1]), TOKENS, BUDGET, 1000)
    with pytest.raises(TaskError, match=r"ends 'answered' \(.*think.*\)"):
        record(writes((TOKENS.eos,)), TOKENS, BUDGET, 1000)


def test_a_long_demonstration_names_its_length_and_not_the_engine_that_replays_it() -> None:
    problem = next(p for p in TASK.problems("train", 9, 0) if p.parts == 3)
    script = DIALECT.write(TASK.demonstration(problem, "sequential"))
    long = sum(len(ids) for turns in script.values() for ids in turns)
    record_demonstration(TASK, problem, "sequential", DIALECT, TOKENS, Budget(long + 20, 8, 8, 8), 1000)
    says = rf"the sequential demonstration of {problem.id}, {long} tokens of its own, does not fit"
    for budget in (Budget(long - 5, 8, 8, 8), Budget(16, 8, 8, 8)):
        with pytest.raises(TaskError, match=says):
            record_demonstration(TASK, problem, "sequential", DIALECT, TOKENS, budget, 1000)
