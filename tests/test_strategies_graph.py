"""Graphs, skeletons and rounds ask what their papers ask, out of what was answered before."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from timed_engine import BUDGET, TOKENS, question, says, solve

from rollout.critical_path import measure
from rollout.engine import Sampling
from rollout.strategies import StrategyError
from rollout.strategies.base import Question

# Graph of thoughts


def sorter(context: str, sampling: Sampling) -> str:
    """Sorts what it is asked to, but for one response in two, which swaps the first two."""
    asked = context.rpartition("sort ")[2] if "The parts" not in context else ""
    if not asked:
        lines = context.partition("solved:\n")[2].partition("\nCombine")[0].splitlines()
        asked = "".join(line.rpartition(" ")[2] for line in lines)
    elif "proposed" in context:
        asked = context.partition("sort ")[2].partition("\n")[0]
    found = sorted(asked)
    if (sampling.seed or 0) % 2:
        found[:2] = found[1::-1]
    return f"<think></think>{''.join(found)}<|eos|>"


def sorting(text: str) -> Question:
    half = len(text) // 2

    def score(problem: str, answer: str) -> float:
        """Lost digits and neighbours out of order, as in the paper, of what could be wrong."""
        wanted = Counter(problem.removeprefix("sort "))
        errors = sum(a > b for a, b in pairwise(answer)) + (wanted - Counter(answer)).total()
        return 1 - errors / (2 * len(text))

    parts = [f"sort {text[:half]}", f"sort {text[half:]}"]
    return question(f"sort {text}", split=lambda: parts, score=score, merge=lambda each: "".join(sorted("".join(each))))


@pytest.mark.parametrize("aggregate", ["model", "client"])
def test_a_graph_sorts_with_an_engine_that_mostly_sorts(aggregate: str) -> None:
    for seed in range(4):
        options = {"aggregate": aggregate, "branch": 8}
        found, engine = solve("graph_of_thoughts", options, says(sorter), asked=sorting("83127465"), seed=seed)
        assert TOKENS.decode(found.response) == "<think></think>12345678<|eos|>"
        assert len(engine.sent) == 2 * 8 + 10 * (aggregate == "model") + 10
        # <think></think>1234<eos> is 7 tokens, the whole 11; the client's own answer has none that sampled it
        assert measure(found.trajectory).l_critical == 7 + 11 + 11
        # parts of 7, then the whole of 11: the aggregates or the client's one, and the improvements
        assert measure(found.trajectory).l_total == 16 * 7 + (10 if aggregate == "model" else 1) * 11 + 10 * 11


def test_an_improvement_that_is_none_is_not_taken() -> None:
    def reply(context: str, sampling: Sampling) -> str:
        return "<think></think>21<|eos|>" if "proposed" in context else sorter(context, replace(sampling, seed=0))

    found, _ = solve("graph_of_thoughts", {}, says(reply), asked=sorting("4231"))
    assert TOKENS.decode(found.response) == "<think></think>1234<|eos|>"


def test_a_part_that_nobody_finishes_ends_the_graph_by_name() -> None:
    def reply(context: str, sampling: Sampling) -> str:
        return "b" * 50 if context == "sort 31" else sorter(context, replace(sampling, seed=0))

    for name, options in (("graph_of_thoughts", {"branch": 2}), ("skeleton_of_thought", {"skeleton": "task"})):
        found, _ = solve(name, options, says(reply), asked=sorting("4231"))
        assert found.response == () and found.trajectory.outcome == "truncated"
        assert found.trajectory.notes["strategy/part without an answer"] == 1


@pytest.mark.parametrize(
    ("name", "options", "asked", "says"),
    [
        ("graph_of_thoughts", {}, question(), "needs a task that splits"),
        ("skeleton_of_thought", {"skeleton": "task"}, question(split=list), "needs a task that splits"),
        ("graph_of_thoughts", {"aggregate": "client"}, question(split=lambda: ["a"]), "no merge: use aggregate=model"),
        (
            "graph_of_thoughts",
            {"aggregate": "client"},
            question(split=lambda: ["a"], merge="".join),
            "no score: use improvements=0",
        ),
        ("graph_of_thoughts", {}, question(split=lambda: ["\u00e9"]), "cannot spell"),
        ("rounds", {"template": "\u00e9{problem}"}, question(), "strategy rounds writes a prompt"),
        ("tree_of_thoughts", {"value_template": "\u00e9"}, question(), "change its template options"),
    ],
)
def test_a_question_that_does_not_suit_is_one_line(name: str, options: Any, asked: Question, says: str) -> None:
    with pytest.raises(StrategyError) as error:
        solve(name, options, asked=asked)
    assert says in str(error.value) and "\n" not in str(error.value)


# Skeleton of thought


def test_a_skeleton_is_written_out_point_by_point() -> None:
    def reply(context: str, sampling: Sampling) -> str:
        if "Write out point" in context:
            number = context.partition("Write out point ")[2][0]
            return f"<think>{'a' * int(number)}</think>P{number}<|eos|>"
        return "<think>hm</think>1. one\n 2) two\nno point\n3: three\n4. four<|eos|>"

    found, engine = solve("skeleton_of_thought", {"most": 3}, says(reply), budget=replace(BUDGET, response=200))
    assert TOKENS.decode(found.response) == "<think></think>1. P1\n2. P2\n3. P3<|eos|>"
    asked = [TOKENS.decode(ids).rpartition("point ")[2] for ids, _, _ in engine.sent[1:]]
    assert [(text[0], text.rpartition(": ")[2]) for text in asked] == [("1", "one"), ("2", "two"), ("3", "three")]
    skeleton = len(engine.sent[0][2].ids)
    assert measure(found.trajectory).l_critical == skeleton + (2 + 3 + 2 + 1) + len(found.response)


def test_a_point_is_written_out_whole_whatever_the_verifier_calls_an_answer() -> None:
    def reply(context: str, sampling: Sampling) -> str:
        return "<think></think>It is 7, I say.<|eos|>" if "Write out" in context else "<think></think>1. one<|eos|>"

    asked = question(answer=lambda text: "7" if "7" in text else None)
    found, _ = solve("skeleton_of_thought", {}, says(reply), asked=asked, budget=replace(BUDGET, response=200))
    assert TOKENS.decode(found.response) == "<think></think>1. It is 7, I say.<|eos|>"


@pytest.mark.parametrize(
    ("skeleton", "outcome", "note"),
    [
        ("<think></think>no list", "malformed", "skeleton without points"),
        ("<think></think>1. a", "answered", None),
    ],
)
def test_a_skeleton_without_points_ends_by_name(skeleton: str, outcome: str, note: str | None) -> None:
    found, _ = solve("skeleton_of_thought", {}, says(lambda context, sampling: f"{skeleton}<|eos|>"))
    assert found.trajectory.outcome == outcome and bool(found.response) == (note is None)
    assert found.trajectory.notes == ({} if note is None else {f"strategy/{note}": 1})


def test_a_task_s_own_split_and_merge_are_a_skeleton() -> None:
    found, engine = solve("skeleton_of_thought", {"skeleton": "task"}, says(sorter), asked=sorting("4231"), seed=1)
    assert len(engine.sent) == 2
    assert TOKENS.decode(found.response) == "<think></think>1234<|eos|>"


# Rounds


def test_a_round_reads_a_drawn_few_of_the_round_before() -> None:
    def reply(context: str, sampling: Sampling) -> str:
        return f"<think>r</think>{(sampling.seed or 0) % 1000}<|eos|>"

    found, engine = solve("rounds", {"population": 6, "subset": 2, "rounds": 3}, says(reply), seed=5)
    said = [TOKENS.decode(done.ids).removesuffix("<|eos|>") for _, _, done in engine.sent]
    asked = [TOKENS.decode(ids).partition("wrong:\n")[2] for ids, _, _ in engine.sent]
    read = [text.partition("\nUse")[0].splitlines() for text in asked]
    assert not any(read[:6])
    for first in (6, 12):
        for lines in read[first : first + 6]:
            assert lines[::2] == ["Candidate 1:", "Candidate 2:"]
            assert lines[1] != lines[3] and {lines[1], lines[3]} <= set(said[first - 6 : first])
    assert len({tuple(lines) for lines in read[6:]}) > 6  # not the same two for everyone
    assert found.trajectory.outcome == "answered"


def test_the_widths_of_rounds_are_pacore_s() -> None:
    def reply(context: str, sampling: Sampling) -> str:
        return f"<think>why</think>{context.count('Candidate ', 40)}<|eos|>"

    options = {"widths": [5, 3, 1], "subset": 5, "shows": "answer"}
    found, engine = solve("rounds", options, says(reply))
    assert len(engine.sent) == 5 + 3 + 1 and TOKENS.decode(found.response).endswith(
        "</think>3<|eos|>"
    )  # the three of round two
    assert "why" not in "".join(TOKENS.decode(ids) for ids, _, _ in engine.sent)
    assert measure(found.trajectory).l_critical == 3 * len(found.response)


def test_a_round_shows_what_finished_without_an_answer_and_does_not_elect_it() -> None:
    def reply(context: str, sampling: Sampling) -> str:
        return f"<think>r</think>{'7' if (sampling.seed or 0) % 3 == 0 else 'unsure'}<|eos|>"

    asked = question(answer=lambda text: "7" if "7" in text else None)
    budget = replace(BUDGET, response=200)
    for seed in range(6):
        options = {"population": 5, "subset": 5, "rounds": 2}
        found, engine = solve("rounds", options, says(reply), seed=seed, asked=asked, budget=budget)
        said = [TOKENS.decode(done.ids) for _, _, done in engine.sent]
        assert all(TOKENS.decode(ids).count("Candidate ") == 6 for ids, _, _ in engine.sent[5:])
        assert ("7" in TOKENS.decode(found.response)) == any("7" in text for text in said[5:])


def test_a_round_that_nobody_finishes_is_the_last() -> None:
    found, engine = solve("rounds", {"population": 3}, says(lambda context, sampling: "b" * 60))
    assert found.trajectory.outcome == "truncated" and found.response == ()
    assert sum(sampling.max_tokens > BUDGET.answer for _, sampling, _ in engine.sent) == 3
