"""Whatever an engine says: strategies count right, end by name, and choose the same in any order of service."""

from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from timed_engine import DIALECT, TOKENS, Timed, babble, question, setting
from trees import grow

from rollout.critical_path import measure
from rollout.engine import Completion, Sampling
from rollout.orchestrator import Budget
from rollout.strategies import STRATEGIES, make_strategy
from rollout.strategies.base import Candidate
from rollout.strategies.merge import merge
from rollout.strategies.self_consistency import majority
from rollout.trajectory import Segment, Trajectory

few = st.integers(1, 4)
thoughts = {"separator": st.sampled_from(["a", " ", "1"]), "thought_tokens": st.none() | st.integers(1, 9)}
searched = thoughts | {"samples": st.integers(1, 14), "depth": few, "answer": st.sampled_from(["score", "vote"])}
OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "single": {},
    "self_consistency": {"samples": st.integers(1, 9)},
    "best_of_n": {
        "samples": st.integers(1, 9),
        "weighted": st.booleans(),
        "score": st.sampled_from(["logprob", "verifier_oracle"]),
    },
    "tree_of_thoughts": thoughts
    | {"steps": few, "branch": few, "keep": few, "value_calls": few, "votes": few}
    | {"value": st.sampled_from(["prompt", "vote", "logprob"])},
    "graph_of_thoughts": {
        "branch": few,
        "aggregates": few,
        "improvements": st.integers(0, 3),
        "aggregate": st.sampled_from(["model", "client"]),
    },
    "skeleton_of_thought": {"skeleton": st.sampled_from(["model", "task"])},
    "rounds": {
        "population": few,
        "subset": few,
        "rounds": few,
        "widths": st.lists(few, max_size=3),
        "shows": st.sampled_from(["response", "answer"]),
    },
    "mcts": searched | {"samples_per_node": few},
    "ab_mcts": searched | {"batch": few, "model": st.sampled_from(["gaussian", "beta"])},
}
MISSING = ("mcts", "ab_mcts") if find_spec("treequest") is None else ()


def listing(ids: list[int], sampling: Sampling) -> Completion:
    """As `babble`, but a prompt that asks for a skeleton often gets one, and one for a judgement a word or a number."""
    text, seed = TOKENS.decode(ids), sampling.seed or 0
    said = ""
    if "skeleton of" in text:
        said = "1. a\n2. b" * (seed % 4 > 0)
    elif "Reply with" in text:
        said = ("sure", "likely", "1", "3", "2 or 1", "impossible", "?")[seed % 7]
    if not said:
        return babble(ids, sampling)
    found = (*TOKENS.text(said), TOKENS.eos)[: sampling.max_tokens]
    return Completion(found, (-0.25,) * len(found), "stop" if found[-1] == TOKENS.eos else "length")


def unread(trajectory: Trajectory) -> int:
    """Tokens of what the client wrote after the calls that it waited for, which no call goes on from."""
    read = {index for call in trajectory.calls for index in call.context}
    segments = enumerate(trajectory.segments)
    return sum(len(each.ids) for index, each in segments if each.origin == "forced" and index not in read)


def solve(name: str, options: dict[str, Any], budget: Budget, context: int, seed: int, shuffled: int | None) -> Any:
    engine = Timed(listing, context, shuffled)
    asked = question(
        split=lambda: ["a3b=", "b7="],
        merge="".join,
        score=lambda problem, answer: len(answer) % 5 / 5,
        judge=lambda text: len(text) % 3 == 0,
    )
    return engine.run(make_strategy(name, options).solve(setting(engine, budget), asked, seed)), engine


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_any_strategy_counts_and_ends_as_it_should(name: str) -> None:
    if name in MISSING:
        pytest.skip("treequest is not installed")

    @settings(max_examples=25, deadline=None)
    @given(
        st.fixed_dictionaries({}, optional=OPTIONS[name]),
        st.builds(Budget, st.integers(8, 50), st.integers(1, 6), st.just(8), st.just(4)),
        st.sampled_from([7, 12, 13, 20, 40, 90, 2000]),
        st.integers(0, 1 << 62),
    )
    def check(options: dict[str, Any], budget: Budget, context: int, seed: int) -> None:
        options = {"samples": 12} | options if name in ("self_consistency", "best_of_n", "mcts", "ab_mcts") else options
        options = {"population": 3, "rounds": 3} | options if name == "rounds" else options
        solved, engine = solve(name, options, budget, context, seed, None)
        written = unread(solved.trajectory)
        lengths = measure(solved.trajectory)
        assert lengths.l_total == engine.written + written
        assert lengths.l_critical == engine.clock + written
        sent = Counter((tuple(ids), done.ids, done.logprobs) for ids, _, done in engine.sent)
        assert Counter((tuple(ids), own, logprobs) for ids, own, logprobs in solved.trajectory.rows()) == sent
        assert bool(solved.response) == (solved.trajectory.outcome in ("answered", "forced_answer"))
        assert (solved.response or (TOKENS.eos,)).count(TOKENS.eos) == 1
        assert solve(name, options, budget, context, seed, seed % 7)[0] == solved

    check()


@given(st.lists(st.tuples(st.sampled_from(["7", "8", "", None]), st.integers(-4, -1)), max_size=9))
def test_a_majority_is_what_counting_says(given_: list[tuple[str | None, int]]) -> None:
    candidates = [
        Candidate(() if answer is None else DIALECT.answer(answer), answer or None, "answered", float(logprob))
        for answer, logprob in given_
    ]
    chosen = majority(candidates)
    finished = [(answer, logprob) for answer, logprob in given_ if answer is not None]
    if not finished:
        assert chosen is None
        return
    voters = [(answer, logprob) for answer, logprob in finished if answer] or finished
    votes = Counter(answer for answer, _ in voters)
    means = {each: sum(p for answer, p in voters if answer == each) / votes[each] for each in votes}
    highest = max((votes[each], means[each]) for each in votes)
    likeliest = {each: max(p for answer, p in voters if answer == each) for each in votes}
    firsts = {each: given_.index((each, likeliest[each])) for each in votes if (votes[each], means[each]) == highest}
    winner = min(firsts, key=lambda each: [answer for answer, _ in given_].index(each))
    assert chosen == firsts[winner]


pieces = st.recursive(
    st.integers(1, 5),
    lambda inner: st.lists(st.lists(inner, min_size=1, max_size=3), min_size=1, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.tuples(st.lists(pieces, max_size=2), st.integers(1, 4)), min_size=1, max_size=4), st.data())
def test_a_merge_is_as_long_as_all_and_as_deep_as_the_longest(shapes: list[Any], data: st.DataObject) -> None:
    each = [grow(2, *pieces, last) for pieces, last in shapes]
    chosen = data.draw(st.none() | st.integers(0, len(each) - 1))
    merged = merge(setting(Timed()), replace(question(), prompt=tuple(range(10))), each, chosen)
    lengths, own = measure(merged), [measure(one) for one in each]
    assert lengths.l_total == lengths.parallel_tokens == sum(one.l_total for one in own)
    assert lengths.l_critical == max(one.l_critical for one in own)
    assert lengths.threads == sum(one.threads for one in own) + len(each)
    assert lengths.depth == 1 + max(one.depth for one in own)
    assert merged.segments[0] == Segment("prompt", tuple(range(10))) and merged.outcome in ("answered", "truncated")
    rows = Counter((tuple(c), s, p) for one in each for c, s, p in one.rows())
    assert rows == Counter((tuple(c), s, p) for c, s, p in merged.rows())
