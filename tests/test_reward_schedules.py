"""Schedules nested, out of order and at their seams; test_rewards.py has each kind in its plain case."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.build import make_reward
from rewards.errors import RewardError
from rewards.schedule import make_schedule

KINDS: tuple[dict[str, Any], ...] = (
    {"value": 0.3},
    {"kind": "linear", "start": 0.0, "end": 2.0, "steps": 7},
    {"kind": "cosine", "start": 1.0, "end": 0.25, "steps": 13},
    {"kind": "alternating", "period": 7, "on": 3},
    {"kind": "random_share", "share": 0.4, "seed": 5},
)
SCHEDULE = st.recursive(
    st.sampled_from(KINDS),
    lambda inner: st.tuples(st.integers(1, 20), inner, inner).map(
        lambda made: {"kind": "piecewise", "stages": [{"until": made[0], "schedule": made[1]}, {"schedule": made[2]}]}
    ),
    max_leaves=4,
)


@given(SCHEDULE, st.lists(st.integers(1, 60), min_size=1, max_size=20))
def test_a_step_has_its_factor_whatever_was_asked_before(given_: dict[str, Any], steps: list[int]) -> None:
    """A resumed run asks from the middle on; a viewer asks backwards."""
    one, other = make_schedule(given_), make_schedule(given_)
    forward = {step: one(step) for step in range(1, 61)}
    assert [other(step) for step in steps] == [forward[step] for step in steps]
    assert all(0.0 <= factor <= 2.0 for factor in forward.values())


@given(SCHEDULE, SCHEDULE, st.integers(1, 20), st.integers(1, 60))
def test_a_stage_counts_from_one_where_it_begins(
    one: dict[str, Any], two: dict[str, Any], until: int, step: int
) -> None:
    both = make_schedule({"kind": "piecewise", "stages": [{"until": until, "schedule": one}, {"schedule": two}]})
    inner, at = (one, step) if step <= until else (two, step - until)
    assert both(step) == make_schedule(inner)(at)


def test_stages_within_a_stage_by_hand() -> None:
    # steps 1 to 4: 1, 1, then linear from 0.5 by 0.25 a step; steps 5 to 10 alternate from 1 again; then 0.1
    inner = [
        {"until": 2, "schedule": {}},
        {"schedule": {"kind": "linear", "start": 0.5, "end": 1.0, "steps": 2}},
    ]
    schedule = make_schedule(
        {
            "kind": "piecewise",
            "stages": [
                {"until": 4, "schedule": {"kind": "piecewise", "stages": inner}},
                {"until": 10, "schedule": {"kind": "alternating", "period": 3, "on": 1}},
                {"schedule": {"value": 0.1}},
            ],
        }
    )
    assert [schedule(step) for step in range(1, 13)] == [1, 1, 0.5, 0.75, 0, 0, 1, 0, 0, 1, 0.1, 0.1]


def test_linear_reaches_its_end_after_its_steps_and_stays() -> None:
    up = make_schedule({"kind": "linear", "start": -1.0, "end": 1.0, "steps": 1})
    assert [up(step) for step in (1, 2, 3)] == [-1.0, 1.0, 1.0]


def test_a_cosine_by_hand() -> None:
    # from 2 to 1 in 6 steps: 1 + (1 + cos(x)) / 2 at x = 0, pi/3, pi/2, 2 pi/3, pi
    schedule = make_schedule({"kind": "cosine", "start": 2.0, "end": 1.0, "steps": 6})
    assert [schedule(step) for step in (1, 3, 4, 5, 7, 70)] == pytest.approx([2.0, 1.75, 1.5, 1.25, 1.0, 1.0])


def test_a_random_share_is_drawn_anew_each_step() -> None:
    """Of 2,000 steps with share 0.5 about half differ from the one before; a constant or alternating draw has not."""
    draw = make_schedule({"kind": "random_share", "share": 0.5})
    on = [draw(step) for step in range(1, 2002)]
    assert 900 < sum(a != b for a, b in pairwise(on)) < 1100
    assert make_schedule({"kind": "random_share"}) == make_schedule({"kind": "random_share", "share": 0.2, "seed": 0})


def test_two_terms_of_one_seed_are_on_together() -> None:
    share = {"kind": "random_share", "share": 0.3, "seed": 9}
    reward = make_reward({"outcome": {}, "a": {"kind": "one", "schedule": share}, "b": {"kind": "one"}})
    other = make_reward({"outcome": {}, "c": {"kind": "threads", "schedule": {**share, "seed": 8}}})
    mine = [reward.schedule(step)["a"] for step in range(1, 300)]
    assert mine == [make_schedule(share)(step) for step in range(1, 300)]
    assert mine != [other.schedule(step)["c"] for step in range(1, 300)]


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"kind": "cosine", "steps": 0}, "a cosine schedule takes at least one step, not 0"),
        ({"kind": "alternating", "on": 0}, "1 <= on <= period, not on=0 of 10"),
        ({"kind": "random_share", "share": -0.1}, "from 0 to 1, not -0.1"),
        ({"kind": "piecwise"}, "did you mean 'piecewise'?"),
        ({"kind": "linear", "stop": 3}, "no option 'stop'"),
        ({"kind": "linear", "steps": 2.5}, "option steps: 2.5 is not int"),
        ({"kind": "piecewise", "stages": [{"schedule": {}}], "value": 1.0}, "a kind and stages"),
        ({"kind": "piecewise", "stages": [{"untill": 3, "schedule": {}}]}, "stage 1 has no option 'untill'"),
        ({"kind": "piecewise", "stages": [{"until": 3}]}, "stage 1 needs a value for schedule"),
        ({"kind": "piecewise", "stages": [{"until": 0, "schedule": {}}, {"schedule": {}}]}, "stage 1: until=0"),
        ({"kind": "piecewise", "stages": [{"schedule": {"kind": "linr"}}]}, "stage 1 of kind 'linr' does not exist"),
        ({"kind": "piecewise", "stages": ["linear"]}, "stage 1: 'linear' is no mapping of until and schedule"),
    ],
)
def test_a_schedule_that_cannot_be_used_is_one_line(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError) as caught:
        make_schedule(given_, "here")
    assert message in str(caught.value) and "\n" not in str(caught.value)
