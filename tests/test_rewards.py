"""Terms, gates, clips, schedules and the machine model, each by hand or against an independent brute force."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_reward_presets import THREAD
from trees import SAME, SHAPES, grow, judged

from rewards.build import KINDS, make_reward
from rewards.errors import RewardError
from rewards.hardware import Hardware
from rewards.schedule import make_schedule
from rewards.scored import Group, Scored
from rollout.trajectory import Trajectory

BLOCK, SEQUENTIAL, NESTED = SHAPES["one block"], SHAPES["sequential"], SHAPES["nested"]


def value(kind: str, settings: dict[str, Any], *members: Scored | Trajectory) -> float:
    """The term's value for the first member, with nothing else in the reward but a worthless outcome."""
    scored = tuple(member if isinstance(member, Scored) else judged(member) for member in members)
    reward = make_reward({"answer": {"kind": "outcome", "weight": 0.0}, "term": {"kind": kind, **settings}})
    return reward.parts(Group(scored), 1)["term"][0].value


@pytest.mark.parametrize(
    ("kind", "settings", "trajectory", "expected"),
    [
        ("outcome", {"correct": 2.0}, SEQUENTIAL, 2.0),
        ("acceleration", {}, BLOCK, 0.25),
        ("acceleration", {"form": "ratio", "rho": 0.5}, BLOCK, 0.5 / 3),
        ("acceleration", {}, grow(), 0.0),
        ("acceleration", {"form": "ratio"}, grow(), 0.0),
        ("latency", {}, BLOCK, 0.0),
        ("overlong", {"longest": 100, "buffer": 20}, BLOCK, -0.5),
        ("overlong", {"longest": 100, "buffer": 20}, SEQUENTIAL, 0.0),
        ("overlong", {"longest": 50, "buffer": 50}, BLOCK, -1.0),
        ("concurrency", {"workers": 2}, BLOCK, 80 / 180),
        ("concurrency", {"workers": 2}, grow(), 0.0),
        ("one", {}, SEQUENTIAL, 1.0),
        ("structure", {}, BLOCK, 1.0),
        ("structure", {}, SEQUENTIAL, 0.0),
        ("strict_format", {}, SEQUENTIAL, 1.0),
        ("trigger", {}, NESTED, 1.0),
        ("trigger", {}, SEQUENTIAL, 0.0),
        ("parallel_ratio", {}, BLOCK, 80 / 120),
        ("threads", {}, NESTED, 4.0),
        ("instantiate", {"most": 8}, NESTED, 0.5),
        ("instantiate", {"most": 2}, NESTED, 1.0),
        ("finish", {}, grow(5, [[5], [5], [5]], 5, cut=[(0, 2)]), 2 / 3),
        ("finish", {}, SEQUENTIAL, 0.0),
        ("total_tokens", {"per": 480.0}, BLOCK, 0.25),
        ("redundancy", {}, SHAPES["duplicate threads"], 1.0),
        ("redundancy", {}, BLOCK, 0.0),
        ("redundancy", {}, SHAPES["empty threads"], 0.0),
        ("redundancy", {}, SEQUENTIAL, 0.0),
        ("redundancy", {}, grow(5, [[SAME], [SAME], [50]], 5), 2 / 3),
        ("redundancy", {"over_threads": "largest"}, grow(5, [[SAME], [SAME], [50]], 5), 1.0),
        ("redundancy", {}, grow(5, [[SAME]], 5, [[SAME]], 5), 0.0),
        # 1-grams, closing tags left out: {1,2,3,4} and {3,4,5,6} share 2 of 6
        ("redundancy", {"n": 1, "free": 0.0}, grow(5, [[(1, 2, 3, 4, 0)], [(3, 4, 5, 6, 0)]], 5), 1 / 3),
        ("redundancy", {"n": 1, "free": 0.2}, grow(5, [[(1, 2, 3, 4, 0)], [(3, 4, 5, 6, 0)]], 5), (1 / 3 - 0.2) / 0.8),
        ("delegated_length", {}, grow(768), -0.3 * (1 - math.exp(-1))),
        ("delegated_length", {"root_free": 0, "most": 0.1}, grow(768), -0.1),
        ("budget_violation", {"critical": 60, "total": 100, "threads": 2}, BLOCK, 0.5 + 0.2),
        ("budget_violation", {}, grow(9, outcome="forced_answer"), 1.0),
        ("budget_violation", {}, grow(5, [[5], [5]], 5, cut=[(0, 1)]), 1.0),
        ("budget_violation", {}, BLOCK, 0.0),
        ("node_success", {"bonus": 0.2}, grow(5, [[5], [5]], 5, cut=[(0, 1)]), 1.1),
        ("format_first", {}, grow(), -2.0),
        ("format_first", {}, grow(5, [[5], [5]], 5, cut=[(0, 1)]), -1.0),
        ("format_first", {}, grow(5, [[5], [5]], 5, outcome="forced_answer"), -1.0),
        ("hardware_latency", {}, BLOCK, 0.0),
    ],
)
def test_a_term_by_hand(kind: str, settings: dict[str, Any], trajectory: Trajectory, expected: float) -> None:
    assert value(kind, settings, trajectory) == pytest.approx(expected)


def test_every_kind_of_term_is_tested_by_hand() -> None:
    (marker,) = [m for m in test_a_term_by_hand.pytestmark if m.name == "parametrize"]
    assert {case[0] for case in marker.args[1]} == set(KINDS)


def test_latency_against_each_reference() -> None:
    fast, slow, wrong = judged(grow(60)), judged(grow(100)), judged(grow(10), "wrong")
    assert value("latency", {}, fast, slow, wrong) == pytest.approx(0.25)
    assert value("latency", {}, slow, fast, wrong) == pytest.approx(-0.25)
    assert value("latency", {"reference": "group_best"}, fast, slow, wrong) == 0.0
    assert value("latency", {"reference": "group_best"}, slow, fast, wrong) == pytest.approx(1 - 100 / 60)
    assert value("latency", {}, wrong, wrong) == 0.0


@pytest.mark.parametrize("content", ['{"problem_id": "p"}', "[]", "x", '{"problem_id": "p", "l_critical": 0}'])
def test_a_bad_baseline_file_is_named_with_its_line(tmp_path: Any, content: str) -> None:
    file = tmp_path / "b.jsonl"
    file.write_text('{"problem_id": "q", "l_critical": 1}\n' + content + "\n")
    with pytest.raises(RewardError, match=r"b\.jsonl:2"):
        make_reward({"outcome": {}, "latency": {"reference": "stored", "baseline": str(file)}})


# The pipeline


def parts(settings: dict[str, Any], *members: Scored, step: int = 1) -> list[Any]:
    return make_reward({"outcome": {}, "threads": settings}).parts(Group(members), step)["threads"]


def test_the_clip_comes_before_the_weight_and_the_schedule() -> None:
    schedule = {"kind": "linear", "start": 1.0, "end": 0.0, "steps": 10}
    (part,) = parts({"cap": 3.0, "weight": 0.5, "schedule": schedule}, judged(NESTED), step=3)
    assert (part.value, part.gate, part.saturated) == (pytest.approx(3 * 0.5 * 0.8), True, True)
    (part,) = parts({"floor": 5.0, "weight": -1.0}, judged(NESTED))
    assert (part.value, part.saturated) == (-5.0, True)
    (part,) = parts({"cap": 4.0, "floor": 4.0}, judged(NESTED))
    assert (part.value, part.saturated) == (4.0, False)


def test_all_gates_must_be_open() -> None:
    gate = {"gate": ["correct", "parallel", "well_formed"]}
    members = [judged(NESTED), judged(NESTED, "wrong"), judged(SEQUENTIAL), judged(NESTED, flaw="x")]
    assert [part.value for part in parts(gate, *members)] == [4.0, 0.0, 0.0, 0.0]
    assert [part.gate for part in parts(gate, *members)] == [True, False, False, False]
    opposite = {"gate": ["wrong", "malformed"]}
    assert parts(opposite, judged(NESTED, "unparsable", "x"))[0].value == 4.0


def test_what_was_not_judged_is_nan_and_changes_nobody_else() -> None:
    for verdict in ("timeout", "error"):
        members = (judged(grow(10), verdict), judged(grow(60)), judged(grow(100)))
        terms = {"outcome": {}, "latency": {}, "threads": {"standardise": True}}
        paid = make_reward(terms)(Group(members), 1)
        assert math.isnan(paid[0]) and paid[1:] == pytest.approx([1.25, 0.75])


def test_z_scores_by_hand_are_of_the_members_that_pass_the_gate() -> None:
    # threads 4, 2, 0 of the right ones: mean 2, sd sqrt(8/3)
    members = [judged(NESTED), judged(BLOCK), judged(SEQUENTIAL), judged(NESTED, "wrong")]
    found = [part.value for part in parts({"standardise": True, "gate": ["correct"]}, *members)]
    assert found == pytest.approx([2 / math.sqrt(8 / 3), 0.0, -2 / math.sqrt(8 / 3), 0.0])
    assert parts({"standardise": True}, judged(NESTED), judged(NESTED))[0].value == 0.0


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({}, "reward.terms is empty"),
        ({"threads": {}}, "no term of reward.terms looks at the answer"),
        ({"outcom": {}}, "reward.terms.outcom does not exist|kind 'outcom' does not exist: did you mean 'outcome'"),
        ({"outcome": {"corect": 1.0}}, "no option 'corect': did you mean 'correct'"),
        ({"outcome": {"weight": "much"}}, "option weight: 'much' is not float"),
        ({"outcome": {"scope": "child"}}, "not one of all, root, threads"),
        ({"outcome": {}, "redundancy": {"free": 1.0}}, "0 <= free < 1"),
        ({"outcome": {}, "overlong": {"buffer": 0}}, "0 < buffer <= longest"),
        ({"outcome": {}, "total_tokens": {"per": 0.0}}, "per > 0"),
        ({"outcome": {}, "instantiate": {"most": 0}}, "most >= 1"),
        ({"outcome": {}, "latency": {"reference": "stored"}}, "needs `baseline: file.jsonl`"),
        ({"outcome": {}, "latency": {"baseline": "x"}}, "exactly when its reference is `stored`"),
        ({"outcome": {}, "latency": {"reference": "stored", "baseline": "nowhere.jsonl"}}, "no such file"),
        ({"outcome": {}, "hardware_latency": {"decode_ms": [[2, 1.0]]}}, "from batch size 1"),
        ({"outcome": {}, "hardware_latency": {"decode_ms": [[1, 2.0], [2, 1.0]]}}, "never fall"),
        ({"outcome": {}, "hardware_latency": {"decode_ms": [[1.5, 2.0]]}}, "list of pairs"),
        ({"outcome": {}, "hardware_latency": {"workers": 0}}, "workers >= 1"),
    ],
)
def test_a_reward_that_cannot_be_built_says_why(terms: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=message) as caught:
        make_reward(terms)
    assert "\n" not in str(caught.value)


# Schedules


@pytest.mark.parametrize(
    ("given_", "values"),
    [
        ({}, {1: 1.0, 999: 1.0}),
        ({"value": 0.3}, {1: 0.3}),
        ({"kind": "linear", "steps": 10}, {1: 1.0, 6: 0.5, 11: 0.0, 99: 0.0}),
        ({"kind": "linear", "start": 0.2, "end": 0.6, "steps": 4}, {1: 0.2, 2: 0.3, 5: 0.6, 6: 0.6}),
        # cos(pi / 4) = 0.7071
        ({"kind": "cosine", "steps": 100}, {1: 1.0, 26: (1 + 0.70710678) / 2, 51: 0.5, 101: 0.0, 300: 0.0}),
        ({"kind": "alternating"}, {1: 0.0, 8: 0.0, 9: 1.0, 10: 1.0, 11: 0.0, 19: 1.0, 20: 1.0}),
        ({"kind": "alternating", "period": 3, "on": 1}, {1: 0.0, 2: 0.0, 3: 1.0, 6: 1.0, 7: 0.0}),
        (
            {
                "kind": "piecewise",
                "stages": [
                    {"until": 22, "schedule": {"kind": "linear", "start": 0.0, "end": 1.0, "steps": 10}},
                    {"until": 32, "schedule": {"kind": "alternating", "period": 5, "on": 1}},
                    {"schedule": {"value": 0.5}},
                ],
            },
            {1: 0.0, 6: 0.5, 22: 1.0, 23: 0.0, 25: 0.0, 27: 1.0, 32: 1.0, 33: 0.5},
        ),
    ],
)
def test_a_schedule_by_hand(given_: dict[str, Any], values: dict[int, float]) -> None:
    schedule = make_schedule(given_)
    assert {step: schedule(step) for step in values} == pytest.approx(values)
    backwards = [make_schedule(given_)(step) for step in reversed(values)]  # as after a resume: only the step counts
    assert backwards[::-1] == [schedule(step) for step in values]


def test_a_random_share_is_that_share_and_the_same_for_terms_of_one_seed() -> None:
    on = [make_schedule({"kind": "random_share", "share": 0.2})(step) for step in range(1, 5001)]
    assert set(on) == {0.0, 1.0} and 0.18 < sum(on) / 5000 < 0.22
    assert on == [make_schedule({"kind": "random_share", "share": 0.2, "seed": 0})(step) for step in range(1, 5001)]
    assert on != [make_schedule({"kind": "random_share", "share": 0.2, "seed": 1})(step) for step in range(1, 5001)]
    assert not any(make_schedule({"kind": "random_share", "share": 0.0})(step) for step in range(1, 99))
    assert all(make_schedule({"kind": "random_share", "share": 1.0})(step) for step in range(1, 99))


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"kind": "linar"}, "did you mean 'linear'"),
        ({"kind": "linear", "steps": 0}, "at least one step"),
        ({"kind": "alternating", "on": 11}, "1 <= on <= period"),
        ({"kind": "random_share", "share": 2.0}, "from 0 to 1"),
        ({"kind": "piecewise"}, "a kind and stages"),
        ({"kind": "piecewise", "stages": []}, "at least one stage"),
        ({"kind": "piecewise", "stages": [{"until": 3, "schedule": {}}]}, "stage 1: until=3"),
        ({"kind": "piecewise", "stages": [{"schedule": {}}, {"schedule": {}}]}, "stage 1: until=None"),
        (
            {
                "kind": "piecewise",
                "stages": [{"until": 5, "schedule": {}}, {"until": 5, "schedule": {}}, {"schedule": {}}],
            },
            "stage 2: until=5",
        ),
    ],
)
def test_a_bad_schedule_says_why(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        make_schedule(given_)


# The machine


def step_by_step(trajectory: Trajectory, workers: int, step_ms: dict[int, float]) -> float:
    """The brute force: one decode step at a time, reading is free; who is served follows the order recorded."""
    left = [len(trajectory.segments[call.sampled].ids) for call in trajectory.calls]
    maker = {call.sampled: index for index, call in enumerate(trajectory.calls)}
    needs = [{maker[s] for s in call.context if s in maker} for call in trajectory.calls]
    done, running, now = set[int](), list[int](), 0.0
    while len(done) < len(left):
        for call in range(len(left)):
            if call not in done and call not in running and needs[call] <= done and len(running) < workers:
                running.append(call)
        now += step_ms[len(running)]
        for call in list(running):
            left[call] -= 1
            if not left[call]:
                running.remove(call)
                done.add(call)
    return now


@given(THREAD, st.integers(1, 4))
def test_the_wait_is_that_of_a_machine_that_decodes_step_by_step(pieces: list[object], workers: int) -> None:
    curve = {1: 10.0, 2: 11.0, 3: 13.0, 4: 13.0}
    trajectory = grow(*pieces)
    wait = Hardware(workers, tuple(curve.items())).wait_ms(judged(trajectory))
    assert wait == pytest.approx(step_by_step(trajectory, workers, curve))


@given(THREAD)
def test_enough_workers_at_one_speed_wait_for_the_critical_path_and_one_for_all(pieces: list[object]) -> None:
    scored = judged(grow(*pieces))
    assert Hardware(99, ((1, 1.0),)).wait_ms(scored) == pytest.approx(scored.lengths.l_critical)
    assert Hardware(1, ((1, 1.0),)).wait_ms(scored) == pytest.approx(scored.lengths.l_total)


def test_a_join_reads_again_what_only_other_threads_have_read() -> None:
    # prompt 10, root 3, threads of 5 and 9, then 2. Read: the prompt, then the second thread (9) at the join
    scored = judged(grow(3, [[5], [9]], 2))
    free, paid = (Hardware(2, ((1, 1.0),), prefill_ms=price).wait_ms(scored) for price in (0.0, 0.5))
    assert (free, paid) == (pytest.approx(14.0), pytest.approx(14.0 + 0.5 * 19))


def test_decode_cost_is_linear_between_points_and_beyond_the_last() -> None:
    machine = Hardware(8, ((1, 10.0), (3, 14.0), (5, 15.0)))
    assert [machine.step_ms(batch) for batch in (1, 2, 3, 4, 5, 7)] == [10.0, 12.0, 14.0, 14.5, 15.0, 16.0]
    assert Hardware(8, ((1, 10.0),)).step_ms(64) == 10.0
