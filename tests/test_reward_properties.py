"""What must hold of any tree: more is not paid for less, names and order do not matter, and the machine is a machine.

test_reward_presets.py has the bounds and gates of the presets.
"""

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from helpers import toy_tokens
from hypothesis import given
from hypothesis import strategies as st
from test_reward_presets import COMPANION, PRESETS, REWARDS, flipped
from trees import grow, judged

from rewards.build import make_reward
from rewards.hardware import Hardware
from rewards.scored import Group, Scored
from rollout.critical_path import measure
from rollout.demonstration import Block, Demonstration
from rollout.dialects.threadweaver import ThreadWeaver
from rollout.engine import Completion, Prompt, Sampling
from rollout.engines.replay import ReplayEngine
from rollout.orchestrator import Budget, run_trajectory
from rollout.trajectory import Trajectory

Pieces = list[Any]
COUNT = st.integers(1, 30)
TREE = st.recursive(
    COUNT.map(lambda n: [n]),
    lambda inner: st.tuples(COUNT, st.lists(st.tuples(st.lists(inner, min_size=1, max_size=3), COUNT), max_size=2)).map(
        lambda made: [made[0], *(piece for block in made[1] for piece in block)]
    ),
    max_leaves=8,
)
"""A call, then up to two blocks of threads with a call after each; threads are such trees again."""
FORCED = st.tuples(st.integers(0, 4), st.integers(0, 4))
"""Forced tokens before each thread and after each block."""
EXAMPLE = ((1, 1.0), (2, 1.03), (4, 1.1), (8, 1.25))
"""The curve of the preset hardware_aware."""


def value(kind: str, scored: Scored, *companions: Scored, **settings: Any) -> float:
    reward = make_reward({"answer": {"kind": "outcome", "weight": 0.0}, "term": {"kind": kind, **settings}})
    return reward.parts(Group((scored, *companions)), 1)["term"][0].value


def longer(pieces: Pieces, call: int, more: int) -> Pieces:
    """The same tree with `more` tokens in one of its calls, counted modulo their number."""
    places: list[tuple[Pieces, int]] = []

    def copied(own: Pieces) -> Pieces:
        made: Pieces = []
        for piece in own:
            if not isinstance(piece, list):
                places.append((made, len(made)))
            made.append([copied(thread) for thread in piece] if isinstance(piece, list) else piece)
        return made

    tree = copied(pieces)
    own, at = places[call % len(places)]
    own[at] += more
    return tree


# What the terms are said to rise and fall with


@given(TREE, TREE, FORCED)
def test_acceleration_ranks_by_eta_and_nothing_else(one: Pieces, other: Pieces, forced: tuple[int, int]) -> None:
    header, join = forced
    low, high = sorted(
        (judged(grow(*one)), judged(grow(*other, header=header, join=join))), key=lambda scored: scored.lengths.eta
    )
    assert 0.0 <= low.lengths.eta <= high.lengths.eta < 1.0
    for settings in ({}, {"rho": 0.5, "cap": 0.2}, {"form": "ratio", "cap": 0.2, "weight": 0.5}):
        assert value("acceleration", low, **settings) <= value("acceleration", high, **settings) + 1e-12
    if high.lengths.eta - low.lengths.eta > 1e-9:
        assert value("acceleration", low) < value("acceleration", high)
        assert value("acceleration", low, form="ratio") < value("acceleration", high, form="ratio")


@given(TREE, TREE, st.sampled_from(["group_mean", "group_best"]))
def test_of_two_right_answers_the_shorter_path_has_the_better_latency(one: Pieces, other: Pieces, ref: str) -> None:
    first, second = judged(grow(*one)), judged(grow(*other))
    members = (first, second, COMPANION)
    paid = [value("latency", own, *(m for m in members if m is not own), reference=ref) for own in members]
    by_path = sorted(range(3), key=lambda i: members[i].lengths.l_critical)
    assert all(paid[a] >= paid[b] for a, b in pairwise(by_path))
    # around a mean, gains and losses cancel; beside the best, nobody gains
    assert sum(paid) == pytest.approx(0.0, abs=1e-9) if ref == "group_mean" else max(paid) == 0.0


@given(TREE, st.integers(0, 99), st.integers(1, 50))
def test_more_tokens_never_pay_as_latency_length_or_overlength(pieces: Pieces, call: int, more: int) -> None:
    before, after = judged(grow(*pieces)), judged(grow(*longer(pieces, call, more)))
    assert value("total_tokens", after, per=1.0) == value("total_tokens", before, per=1.0) + more
    for kind, settings in (
        ("latency", {}),
        ("overlong", {"longest": 60, "buffer": 50}),
        ("delegated_length", {"root_free": 5, "thread_free": 5}),
    ):
        assert value(kind, after, COMPANION, **settings) <= value(kind, before, COMPANION, **settings) + 1e-12
    for limit in ("total", "critical"):
        assert value("budget_violation", after, **{limit: 20}) >= value("budget_violation", before, **{limit: 20})


@given(TREE, st.integers(0, 99), st.integers(1, 50))
def test_robust_never_pays_for_more_tokens(pieces: Pieces, call: int, more: int) -> None:
    """In no thread, on the path or beside it. (All tokens differ, so that no repetition comes or goes.)"""
    before, after = (
        REWARDS["robust"](Group((judged(grow(*tree)), COMPANION)), 9)[0]
        for tree in (pieces, longer(pieces, call, more))
    )
    assert after < before


# Names and order


@given(TREE, FORCED, st.randoms(use_true_random=False))
def test_the_order_in_which_calls_were_recorded_changes_no_reward(
    pieces: Pieces, forced: tuple[int, int], random: Any
) -> None:
    """An engine records a call when it ends: with other timing, the same rollout has its calls in another order."""
    trajectory = grow(*pieces, header=forced[0], join=forced[1])
    other = shuffled(trajectory, random)
    for preset in PRESETS:
        one, two = (REWARDS[preset](Group((judged(each), COMPANION)), 9)[0] for each in (trajectory, other))
        assert one == two, preset


def shuffled(trajectory: Trajectory, random: Any) -> Trajectory:
    """Its calls in a random order in which each still follows those whose text it reads."""
    left, made = list(trajectory.calls), list[Any]()
    sampled = {call.sampled for call in left}
    while left:
        done = {call.sampled for call in made}
        ready = [call for call in left if sampled & set(call.context) <= done]
        made.append(random.choice(ready))
        left.remove(made[-1])
    return Trajectory("p", "threadweaver", trajectory.segments, tuple(made), trajectory.outcome)


@given(TREE, FORCED)
def test_the_order_of_siblings_changes_the_wait_only_where_workers_or_reading_are_scarce(
    pieces: Pieces, forced: tuple[int, int]
) -> None:
    one, two = (judged(grow(*tree, header=forced[0], join=forced[1])) for tree in (pieces, flipped(pieces)))
    machine = Hardware(64, EXAMPLE)
    assert machine.wait_ms(one) == pytest.approx(machine.wait_ms(two))


# The machine


class Timed(ReplayEngine):
    """Takes as long as its answer, as an engine does."""

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        completion = await super().complete(prompt, sampling, thread)
        for _ in completion.ids:
            await asyncio.sleep(0)
        return completion


def test_the_engines_timing_does_not_change_what_a_rollout_is_worth() -> None:
    """Threads of about 30, 20 and 10: on two workers the third follows the second, whoever ended first."""
    tokens = toy_tokens()
    dialect, budget = ThreadWeaver(tokens), Budget(response=5000, answer=64, threads=8, blocks=4)
    script = dialect.write(Demonstration((Block((("", "a" * 30), ("", "b" * 20), ("", "c" * 10))),), "36"))
    waits: list[list[float]] = []
    orders: list[list[tuple[int, ...]]] = []
    for engine in (ReplayEngine(script, 10_000), Timed(script, 10_000)):
        trajectory = asyncio.run(run_trajectory(engine, dialect, "p", tokens.prompt("q"), budget))
        scored = Scored(trajectory, measure(trajectory), "correct")
        orders.append([trajectory.segments[call.sampled].thread for call in trajectory.calls])
        waits.append([Hardware(workers, EXAMPLE, 0.02).wait_ms(scored) for workers in (1, 2, 3)])
    assert orders == [[(), (0, 1), (0, 2), (0, 3), ()]] * 2  # served in another order, recorded in the same
    assert waits[0] == waits[1]


def millisecond_by_millisecond(trajectory: Trajectory, workers: int, step: int, read: int) -> int:
    """The brute force with reading, where all decode at one speed: a step of `step` and a read token of `read` ms.

    What is new to a call is found by comparing its tokens with all that an earlier call has read and written.
    """
    texts = [[*trajectory.context_ids(c), *trajectory.segments[c.sampled].ids] for c in trajectory.calls]
    left: list[int] = []
    for number, call in enumerate(trajectory.calls):
        context = trajectory.context_ids(call)
        known = max((common(context, text) for text in texts[:number]), default=0)
        left.append(read * (len(context) - known) + step * len(trajectory.segments[call.sampled].ids))
    maker = {call.sampled: number for number, call in enumerate(trajectory.calls)}
    needs = [{maker[source] for source in call.context if source in maker} for call in trajectory.calls]
    running, clock = list[int](), 0
    while any(left):
        for number, need in enumerate(needs):
            can_start = left[number] and number not in running and not any(left[before] for before in need)
            if can_start and len(running) < workers:
                running.append(number)
        clock += 1
        for number in running:
            left[number] -= 1
        running = [number for number in running if left[number]]
    return clock


def common(one: list[int], other: list[int]) -> int:
    """Length of the common prefix."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@given(TREE, FORCED, st.integers(1, 4), st.integers(1, 3), st.integers(0, 2))
def test_the_wait_is_that_of_a_machine_watched_every_millisecond(
    pieces: Pieces, forced: tuple[int, int], workers: int, step: int, read: int
) -> None:
    trajectory = grow(*pieces, header=forced[0], join=forced[1])
    wait = Hardware(workers, ((1, float(step)),), float(read)).wait_ms(judged(trajectory))
    assert wait == pytest.approx(millisecond_by_millisecond(trajectory, workers, step, read))


def test_one_call_reads_while_others_decode_by_hand() -> None:
    """Steps of 2, 3 and 4 ms for one, two and three sequences; 1 ms for a token that is read; nothing in the prompt.

    Root 2 | two threads of 2 and 20: 2 * 3, 18 left | two nested of 1 beside it: 4, 17 left | the nested join reads 1
    while half a token of the 20 is decoded: 1 | its token: 3, 15.5 left | 31 | the join reads the 20: 20 | 2.
    """
    trajectory = grow(1, [[2, [[1], [1]], 1], [20]], 1, prompt=0)
    machine = Hardware(3, ((1, 2.0), (2, 3.0), (3, 4.0)), prefill_ms=1.0)
    assert machine.wait_ms(judged(trajectory)) == pytest.approx(2 + 6 + 4 + 1 + 3 + 31 + 20 + 2)


def test_forced_tokens_are_read_not_decoded() -> None:
    # prompt 10, root 20, headers of 3 side by side, 50 beside 30, then the second thread's 3 + 50 and the join's 2, 20
    scored = judged(grow(20, [[30], [50]], 20, header=3, join=2))
    assert Hardware(2, ((1, 1.0),), 0.5).wait_ms(scored) == pytest.approx(5 + 20 + 1.5 + 50 + 27.5 + 20)


@given(TREE, FORCED, st.integers(0, 99), st.integers(1, 50))
def test_with_a_worker_for_every_call_a_longer_call_is_never_waited_for_less(
    pieces: Pieces, forced: tuple[int, int], call: int, more: int
) -> None:
    header, join = forced
    before, after = (judged(grow(*tree, header=header, join=join)) for tree in (pieces, longer(pieces, call, more)))
    for machine in (Hardware(64, ((1, 1.0),), 0.3), Hardware(64, EXAMPLE, 0.02)):
        assert machine.wait_ms(after) >= machine.wait_ms(before) - 1e-9


def test_with_few_workers_a_longer_call_can_be_waited_for_less() -> None:
    """Known and kept: list scheduling has such anomalies. Two workers, all at 1 ms a token.

    With A's first call of 1: root 1, A and B 1, A's two nested 1, A's last beside B's nested 1, B's nested 1, B's last
    2, root 1: 8. With a first call of 2, B's nested starts earlier: root 1, A and B 1, A and B's nested 2, ... : 7.
    """
    machine = Hardware(2, ((1, 1.0),))
    thread_b = [1, [[2]], 2]
    waits = [machine.wait_ms(judged(grow(1, [[first, [[1], [1]], 1], thread_b], 1))) for first in (1, 2)]
    assert waits == pytest.approx([8.0, 7.0])


@given(TREE, st.integers(1, 8))
def test_no_number_of_workers_beats_the_critical_path_or_loses_to_one_worker(pieces: Pieces, workers: int) -> None:
    scored = judged(grow(*pieces))
    wait = Hardware(workers, ((1, 1.0),)).wait_ms(scored)
    lengths = scored.lengths
    assert lengths.l_critical - 1e-6 <= wait <= lengths.l_total + 1e-6
    # Graham's bound on list scheduling
    assert wait <= lengths.l_total / workers + (1 - 1 / workers) * lengths.l_critical + 1e-6
