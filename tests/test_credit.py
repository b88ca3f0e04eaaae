"""Advantages belong to trajectories, credit to their calls: by hand, by brute-force gradients, and under shuffling."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_grpo_trainer import error
from trainers import handed_out, make_trainer, rows_of_a_step, separate_logps, step_gradient, tiny_model

from apr_train.advantage import AdvantageRule, group_advantages, scope_advantages
from apr_train.credit import credit_calls, mean_over_calls, node_advantages
from apr_train.deadlines import Deadlines
from apr_train.grpo_trainer import NoSignalWarning, other_problems
from apr_train.tasks.base import Problem
from rewards.build import make_reward
from rewards.scored import Group, Scored
from rewards.verdict import Verdict
from rollout.critical_path import measure
from rollout.trajectory import Call, Segment, Trajectory

NAN = float("nan")
REWARD = {"outcome": {"correct": 1.0, "wrong": -0.5}, "acceleration": {"rho": 0.5}}


def tree(threads: Sequence[tuple[tuple[int, ...], bool]] = (), verdict: Verdict = "correct") -> Scored:
    """A root call of 3 tokens, then the named threads of 2 tokens each (closed by themselves or not), then 1 token."""
    segments = [Segment("prompt", (1,)), Segment("sampled", (1, 2, 3), (0.0,) * 3, (0,))]
    calls = [Call((0,), 1, "fork" if threads else "final")]
    for name, finished in threads:
        segments.append(Segment("sampled", (4, 5), (0.0, 0.0), (1,), name))
        calls.append(Call((0, 1), len(segments) - 1, "join" if finished else "truncated"))
    if threads:
        segments.append(Segment("sampled", (6,), (0.0,), tuple(range(2, len(segments)))))
        calls.append(Call(tuple(range(len(segments) - 1)), len(segments) - 1, "final"))
    trajectory = Trajectory("p", "threadweaver", tuple(segments), tuple(calls), "answered")
    return Scored(trajectory, measure(trajectory), verdict)


TWO = (((0, 1), True), ((0, 2), False))
"""One thread that closed itself and one that was cut off."""


# Advantages


def test_leave_one_out_by_hand() -> None:
    # others' means: (0 + 2) / 2 = 1, (3 + 2) / 2 = 2.5, (3 + 0) / 2 = 1.5
    advantages = group_advantages(torch.tensor([[3.0, 0.0, 2.0]]), "none", "leave_one_out")
    assert advantages[0].tolist() == pytest.approx([2.0, -2.5, 0.5])
    alone = group_advantages(torch.tensor([[3.0, NAN, NAN]]), "none", "leave_one_out")
    assert alone.tolist() == [[0.0, 0.0, 0.0]]


def test_batch_scale_by_hand_takes_the_deviation_of_all_rewards_once() -> None:
    # rewards 1, 0, 1, 1 (and one not judged): mean 0.75, squares 3 * 0.0625 + 0.5625 = 0.75, / 3 = 0.25, root 0.5
    advantages = group_advantages(torch.tensor([[1.0, 0.0, NAN], [1.0, 1.0, NAN]]), "batch")
    expected = torch.tensor([[0.5, -0.5, 0.0], [0.0, 0.0, 0.0]]) / (0.5 + 1e-4)
    assert torch.allclose(advantages, expected)


def test_apart_keeps_the_size_of_a_bonus_that_accuracy_would_drown() -> None:
    # accuracy 1, 1, 0, 0: sd 0.5774; bonus 0.1, 0, 0, 0: mean 0.025, sd 0.05
    reward = make_reward({"outcome": {}, "trigger": {}})
    values = torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    apart = scope_advantages(values, reward, 4, AdvantageRule(scale="group", apart=True))["root"]
    accuracy, bonus = 0.5 / (3**-0.5 + 1e-4), 0.025 / (0.05 + 1e-4)
    assert apart.tolist() == pytest.approx(
        [accuracy + 3 * bonus, accuracy - bonus, -accuracy - bonus, -accuracy - bonus], rel=1e-5
    )
    together = scope_advantages(values, reward, 4, AdvantageRule(scale="group"))["root"]
    assert together.tolist() != pytest.approx(apart.tolist(), rel=0.1)


def test_scope_pays_root_and_threads_by_their_own_terms() -> None:
    reward = make_reward({"outcome": {}, "threads": {"scope": "root"}, "finish": {"scope": "threads"}})
    values = torch.tensor([[1.0, 2.0, 0.5], [1.0, 0.0, 0.0]])
    found = scope_advantages(values, reward, 2, AdvantageRule())
    assert found["root"].tolist() == [1.0, -1.0]  # 3 against 1
    assert found["threads"].tolist() == [0.25, -0.25]  # 1.5 against 1


rewards = st.lists(
    st.lists(st.sampled_from([-1.0, 0.0, 0.25, 1.0, 1.2, NAN]), min_size=4, max_size=4), min_size=1, max_size=5
)


@given(
    rewards, st.sampled_from(["none", "group", "batch"]), st.sampled_from(["group_mean", "leave_one_out"]), st.data()
)
def test_no_advantage_depends_on_the_order_of_groups_or_members(
    rows: list[list[float]], scale: str, baseline: str, data: st.DataObject
) -> None:
    groups = data.draw(st.permutations(range(len(rows))))
    members = data.draw(st.permutations(range(4)))
    plain = group_advantages(torch.tensor(rows), scale, baseline)
    moved = group_advantages(torch.tensor(rows)[groups][:, members], scale, baseline)
    assert torch.allclose(moved, plain[groups][:, members], atol=1e-5)
    judged = ~torch.tensor(rows).isnan()
    assert torch.allclose((plain * judged).sum(1), torch.zeros(len(rows)), atol=2e-3 if scale != "none" else 1e-5)
    assert not plain[~judged].any()


# Credit, by hand


@pytest.mark.parametrize(
    ("kind", "reward", "expected"),
    [
        ("broadcast", 1.0, [0.6, 0.3, 0.3, 0.6]),
        ("root_only", 1.0, [0.6, 0.0, 0.0, 0.6]),
        ("frozen_threads", 1.0, [0.6, None, None, 0.6]),
        ("ratio_scaled", 1.0, [0.6, 0.24, 0.0, 0.6]),  # 0.6 * (1 / 2.5), and nothing for the thread cut off
        ("ratio_scaled", -1.0, [0.6, 0.24, 0.24, 0.6]),  # -0.4 / -1 for both: min(0, .) keeps what is below 0
        ("ratio_scaled", 0.0, [0.6, 0.0, 0.0, 0.6]),
        ("ratio_scaled", NAN, [0.6, 0.0, 0.0, 0.6]),
    ],
)
def test_credit_by_hand(kind: str, reward: float, expected: list[float | None]) -> None:
    (found,) = credit_calls(kind, [tree(TWO)], [0.6], [0.3], [reward])
    assert found == pytest.approx(expected)


def test_node_local_by_hand_on_a_nested_tree() -> None:
    """Bonus 0.5. First: thread (0,1) finished with one finished child, (0,2) cut off: values 1.5, 0; child 1. Second:
    one thread, finished: 1. Third: no thread. Depth-1 means 0.75 and 1, so 1.5 - 1, 0 - 1 and 1 - 0.75; the child is
    alone at its depth."""
    nested = tree([((0, 1), True), ((0, 1, 0, 1), True), ((0, 2), False)])
    group = Group((nested, tree([((0, 1), True)]), tree()))
    found = node_advantages([group], 0.5, [0.1, 0.2, 0.3])
    assert found == [pytest.approx([0.1, 0.5, 0.0, -1.0, 0.1]), pytest.approx([0.2, 0.25, 0.2]), [0.3]]


def test_a_trajectory_that_forks_more_weighs_no_more_in_a_node_baseline() -> None:
    few, many = tree([((0, 1), True)]), tree([((0, k), True) for k in range(1, 7)])
    probe = tree([((0, 1), False)])
    for other in (few, many):
        assert node_advantages([Group((probe, other))], 0.2, [0.0, 0.0])[0][1] == -1.0


def test_mean_over_calls_by_hand() -> None:
    """Calls of 3, 2, 2 and 1 tokens among 20 tokens of 5 trajectories: A * 20 / (tokens * 4 calls * 5)."""
    (found,) = mean_over_calls([[3.0, 3.0, 3.0, 3.0]], [tree(TWO).trajectory], tokens=20, count=5)
    assert found == pytest.approx([1.0, 1.5, 1.5, 3.0])


# Credit, by gradient


def brute_force(trainer: Any, kind: str) -> torch.Tensor:
    """The gradient that the credit rule means, one plain forward per call; no code of ours between rollout and loss."""
    ours = step_gradient(trainer)
    collected = handed_out(trainer)
    model, terms, weights, tokens = tiny_model("sdpa"), [], [], 0
    for start in range(0, len(collected), 4):
        mean = sum(each.reward for each in collected[start : start + 4]) / 4
        for one in collected[start : start + 4]:
            calls = one.trajectory.calls
            for call in calls:
                segment = one.trajectory.segments[call.sampled]
                context = one.trajectory.context_ids(call)
                ratio = (separate_logps(model, context, segment.ids) - torch.tensor(segment.logprobs)).exp()
                advantage, in_thread = one.reward - mean, bool(segment.thread)
                if in_thread and kind == "frozen_threads":
                    continue
                tokens += len(segment.ids)
                advantage *= {"root_only": 0.0, "ratio_scaled": 0.4}.get(kind, 1.0) if in_thread else 1.0
                clipped = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
                terms.append(clipped.mean() / len(calls) if kind == "per_call_mean" else clipped.sum())
                weights.append(len(segment.ids))
    divisor = len(collected) if kind == "per_call_mean" else tokens
    (-torch.stack(terms).sum() / divisor).backward()
    theirs = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert theirs.norm() > 1e-4
    return torch.tensor(error(ours, theirs))


@pytest.mark.parametrize("kind", ["broadcast", "root_only", "frozen_threads", "ratio_scaled", "per_call_mean"])
def test_the_gradient_is_the_one_the_credit_rule_means(tmp_path: Path, kind: str) -> None:
    trainer = make_trainer(tmp_path, packed=True, noise=0.4, micro_batches=2, reward=REWARD, credit=kind)
    assert brute_force(trainer, kind) < 1e-5


def test_credit_without_packing_gives_the_same_gradient(tmp_path: Path) -> None:
    both = [
        step_gradient(make_trainer(tmp_path, packed=packed, reward=REWARD, credit="per_call_mean", micro_batches=parts))
        for packed, parts in ((True, 4), (False, 1))
    ]
    assert error(*both) < 1e-5


# Dynamic sampling


class Prepared:
    """Problems 0 to 5 are right in every rollout, the others in every second one. Remembers what was asked for."""

    sampler: Any = None
    deadlines = Deadlines()

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.seeds: list[int] = []

    def collect(self, problems: list[Problem], *, temperature: float, seed: int, first: int) -> list[Scored]:
        numbers = [int(problem.id[1:]) for problem in problems]
        self.asked.append(numbers[::4])
        self.seeds.append(seed)
        return [tree(verdict="correct" if n < 6 or i % 2 else "wrong") for i, n in enumerate(numbers)]


def sampled(tmp_path: Path, rounds: int) -> tuple[Any, Prepared]:
    trainer = make_trainer(tmp_path, packed=True, dynamic_sampling=rounds)
    trainer.problems = [Problem(f"p{i}", f"a{i}=", "1") for i in range(12)]
    prepared = Prepared()
    prepared.sampler = trainer.rollouts.sampler
    trainer.rollouts = prepared
    return trainer, prepared


def start(*problems: int) -> list[int]:
    return [problem for problem in problems for _ in range(4)]


def signal(trainer: Any, scored: list[Scored]) -> list[bool]:
    return [trainer._signal(scored[at : at + 4]) for at in range(0, len(scored), 4)]


def test_a_group_without_signal_is_drawn_again_and_one_with_signal_is_kept(tmp_path: Path) -> None:
    trainer, prepared = sampled(tmp_path, rounds=20)
    scored, resampled = trainer._sample(start(0, 6, 1, 7), step=3)
    assert signal(trainer, scored) == [True] * 4
    assert prepared.asked[0] == [0, 6, 1, 7] and resampled == sum(map(len, prepared.asked[1:])) >= 2
    everything = [number for asked in prepared.asked for number in asked]
    assert len(everything) == len(set(everything)), "a problem was asked for twice in one step"
    assert len(set(prepared.seeds)) == len(prepared.seeds)


def test_dynamic_sampling_is_off_by_default_and_stops_after_its_rounds(tmp_path: Path) -> None:
    for rounds in (0, 1):
        trainer, prepared = sampled(tmp_path, rounds)
        trainer.problems = trainer.problems[:6]  # nothing but flat groups
        scored, _ = trainer._sample(start(0, 1), step=0)
        assert len(prepared.asked) == 1 + rounds and signal(trainer, scored) == [False, False]


def test_dynamic_sampling_ends_when_there_are_no_more_problems(tmp_path: Path) -> None:
    trainer, prepared = sampled(tmp_path, rounds=1000)
    trainer.problems = trainer.problems[:5]
    _, resampled = trainer._sample(start(0, 1), step=0)
    assert resampled == 3 and len(prepared.asked) <= 4


def test_the_same_seed_draws_the_same_refill() -> None:
    assert other_problems(100, {1, 2}, 5, seed=9) == other_problems(100, {2, 1}, 5, seed=9)
    assert not {1, 2} & set(other_problems(10, {1, 2}, 8, seed=9))
    assert other_problems(3, {0, 1, 2}, 2, seed=0) == []


def test_a_step_that_teaches_nothing_is_said_by_name(tmp_path: Path) -> None:
    trainer, _ = sampled(tmp_path, rounds=1)
    trainer.problems = trainer.problems[:6]
    with pytest.warns(NoSignalWarning, match="too easy or all too hard"):
        trainer._generate_and_score_completions(rows_of_a_step(trainer))


def test_shuffled_members_get_the_same_credit() -> None:
    members = [tree(TWO), tree([((0, 1), True)]), tree(), tree([((0, k), k % 2 == 0) for k in range(1, 5)])]
    plain = dict(zip(map(id, members), node_advantages([Group(tuple(members))], 0.2, [0.0] * 4), strict=True))
    for seed in range(5):
        moved = random.Random(seed).sample(members, 4)
        found = node_advantages([Group(tuple(moved))], 0.2, [0.0] * 4)
        assert found == [pytest.approx(plain[id(member)]) for member in moved]
