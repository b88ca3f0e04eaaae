"""Beams and tree searches keep what their values praise, wait for whom they must, and sample no more than they may."""

import sys
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import toy_tokens
from timed_engine import BUDGET, TOKENS, question, says, solve

from rollout.critical_path import measure
from rollout.dialects import DIALECTS, dialect_class, make_dialect
from rollout.engine import Sampling
from rollout.seeds import mix
from rollout.strategies import StrategyError
from rollout.strategies.base import filled
from rollout.strategies.tree_of_thoughts import value_of, vote_of
from rollout.strategies.writing import Separator, forbidden

SEEDS = range(6)


LINES = {"p=": "\n", "p=\n": "\n", "p=\n\n": "a\n", "p=\n\na\n": "7<|eos|>"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tree_of_thoughts", {"steps": 2, "branch": 1, "keep": 1, "value": "logprob"}),
        ("mcts", {"samples": 2, "depth": 2, "samples_per_node": 1}),
    ],
)
def test_blank_lines_use_up_no_thought(name: str, options: dict[str, Any]) -> None:
    """Language models write a blank line between paragraphs: a thought of its own each, half of the search would be."""
    if name == "mcts" and find_spec("treequest") is None:
        pytest.skip("treequest is not installed")
    found, engine = solve(name, options, says(lambda context, _: LINES[context]), asked=question("p="))
    assert TOKENS.decode(found.response) == "\n\na\n7<|eos|>"
    assert [len(sampling.stop_ids) > 1 for _, sampling, _ in engine.sent] == [True, True, True, False]
    assert measure(found.trajectory).l_critical == engine.clock == 6
    seeds = [sampling.seed for _, sampling, _ in engine.sent]
    assert len(set(seeds)) == 4


def test_a_model_that_writes_nothing_but_blank_lines_is_not_asked_line_by_line_to_its_budget() -> None:
    wide = replace(BUDGET, response=2000)
    options = {"steps": 4, "branch": 1, "keep": 1, "value": "logprob"}
    found, engine = solve("tree_of_thoughts", options, says(lambda *_: "\n" * 3000), budget=wide)
    assert len(engine.sent) <= 3 * 3 + 2 and found.response == ()


# Tree of thoughts


def test_a_beam_finds_the_path_that_its_values_praise() -> None:
    """A thought is one token; the values praise the beginnings of 3141, which one response in 10,000 would hold."""

    def reply(context: str, sampling: Sampling) -> str:
        if "Reply with one word" in context:
            wrote = context.partition("solution:\n<think>")[2].partition("\n")[0]
            return f"no: impossible? {'Sure' if '3141'.startswith(wrote) else 'impossible'}.<|eos|>"
        if "<think>" not in context:
            return "<think>"
        wrote = context.rpartition("<think>")[2]
        return f"</think>{wrote}<|eos|>" if len(wrote) == 4 else str((sampling.seed or 0) % 10)

    options = {"steps": 6, "branch": 40, "keep": 1, "thought_tokens": 1, "value_calls": 1}
    found, engine = solve("tree_of_thoughts", options, says(reply), asked=question("p="))
    assert TOKENS.decode(found.response) == "<think>3141</think>3141<|eos|>"
    assert len(engine.sent) == 6 * 40 * 2
    # Levels of one token and a judgement of 22 (Sure.) or 28; the last level's six tokens are praised by none.
    assert measure(found.trajectory).l_critical == (1 + 22) + 4 * (1 + 28) + (6 + 28)


@pytest.mark.parametrize("call", ["value", "vote"])
def test_selection_waits_for_the_slowest_sibling(call: str) -> None:
    """Three thoughts of 2, 5 and 9 tokens, each judged in 5; then the rest of the first in 3, judged in 5: 22, although
    the chain of what the answer was made of is 2 + 3."""
    thoughts = {mix(3, 0, k): text for k, text in ((1, "a\n"), (2, "abab\n"), (3, "abababab\n"))}

    def reply(context: str, sampling: Sampling) -> str:
        if "Which one" in context:
            return "is 1<|eos|>"
        if "Reply with" in context:
            return "sure<|eos|>" if "solution:\na\n" in context else "none<|eos|>"
        return thoughts.get(sampling.seed or 0, "a1<|eos|>")

    options = {"steps": 2, "branch": 3, "keep": 1, "value": "prompt" if call == "value" else "vote"}
    found, engine = solve("tree_of_thoughts", options | {"value_calls": 1, "votes": 2}, says(reply))
    assert TOKENS.decode(found.response) == "a\na1<|eos|>"
    assert measure(found.trajectory).l_critical == engine.clock == 9 + 5 + 3 + 5


def test_a_state_without_room_waits_for_selection_too() -> None:
    """Of 12 tokens, 5 are kept back: a thought of 7 leaves none, so that the next step is the forced end. Until then
    its sibling is judged in 30, not in 5."""
    thoughts = {mix(3, 0, 1): "ababab\n", mix(3, 0, 2): "a\n"}

    def reply(context: str, sampling: Sampling) -> str:
        if "Reply with" in context:
            size = 40 if "</think>77" in context else 29
            return "sure<|eos|>" if context.count("ababab") and size == 29 else "b" * size + "<|eos|>"
        return thoughts.get(sampling.seed or 0, "77<|eos|>")

    options = {"steps": 2, "branch": 2, "keep": 2, "value_calls": 1}
    budget = replace(BUDGET, response=12, answer=4)
    found, engine = solve("tree_of_thoughts", options, says(reply), budget=budget)
    assert TOKENS.decode(found.response) == "ababab\n</think>77<|eos|>"
    # 2 and 30 of the sibling, then </think>77<eos> and its judgement of 41
    assert measure(found.trajectory).l_critical == engine.clock == (2 + 30) + (4 + 41)


@pytest.mark.parametrize(
    ("reply", "value"),
    [("sure", 20.0), ("It is LIKELY", 1.0), ("sure, no: impossible", 0.001), ("unlikely assured", 0.0), ("", 0.0)],
)
def test_a_value_is_the_last_word_that_is_one(reply: str, value: float) -> None:
    assert value_of(reply) == value


@pytest.mark.parametrize(("reply", "choice"), [("2", 2), ("of 3, best is 1.", 1), ("7", 0), ("0", 0), ("2 of 9", 2)])
def test_a_vote_is_the_last_number_that_is_a_choice(reply: str, choice: int) -> None:
    assert vote_of(reply, 3) == choice


def test_braces_in_a_problem_do_not_fill_a_template() -> None:
    assert (
        filled("{problem}|{thoughts}|{x}", problem="{thoughts}{0}", thoughts="{problem}")
        == "{thoughts}{0}|{problem}|{x}"
    )


def test_tags_of_a_dialect_that_forks_are_banned_but_not_those_of_reasoning() -> None:
    for name in DIALECTS:
        tokens = toy_tokens(name)
        dialect = make_dialect(name, tokens)
        think = {tokens.tag(tag) for tag in ("<think>", "</think>") if tag in dialect_class(name).tags()}
        every = {tokens.tag(tag) for tag in dialect_class(name).tags()}
        assert set(forbidden(dialect, tokens.eos, "x")) == every - think


def test_a_dialect_that_does_not_tell_its_tags_is_refused() -> None:
    with pytest.raises(StrategyError, match="give its class `tag_ids`"):
        forbidden(SimpleNamespace(name="mine"), 1, "mcts")  # type: ignore[arg-type]


def test_a_thought_ends_with_any_token_that_ends_with_the_separator() -> None:
    assert Separator("\n", "x").ids(TOKENS) == TOKENS.text("\n")
    colon = Separator(":", "x")
    assert set(colon.ids(TOKENS)) == {*TOKENS.text(":"), *(TOKENS.text(f"{k}:")[0] for k in range(1, 10))}
    assert colon.ids(toy_tokens("threadweaver")) == colon.ids(TOKENS)  # the tags come after, and are none
    for separator in ("", "ab"):
        with pytest.raises(StrategyError, match="option separator"):
            Separator(separator, "x").ids(TOKENS)


# Tree search

searches = pytest.mark.skipif(find_spec("treequest") is None, reason="treequest is not installed")
both = pytest.mark.parametrize("name", ["mcts", "ab_mcts"])


@searches
@both
@pytest.mark.parametrize("samples", [1, 7, 20])
def test_a_search_samples_no_more_nodes_than_it_may(name: str, samples: int) -> None:
    """A node is a thread of its own; one that has ended and is chosen again is told again, and samples nothing."""
    for seed in SEEDS:
        found, engine = solve(name, {"samples": samples, "separator": "a", "depth": 3}, seed=seed)
        again = found.trajectory.notes.get("strategy/ended node chosen again", 0)
        nodes = {segment.thread for segment in found.trajectory.segments if segment.origin == "sampled"}
        answers = len(engine.sent) - len(nodes)  # out of budget, a response has a second call
        assert len(nodes) == samples - again and 0 <= answers <= len(nodes)


@searches
@both
def test_a_search_answers_with_the_end_that_its_score_prefers(name: str) -> None:
    wide = {"samples_per_node": 5} if name == "mcts" else {}
    found, _ = solve(name, {"samples": 40, "separator": " ", "depth": 3} | wide, seed=1)
    segments = found.trajectory.segments
    ends: dict[tuple[int, ...], float] = {}
    for call in (call for call in found.trajectory.calls if call.event == "final"):
        own = [segments[index] for index in (*call.context[1:], call.sampled)]
        values = [value for segment in own for value in segment.logprobs or ()]
        ends[tuple(token for segment in own for token in segment.ids)] = sum(values) / len(values)
    assert len(ends) > 2 and found.response == max(ends, key=lambda ids: ends[ids])


@searches
@both
def test_a_search_finds_what_its_oracle_knows(name: str) -> None:
    right = question(judge=lambda text: text.startswith("a "))  # the first thought decides
    options = {"samples": 24, "depth": 2, "separator": " ", "score": "verifier_oracle"}
    for seed in SEEDS:
        found, engine = solve(name, options, seed=seed, asked=right)
        ended = [(*ids[5:], *done.ids) for ids, _, done in engine.sent if done.ids[-1] == TOKENS.eos]
        there = any(TOKENS.decode(ids).startswith("a ") for ids in ended)
        assert TOKENS.decode(found.response).startswith("a ") == there


@searches
@both
def test_a_search_leaves_the_random_stream_of_others_alone(name: str) -> None:
    np.random.seed(5)
    wanted = np.random.random(3).tolist()
    np.random.seed(5)
    found, _ = solve(name, {"samples": 20})
    assert np.random.random(3).tolist() == wanted
    assert solve(name, {"samples": 20})[0] == found  # nor does it depend on where that stream is


@both
def test_a_search_without_its_package_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "treequest", None)
    with pytest.raises(StrategyError, match="install the extra `search`"):
        solve(name, {})
