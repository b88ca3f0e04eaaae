"""Strategies choose what their papers say, count what was sampled, and do not call parallel what had to wait."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

import pytest
from helpers import toy_tokens
from timed_engine import BUDGET, DIALECT, TOKENS, Timed, after, question, says, setting, solve

from rollout.critical_path import measure
from rollout.dialects import make_dialect
from rollout.engine import Completion, Prompt, Sampling
from rollout.orchestrator import Budget, run_trajectory
from rollout.seeds import mix
from rollout.strategies import STRATEGIES, StrategyError, make_strategy
from rollout.strategies.base import Candidate, Question, Setting, Solved
from rollout.strategies.best_of_n import best
from rollout.strategies.merge import merge
from rollout.strategies.self_consistency import majority
from rollout.trajectory import Call, Segment, Trajectory
from rollout.view import View

CASES: list[tuple[str, dict[str, Any]]] = [
    ("single", {}),
    ("self_consistency", {"samples": 7}),
    ("best_of_n", {"samples": 5}),
    ("best_of_n", {"samples": 6, "weighted": True}),
    ("tree_of_thoughts", {"value": "logprob", "steps": 3, "branch": 3, "keep": 2, "separator": "a"}),
    ("tree_of_thoughts", {"value": "vote", "steps": 3, "branch": 3, "keep": 2, "separator": " "}),
    ("tree_of_thoughts", {"value": "prompt", "steps": 4, "branch": 2, "keep": 2, "thought_tokens": 6}),
    ("graph_of_thoughts", {"branch": 3, "aggregates": 3, "improvements": 2}),
    ("graph_of_thoughts", {"branch": 2, "aggregate": "client", "improvements": 2}),
    ("skeleton_of_thought", {"skeleton": "task"}),
    ("rounds", {"population": 5, "subset": 2, "rounds": 3}),
    ("rounds", {"widths": [4, 2, 1], "subset": 4, "shows": "answer"}),
    ("mcts", {"samples": 9, "depth": 3, "separator": "a"}),
    ("mcts", {"samples": 8, "depth": 4, "thought_tokens": 3, "samples_per_node": 3, "answer": "vote"}),
    ("ab_mcts", {"samples": 12, "depth": 3, "separator": " "}),
    ("ab_mcts", {"samples": 9, "depth": 4, "thought_tokens": 3, "model": "beta", "batch": 2, "answer": "vote"}),
]
if find_spec("treequest") is None:
    CASES = [case for case in CASES if case[0] not in ("mcts", "ab_mcts")]
SEEDS = range(6)
THINKERS = ("tree_of_thoughts", "mcts", "ab_mcts")
"""They sample a response thought by thought."""
every_case = pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])


def asked_of(name: str) -> Question:
    """A question of two parts, with a score that no seed changes."""
    return question(split=lambda: ["a3b=", "b7="], merge="".join, score=lambda problem, answer: len(answer) % 7 / 7)


def tail_of(solved: Solved) -> int:
    """Tokens of an answer that the client put together, which no call reads: they are one after the other with all."""
    read = {index for call in solved.trajectory.calls for index in call.context}
    forced = [s.ids for i, s in enumerate(solved.trajectory.segments) if s.origin == "forced" and i not in read]
    assert len(forced) <= 1
    return sum(map(len, forced))


# What holds for every strategy


@every_case
def test_no_token_is_counted_twice_or_lost(name: str, options: dict[str, Any]) -> None:
    for seed in SEEDS:
        solved, engine = solve(name, options, seed=seed, asked=asked_of(name))
        assert measure(solved.trajectory).l_total == engine.written + tail_of(solved)


@every_case
def test_the_critical_path_is_the_time_that_unlimited_machines_need(name: str, options: dict[str, Any]) -> None:
    for seed in SEEDS:
        solved, engine = solve(name, options, seed=seed, asked=asked_of(name))
        assert measure(solved.trajectory).l_critical == engine.clock + tail_of(solved)


@every_case
def test_replay_gives_the_ids_that_were_sent(name: str, options: dict[str, Any]) -> None:
    for seed in SEEDS:
        solved, engine = solve(name, options, seed=seed, asked=asked_of(name))
        sent = Counter((tuple(ids), done.ids, done.logprobs) for ids, _, done in engine.sent)
        assert Counter((tuple(ids), own, logprobs) for ids, own, logprobs in solved.trajectory.rows()) == sent


@every_case
def test_the_order_in_which_calls_end_changes_nothing(name: str, options: dict[str, Any]) -> None:
    first, _ = solve(name, options, asked=asked_of(name))
    for shuffle in SEEDS:
        assert solve(name, options, asked=asked_of(name), shuffled=shuffle)[0] == first
    assert solve(name, options, seed=4, asked=asked_of(name))[0] != first


@every_case
def test_a_trajectory_survives_its_file(name: str, options: dict[str, Any]) -> None:
    solved, _ = solve(name, options, asked=asked_of(name))
    assert Trajectory.from_json(solved.trajectory.to_json()) == solved.trajectory


@every_case
def test_what_is_judged_is_a_finished_response_or_nothing(name: str, options: dict[str, Any]) -> None:
    for seed in range(20):
        solved, _ = solve(name, options, seed=seed, asked=asked_of(name))
        ended = solved.trajectory.outcome in ("answered", "forced_answer")
        assert bool(solved.response) == ended
        assert not ended or (solved.response[-1] == TOKENS.eos and TOKENS.eos not in solved.response[:-1])


@every_case
@pytest.mark.parametrize("max_context", [5, 6, 13, 14, 30])
def test_a_context_that_is_too_short_is_an_outcome_and_no_error(
    name: str, options: dict[str, Any], max_context: int
) -> None:
    solved, engine = solve(name, options, asked=asked_of(name), max_context=max_context)
    assert measure(solved.trajectory).l_total == engine.written + tail_of(solved)
    if max_context <= 13 and not solved.response:  # 5 of the prompt, 7 kept back: nothing to reason with
        assert solved.trajectory.outcome == "truncated"


@every_case
def test_no_candidate_exceeds_the_budget_of_one_response(name: str, options: dict[str, Any]) -> None:
    for seed in SEEDS:
        _, engine = solve(name, options, seed=seed, asked=asked_of(name))
        for ids, sampling, _ in engine.sent:
            own = len(ids) - 5 if name in THINKERS and ids[:5] == list(question().prompt) else 0
            assert own + sampling.max_tokens <= BUDGET.response or (sampling.max_tokens == 64 and not own)


# Names and options


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("self_consistancy", {}, "there is no strategy 'self_consistancy'; did you mean self_consistency?"),
        ("best_of_n", {"sample": 3}, "strategy best_of_n has no option 'sample': did you mean 'samples'?"),
        ("best_of_n", {"score": "verifier"}, "is not one of logprob, verifier_oracle"),
        ("self_consistency", {"samples": 0}, "needs samples of 1 or more"),
        ("single", {"samples": 2}, "it takes none"),
        ("mcts", {"samples": 0}, "strategy mcts: samples, depth"),
        ("ab_mcts", {"thought_tokens": 0}, "1 or more"),
        ("tree_of_thoughts", {"keep": 0}, "1 or more"),
        ("rounds", {"widths": [3, 0]}, "1 or more"),
        ("graph_of_thoughts", {"improvements": -1}, "improvements 0 or more"),
        ("skeleton_of_thought", {"least": 4, "most": 3}, "1 <= least <= most"),
    ],
)
def test_a_misspelt_strategy_is_one_line(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(StrategyError) as error:
        make_strategy(name, options)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_every_strategy_has_defaults() -> None:
    for name in STRATEGIES:
        assert make_strategy(name, {})


def test_an_oracle_without_a_verifier_is_refused() -> None:
    with pytest.raises(StrategyError, match="no verifier"):
        solve("best_of_n", {"score": "verifier_oracle"})


# Independent samples


def alone(seed: int) -> Trajectory:
    engine = Timed()
    return engine.run(run_trajectory(engine, DIALECT, "q", question().prompt, BUDGET, seed=seed))


def test_a_sample_is_what_the_policy_alone_would_write() -> None:
    solved, _ = solve("self_consistency", {"samples": 4}, seed=8)
    each = [alone(mix(8, i)) for i in range(4)]
    lengths = measure(solved.trajectory)
    assert lengths.l_total == sum(measure(one).l_total for one in each)
    assert lengths.l_critical == max(measure(one).l_critical for one in each)
    assert (lengths.width, lengths.blocks) == (4, 1)
    assert sum(segment.origin == "prompt" for segment in solved.trajectory.segments) == 1
    assert solve("single", {}, seed=mix(8, 2))[0].trajectory == each[2]


@pytest.mark.parametrize("join", ["transcript", "stitched"])
def test_responses_that_fork_keep_their_threads_and_lengths(join: str) -> None:
    tokens = toy_tokens("parathinker")
    dialect = make_dialect("parathinker", tokens, join, {"paths": 3})
    prompt = tokens.prompt("a3=")
    budget = Budget(response=160, answer=8, threads=8, blocks=4)
    asked = Question("q", "a3=", prompt, after)
    each = [asyncio.run(run_trajectory(Instant(), dialect, "q", prompt, budget, seed=i)) for i in range(3)]
    where = Setting(Instant(), dialect, tokens, budget)
    merged = merge(where, asked, each, 1)
    lengths = measure(merged)
    assert lengths.l_total == sum(measure(one).l_total for one in each)
    assert lengths.l_critical == max(measure(one).l_critical for one in each)
    assert {segment.thread for segment in merged.segments if len(segment.thread) == 4} == {
        (0, i, 0, k) for i in (1, 2, 3) for k in (1, 2, 3)
    }
    views = [one.view(call).ids for one in each for call in one.calls]
    assert sorted(views) == sorted(merged.view(call).ids for call in merged.calls)
    assert merged.attention == each[0].attention and merged.outcome == each[1].outcome


class Instant:
    """Answers at once; some of what it says ends a thread."""

    max_context = 1000

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        ids = prompt.ids if isinstance(prompt, View) else list(prompt)
        return tokens_of(ids, {"seed": sampling.seed, "max_tokens": sampling.max_tokens, "stop_ids": sampling.stop_ids})


def tokens_of(ids: list[int], asked: dict[str, Any]) -> Completion:
    rng = random.Random(repr((ids, asked)))
    count = min(asked["max_tokens"], rng.randint(1, 9))
    found = [*(rng.randint(20, 40) for _ in range(count - 1)), rng.choice(asked["stop_ids"])]
    return Completion(tuple(found), tuple(-rng.random() for _ in found), "stop")


def test_stitched_responses_at_unlike_strides_are_refused() -> None:
    prompt = Segment("prompt", (1,))
    said = Segment("sampled", (2,), (0.0,), (0,))
    at = [
        Trajectory("q", "npr", (prompt, said), (Call((0,), 1, "final"),), "answered", 0, "synchronous", stride)
        for stride in (3, 0, 3, 4)
    ]
    where = setting(Timed())
    assert merge(where, Question("q", "", (1,), after), at[:3], 0).stride == 3
    with pytest.raises(StrategyError, match=r"set strategy\.stride"):
        merge(where, Question("q", "", (1,), after), at, 0)


def wrote(answer: str | None, logprob: float) -> Candidate:
    """A finished candidate with this answer, which may be none (""), or (None) an unfinished one."""
    ids = () if answer is None else DIALECT.answer(answer)
    return Candidate(ids, answer or None, "truncated" if answer is None else "answered", logprob)


@pytest.mark.parametrize(
    ("answers", "wins"),
    [
        ([("7", -2.0), ("8", -0.1), ("7", -1.0)], 2),  # the largest group, and in it the likeliest
        ([("7", -2.0), ("8", -0.1)], 1),  # a tie: the likeliest
        ([("7", -1.0), ("8", -1.0)], 0),  # a tie of ties: the first
        ([("7", -2.0), ("8", -1.5), ("8", -1.9), ("7", -1.2)], 3),
        ([(None, -0.1), (None, -0.1), ("7", -9.0)], 2),  # unfinished ones have no vote
        ([("", -0.1), ("", -0.1), ("7", -9.0)], 2),  # nor has what says nothing
        ([("", -0.3), (None, -0.1), ("", -0.2)], 2),  # unless nobody says anything
        ([(None, -0.1)], None),
        ([], None),
    ],
)
def test_the_majority_by_hand(answers: Sequence[tuple[str | None, float]], wins: int | None) -> None:
    assert majority([wrote(*each) for each in answers]) == wins


@pytest.mark.parametrize(
    ("answers", "weighted", "wins"),
    [
        ([("7", 0.5), ("8", 0.9), ("7", 0.6)], False, 1),
        ([("7", 0.5), ("8", 0.9), ("7", 0.6)], True, 2),  # 1.1 against 0.9
        ([("7", 0.3), ("8", 0.9), ("7", 0.4)], True, 1),
        ([("7", 0.5), ("8", 0.5)], False, 0),
        ([("", 0.9), ("", 0.9), ("8", 0.5)], True, 2),  # what says nothing is no group
        ([("", 0.9), ("8", 0.5)], False, 0),  # but has its score
        ([("", 0.3), ("", 0.9)], True, 1),
        ([(None, 1.0), ("8", 0.0)], False, 1),  # an unfinished response is none, whatever it scores
        ([(None, 1.0)], True, None),
    ],
)
def test_the_best_by_hand(answers: Sequence[tuple[str | None, float]], weighted: bool, wins: int | None) -> None:
    candidates = [wrote(answer, 0.0) for answer, _ in answers]
    assert best(candidates, [score for _, score in answers], weighted=weighted) == wins


def test_answers_that_the_verifier_spells_alike_are_one_voter() -> None:
    written = ["1/2", "7", "0.5", "7", ".5", "8"]

    def reply(context: str, sampling: Sampling) -> str:
        return f"<think>a</think>{written[seeds.index(sampling.seed or 0)]}<|eos|>"

    def value(text: str) -> str:
        return str(Fraction(text.rpartition("</think>")[2]))

    seeds = [mix(mix(3, i), 0) for i in range(len(written))]
    options = {"samples": len(written)}
    by_text, _ = solve("self_consistency", options, says(reply))
    by_value, _ = solve("self_consistency", options, says(reply), asked=question(answer=value))
    assert TOKENS.decode(by_text.response) == "<think>a</think>7<|eos|>"
    assert TOKENS.decode(by_value.response) == "<think>a</think>1/2<|eos|>"


def test_an_oracle_finds_the_right_answer_among_wrong_ones() -> None:
    def reply(context: str, sampling: Sampling) -> str:
        return f"<think>a</think>{'5' if (sampling.seed or 0) % 4 == 0 else '6'}<|eos|>"

    right = question(judge=lambda text: text == "<think>a</think>5")
    for seed in range(8):
        solved, _ = solve("best_of_n", {"samples": 9, "score": "verifier_oracle"}, says(reply), seed=seed, asked=right)
        there = any(mix(mix(seed, i), 0) % 4 == 0 for i in range(9))  # the first call of a trajectory, turn 0
        assert (TOKENS.decode(solved.response) == "<think>a</think>5<|eos|>") == there


def test_only_an_oracle_asks_the_verifier() -> None:
    def never(text: str) -> bool:
        raise AssertionError("a strategy that is no oracle looked at the gold answer")

    for name, options in CASES:
        solve(name, options, asked=replace(asked_of(name), judge=never))
