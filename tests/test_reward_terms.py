"""Terms where counting goes wrong: forced tokens, nesting, cut threads, odd groups, stored baselines, bad settings.

test_rewards.py has every kind of term in its plain case.
"""

import math
from pathlib import Path
from typing import Any

import pytest
from trees import SAME, grow, judged

from rewards.build import make_reward
from rewards.errors import RewardError
from rewards.reward import Part, Reward
from rewards.scored import Group, Scored
from rollout.trajectory import Trajectory

FORCED = grow(20, [[30], [50]], 20, header=3, join=2)
"""Threads of 3 + 30 and 3 + 50, joined by 2: L_total 20 + 33 + 53 + 2 + 20 = 128, L_critical 20 + 53 + 2 + 20 = 95."""


def term(kind: str, *members: Scored | Trajectory, **settings: Any) -> list[float]:
    """The term's value for each member."""
    scored = tuple(member if isinstance(member, Scored) else judged(member) for member in members)
    return [part.value for part in _reward(kind, settings).parts(Group(scored), 1)["term"]]


def _reward(kind: str, settings: dict[str, Any]) -> Reward:
    return make_reward({"answer": {"kind": "outcome", "weight": 0.0}, "term": {"kind": kind, **settings}})


# Forced tokens: they are waited for and paid for, and nobody wrote them


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("acceleration", {}, 33 / 128),
        ("acceleration", {"form": "ratio"}, 33 / 95),
        ("parallel_ratio", {}, 86 / 128),
        ("concurrency", {"workers": 2}, 86 / 190),
        ("total_tokens", {"per": 100.0}, 1.28),
        ("overlong", {"longest": 115, "buffer": 40}, -0.5),  # 95 is half-way from 75 to 115
        ("budget_violation", {"critical": 50, "total": 64, "threads": 1}, 45 / 50 + 1.0 + 1.0),
        # the root's own 42 tokens, the longest thread's 53, each one scale above 0: 1 - 1/e of 0.3 and of 0.2
        (
            "delegated_length",
            {"root_free": 0, "root_scale": 42.0, "thread_free": 0, "thread_scale": 53.0, "most": 1.0},
            -0.5 * (1 - math.exp(-1)),
        ),
    ],
)
def test_forced_tokens_count_as_tokens(kind: str, settings: dict[str, Any], expected: float) -> None:
    assert term(kind, FORCED, **settings) == [pytest.approx(expected)]


def test_threads_are_compared_by_what_they_wrote_not_by_their_forced_headers() -> None:
    assert term("redundancy", grow(5, [[SAME], [SAME]], 5, header=4), n=1) == [1.0]


def test_a_thread_of_a_forced_header_alone_is_empty_and_unfinished() -> None:
    lone = grow(5, [[30], []], 5, header=3)
    assert term("threads", lone) == [2.0]
    assert term("finish", lone) == [0.5]
    assert term("format_first", lone) == [-1.0]
    assert term("redundancy", lone) == [0.0]
    assert term("budget_violation", lone) == [1.0]


# Nesting, cuts and repetition


def test_a_nested_thread_counts_for_itself_not_for_the_one_around_it() -> None:
    # threads of 20 + 10 own tokens, of 40, and two nested ones of 10 and 30: the longest is 40
    nested = grow(10, [[20, [[10], [30]], 10], [40]], 10)
    one_scale = -0.2 * (1 - math.exp(-1))
    settings = {"root_free": 20, "thread_free": 0, "thread_scale": 40.0}
    assert term("delegated_length", nested, **settings) == [pytest.approx(one_scale)]
    assert term("finish", grow(10, [[20, [[10], [30]], 10], [40]], 10, cut=[(0, 1, 0, 2)])) == [0.75]


def test_children_of_all_blocks_share_one_mean() -> None:
    # three threads in two blocks, one cut off: the mean of all three, not the mean of two means
    trajectory = grow(5, [[5], [5]], 5, [[5]], 5, cut=[(1, 1)])
    assert term("node_success", trajectory, bonus=0.3) == [pytest.approx(1 + 0.3 * 2 / 3)]


@pytest.mark.parametrize(
    ("threads", "settings", "expected"),
    [
        ([[(7, 8, 0)], [(7, 8, 0)]], {"n": 4}, 1.0),  # shorter than n: the whole text is one gram
        ([[(7, 8, 0)], [(7, 9, 0)]], {"n": 4}, 0.0),
        ([[(0,)], [(1, 2, 3, 4, 0)]], {"n": 1, "free": 0.0}, 0.0),  # nothing but a closing tag
        # bigrams 12 23 34 and 12 23 35: 2 of 4; then exactly what is free, and half of the rest
        ([[(1, 2, 3, 4, 0)], [(1, 2, 3, 5, 0)]], {"n": 2, "free": 0.5}, 0.0),
        ([[(1, 2, 3, 4, 0)], [(1, 2, 3, 5, 0)]], {"n": 2, "free": 0.0}, 0.5),
        # 1-grams, each thread's nearest sibling: 12|123 2/3, 123|12 2/3, 389|123 1/5
        ([[(1, 2, 0)], [(1, 2, 3, 0)], [(3, 8, 9, 0)]], {"n": 1, "free": 0.0}, (2 / 3 + 2 / 3 + 1 / 5) / 3),
    ],
)
def test_repetition_by_hand(threads: list[Any], settings: dict[str, Any], expected: float) -> None:
    assert term("redundancy", grow(5, threads, 5), **settings) == [pytest.approx(expected)]


def test_repetition_inside_a_nested_block_counts() -> None:
    # the nested twins repeat each other, the outer threads do not: 2 of 4
    assert term("redundancy", grow(5, [[5, [[SAME], [SAME]], 5], [40]], 5)) == [0.5]


def test_a_thread_is_no_sibling_of_one_in_another_block() -> None:
    # SAME is in a nested block and in the outer one, then in two blocks of the root
    assert term("redundancy", grow(5, [[5, [[SAME], [40]], 5], [SAME]], 5), over_threads="largest") == [0.0]
    assert term("redundancy", grow(5, [[SAME], [40]], 5, [[SAME], [30]], 5), over_threads="largest") == [0.0]


def test_only_a_thread_that_closed_itself_ends_in_a_tag() -> None:
    # (1, 2) was cut off, so the 2 is text; (1, 2, 0) closed itself by the 0
    cut = grow(5, [[(1, 2)], [(1, 2, 0)]], 5, cut=[(0, 1)])
    assert term("redundancy", cut, n=1, free=0.0) == [1.0]


# Groups


def test_a_group_without_a_right_answer_or_with_one_member_says_nothing_about_speed() -> None:
    machine = {"workers": 1, "decode_ms": [[1, 1.0]]}
    for kind, settings in (("latency", {}), ("hardware_latency", machine)):
        for reference in ("group_mean", "group_best"):
            wrong = [judged(grow(10), "wrong"), judged(grow(20), "unparsable"), judged(grow(30), "error")]
            paid = term(kind, *wrong, reference=reference, **settings)
            assert paid[:2] == [0.0, 0.0] and math.isnan(paid[2])
            assert term(kind, grow(50), reference=reference, **settings) == [0.0]
            assert term(kind, grow(), reference=reference, **settings) == [0.0]


def test_only_right_answers_are_the_reference_malformed_ones_too() -> None:
    # right: 60, 90 and 150, mean 100; a wrong answer without a gate is compared all the same
    right = [judged(grow(60)), judged(grow(90), flaw="a breach"), judged(grow(150))]
    others = [judged(grow(50), "wrong"), judged(grow(1), "unparsable"), judged(grow(1), "timeout")]
    assert term("latency", *right, *others)[:4] == pytest.approx([0.4, 0.1, -0.5, 0.5])
    assert term("latency", *right, *others, reference="group_best")[:4] == pytest.approx([0.0, -0.5, -1.5, 1 - 50 / 60])
    # one worker decodes L_total: 120 and 60 tokens, mean 90
    block, plain = grow(20, [[30], [50]], 20), grow(60)
    assert term("hardware_latency", block, plain, workers=1) == pytest.approx([-1 / 3, 1 / 3])
    # two workers, twice as slow together: 20 + 30 * 2 + 20 + 20 = 120; at one speed 90, mean 75
    slow = {"workers": 2, "decode_ms": [[1, 1.0], [2, 2.0]]}
    assert term("hardware_latency", block, plain, **slow) == pytest.approx([-1 / 3, 1 / 3])
    assert term("hardware_latency", block, plain, workers=2) == pytest.approx([-0.2, 0.2])
    assert term("hardware_latency", block, plain, workers=2, reference="group_best") == pytest.approx([-0.5, 0.0])


def test_a_stored_baseline_is_read_by_problem(tmp_path: Path) -> None:
    file = tmp_path / "b.jsonl"
    file.write_bytes('{"problem_id": "q\u2028", "l_critical": 7}\n{"problem_id": "p", "l_critical": 120}\n'.encode())
    stored = {"reference": "stored", "baseline": str(file)}
    # L_critical 90 and 150 against 120, right or wrong, alone or not
    assert term("latency", grow(20, [[30], [50]], 20), judged(grow(150), "wrong"), **stored) == [0.25, -0.25]


@pytest.mark.parametrize("row", [b"\xff\xfe", b'{"problem_id": "p", "l_critical": Infinity}', b"{", b"3"])
def test_a_baseline_of_bytes_that_are_no_text_or_no_length_is_one_line(tmp_path: Path, row: bytes) -> None:
    file = tmp_path / "b.jsonl"
    file.write_bytes(b'{"problem_id": "q", "l_critical": 1}\n' + row)
    with pytest.raises(RewardError, match=r"b\.jsonl:2: "):
        make_reward({"outcome": {}, "latency": {"reference": "stored", "baseline": str(file)}})


# The pipeline


def test_what_binds_is_seen_from_both_sides_and_what_is_closed_never_binds() -> None:
    reward = make_reward({"outcome": {}, "threads": {"floor": 1.0, "cap": 2.0, "gate": ["correct"], "weight": 3.0}})
    three, none, two = grow(1, [[1], [1], [1]], 1), grow(1), grow(1, [[1], [1]], 1)
    group = Group((judged(three), judged(none), judged(two), judged(three, "wrong"), judged(three, "timeout")))
    found = reward.parts(group, 1)["threads"]
    assert found[:4] == [Part(6.0, True, True), Part(3.0, True, True), Part(6.0, True, False), Part(0.0, False, False)]
    assert math.isnan(found[4].value) and (found[4].gate, found[4].saturated) == (False, False)


def test_the_clip_comes_before_the_z_score_and_the_weight_after_it() -> None:
    # 3, 2, 0 threads cut at 2: 2, 2, 0, mean 4/3, deviation sqrt(8)/3; z 1/sqrt(2) twice, then -sqrt(2)
    members = (judged(grow(1, [[1], [1], [1]], 1)), judged(grow(1, [[1], [1]], 1)), judged(grow(1)))
    settings = {"cap": 2.0, "standardise": True, "weight": 0.1}
    assert term("threads", *members, **settings) == pytest.approx([0.0707107, 0.0707107, -0.1414214])
    assert term("threads", *members[:1], **settings) == [0.0]
    # one that was not judged takes no part: of 3 and 0, z is 1 and -1
    assert term("threads", members[0], members[2], judged(grow(9, [[1]], 9), "error"), standardise=True)[:2] == [1, -1]


def test_a_term_that_is_off_says_nothing_even_of_what_was_not_judged() -> None:
    off = {"kind": "alternating", "period": 2, "on": 1}
    reward = make_reward({"outcome": {}, "threads": {"schedule": off, "cap": 1.0}})
    group = Group((judged(grow(1, [[1], [1]], 1)), judged(grow(1), "timeout")))
    assert reward(group, 1)[0] == 1.0 and reward(group, 2)[0] == 2.0
    assert all(math.isnan(reward(group, step)[1]) for step in (1, 2))
    assert reward.schedule(1) == {"outcome": 1.0, "threads": 0.0}


def test_every_gate_says_what_its_name_says() -> None:
    block, plain = grow(1, [[1], [1]], 1), grow(1)
    members = (judged(block), judged(plain), judged(block, "wrong"), judged(plain, "unparsable", "a breach"))
    opens = {
        "correct": [1, 1, 0, 0],
        "wrong": [0, 0, 1, 1],
        "parallel": [1, 0, 1, 0],
        "sequential": [0, 1, 0, 1],
        "well_formed": [1, 1, 1, 0],
        "malformed": [0, 0, 0, 1],
    }
    assert {gate: term("one", *members, gate=[gate]) for gate in opens} == opens


def test_the_bonus_of_a_node_is_found_wherever_its_term_stands() -> None:
    assert make_reward({"outcome": {}, "mine": {"kind": "node_success", "bonus": 0.7}}).node_bonus == 0.7
    assert make_reward({"outcome": {}}).node_bonus is None


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"outcom": {}}, "reward.terms.outcom of kind 'outcom' does not exist: did you mean 'outcome'?"),
        ({"x": {"kind": "latncy"}}, "reward.terms.x of kind 'latncy' does not exist: did you mean 'latency'?"),
        ({"outcome": {"wieght": 2.0}}, "no option 'wieght': did you mean 'weight'?"),
        ({"outcome": {"gate": ["corect"]}}, "reward.terms.outcome.gate: 'corect' does not exist, did you mean 'cor"),
        ({"outcome": {"gate": "correct"}}, "option gate: 'correct' is not tuple"),
        ({"outcome": {"floor": 0.5, "cap": 0.2}}, "reward.terms.outcome: floor 0.5 is above cap 0.2"),
        ({"outcome": 1.0}, "reward.terms.outcome=1.0: a term is a mapping of settings; remove one with ~reward.terms"),
        ({"outcome": {"schedule": {"kind": "cosin"}}}, "reward.terms.outcome.schedule of kind 'cosin' does not exist"),
        ({"outcome": {"schedule": {"kind": "cosine", "stop": 0}}}, "no option 'stop'"),
        ({"outcome": {"weight": math.nan}}, "option weight: nan has a number that is not finite"),
        ({"outcome": {"cap": math.inf}}, "option cap: inf has a number that is not finite"),
        ({"outcome": {"schedule": {"value": math.nan}}}, "option schedule: {'value': nan} has a number that is not f"),
        ({"outcome": {}, "hardware_latency": {"decode_ms": [[math.inf, 1.0]]}}, "option decode_ms: "),
        ({"outcome": {}, "hardware_latency": {"decode_ms": []}}, "decode_ms goes from batch size 1 up"),
        ({"outcome": {}, "hardware_latency": {"decode_ms": [[1, 0.0]]}}, "decode_ms goes from batch size 1 up"),
        ({"outcome": {}, "hardware_latency": {"decode_ms": [[1, 1.0], [1, 2.0]]}}, "decode_ms goes from batch size"),
        ({"outcome": {}, "hardware_latency": {"decode_ms": [[1, 1.0, 2.0]]}}, "is a list of pairs"),
        ({"outcome": {}, "hardware_latency": {"prefill_ms": -1.0}}, "prefill_ms >= 0"),
        ({"outcome": {}, "redundancy": {"n": 0}}, "n >= 1"),
        ({"outcome": {}, "redundancy": {"free": -0.1}}, "0 <= free < 1"),
        ({"outcome": {}, "redundancy": {"over_threads": "most"}}, "'most' is not one of mean, largest"),
        ({"outcome": {}, "overlong": {"longest": 5, "buffer": 6}}, "0 < buffer <= longest"),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line(terms: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError) as caught:
        make_reward(terms)
    assert message in str(caught.value) and "\n" not in str(caught.value)
