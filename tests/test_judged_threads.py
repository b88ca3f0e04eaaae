"""Threads that the task judges: a wrong result is paid less, and hostile text breaks and buys nothing."""

import asyncio
import json
import re
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_dialects import EVERY, WIDE, Reader, may_refuse
from trees import grow, judged

from apr_train.compose import load
from apr_train.credit import node_advantages
from apr_train.metrics import trajectory_metrics
from apr_train.rollouts import Rollouts
from apr_train.run import run
from apr_train.stored import line_of, read_groups, read_recorded, recorded
from apr_train.tasks import make_task
from apr_train.tasks.base import JudgesThreads, Problem, TaskError
from rewards.build import make_reward
from rewards.scored import Group, Name, Scored
from rollout.dialects import DIALECTS
from rollout.dialects.base import Ids, Script, forks
from rollout.engines.replay import ReplayEngine
from rollout.search_trace import SearchRun

TASK = make_task("multiplication", {"factors_min": 4, "high": 99})
assert isinstance(TASK, JudgesThreads)
PROBLEM = Problem("p", "12 * 34 * 56 * 78 =", str(12 * 34 * 56 * 78), 2)
WITH_TASKS = {"threadweaver", "parason", "multiverse", "npr", "asyncthink", "recursive"}
"""Dialects whose demonstrations say what each thread is to do."""


def told(verdicts: dict[Name, float], *pieces: Any, **more: Any) -> Scored:
    return replace(judged(grow(*pieces, **more)), thread_verdicts=verdicts)


def value(scored: Scored, bonus: float = 0.2) -> float:
    (found,) = make_reward({"node_success": {"bonus": bonus}})(Group((scored,)), 1)
    return found


# By hand


@pytest.mark.parametrize(
    ("verdicts", "cut", "expected"),
    [
        ({}, [], 1.2),  # nothing judged: closing is all
        ({(0, 1): 1.0, (0, 2): 1.0}, [], 1.2),
        ({(0, 1): 0.0}, [], 1.1),  # the other one could not be judged
        ({(0, 1): 0.0, (0, 2): 0.5}, [], 1.05),  # 0.2 * (0 + 0.5) / 2
        ({(0, 1): 1.0, (0, 2): 1.0}, [(0, 2)], 1.1),  # who was cut off did not succeed, whatever it wrote
    ],
)
def test_a_node_is_paid_for_right_threads_by_hand(
    verdicts: dict[Name, float], cut: list[Name], expected: float
) -> None:
    assert value(told(verdicts, 5, [[5], [5]], 5, cut=cut)) == pytest.approx(expected)


def test_a_wrong_thread_still_earns_for_its_right_children() -> None:
    # (0,1) is wrong and has two right children: 0 + 0.5 * 1; (0,2) is right: the root gets 1 + 0.5 * (0.5 + 1) / 2
    verdicts = {(0, 1): 0.0, (0, 1, 0, 1): 1.0, (0, 1, 0, 2): 1.0, (0, 2): 1.0}
    assert value(told(verdicts, 5, [[5, [[5], [5]], 5], [5]], 5), 0.5) == pytest.approx(1.375)


def test_the_advantages_of_judged_nodes_by_hand() -> None:
    """Values of the threads: 1 and 0; 1; and of a trajectory that was not judged, which is no baseline: none."""
    group = Group((
        told({(0, 1): 1.0, (0, 2): 0.0}, 5, [[5], [5]], 5),
        told({(0, 1): 1.0}, 5, [[5]], 5),
        replace(told({(0, 1): 0.0}, 5, [[5]], 5), verdict="error"),
    ))  # fmt: skip
    found = node_advantages([group], 0.2, [0.1, 0.2, 0.0])
    assert found[:2] == [pytest.approx([0.1, 0.0, -1.0, 0.1]), pytest.approx([0.2, 0.5, 0.2])]


def test_the_share_of_right_threads_leaves_out_what_nobody_judged() -> None:
    figure = "tree/threads_right"
    scored = told({(0, 1): 1.0, (0, 2): 0.5}, 5, [[5], [5], [5]], 5)
    assert trajectory_metrics(scored)[figure] == 0.75
    nobody = trajectory_metrics(judged(grow(5)))[figure]
    assert nobody != nobody  # NaN, which the mean over trajectories leaves out


# What multiplication says of a thread


@pytest.mark.parametrize(
    ("asked", "said", "expected"),
    [
        ("91 * 300", "91*300: 1*3=3 9*3=27 = 27300\n", 1.0),
        ("91 * 300 =", "27300", 1.0),
        ("91*300=", " 27300 ", 1.0),
        ("2 * 3 * 4 =", "2*3=6 6*4=24", 1.0),
        ("7 * 0", "7*0: 7*0=0 = 0", 1.0),
        ("91 * 300", "27300 = 27301", 0.0),  # the right one is not the last
        ("91 * 300", "127300", 0.0),
        ("5 * 5", "24 or 25", 0.0),  # guesses
        ("5 * 5", "2^25", 0.0),
        ("12 * 34", "4 408", 0.0),
        ("5 * 5", "no" + " " * 300 + "25", 0.0),
        ("91 * 300", "27300.", 0.0),
        ("91 * 300", "-27300", 0.0),
        ("91 * 300", "3.27300", 0.0),
        ("7 * 0", "00", 0.0),
        ("1 * 1", "111", 0.0),
        ("91 * 300", "", 0.0),
        ("91 * 300", "2\u0667300", 0.0),  # another script's 7
        ("91", "91", None),
        ("", "27300", None),
        ("check 91 * 300", "27300", None),
        ("91 * 300\n91 * 300", "27300", None),
        ("\u0669 * 2", "18", None),
        ("9" * 150 + " * " + "9" * 150, "1", None),
        ("1 * " * 5_000_000 + "1", "1", None),
    ],
)
def test_a_thread_is_right_when_its_result_is_the_product_it_was_asked_for(
    asked: str, said: str, expected: float | None
) -> None:
    assert cast(JudgesThreads, TASK).thread_success(PROBLEM, asked, said) == expected


PRODUCTS = st.lists(st.integers(0, 99).map(str), min_size=1, max_size=4).map(" * ".join)
NINES = st.integers(0, 20_000).map(lambda count: "9" * count)
HOSTILE = PRODUCTS | NINES | st.text() | st.text("0123456789 *=-.\n", max_size=40)


@given(asked=HOSTILE, said=HOSTILE, knows=st.booleans())
def test_no_text_of_a_thread_breaks_the_judge_or_is_believed_without_the_product(
    asked: str, said: str, knows: bool
) -> None:
    if knows and len(asked) < 200:
        said += "=" + str(prod(int(factor) for factor in re.findall("[0-9]+", asked)))
    found = cast(JudgesThreads, TASK).thread_success(PROBLEM, asked, said)
    readable = len(asked.strip()) <= 200 and re.fullmatch(r"[0-9]+( ?\* ?[0-9]+)+( ?=)?", asked.strip())
    if not readable:
        assert found is None
        return
    last = re.search(r"(?:^|=)\s*([0-9]+)\s*\Z", said)
    product = prod(int(factor) for factor in re.findall("[0-9]+", asked))
    assert found == float(last is not None and last[1] == str(product))


# Every dialect


def script_of(reader: Reader) -> Script | None:
    return may_refuse(reader, cast(Any, TASK.demonstration(PROBLEM, "parallel")))


class Prepared(ReplayEngine):
    """The sampler of a rank that has one script."""

    policy_version = 0

    def load_weights(self, named_tensors: object) -> None: ...

    def close(self) -> None: ...

    def run(self, coroutines: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        return [asyncio.run(coroutine) for coroutine in coroutines]


def collect(reader: Reader, script: Script, judge: Any = TASK) -> Scored:
    rollouts = Rollouts(
        Prepared(script, 200_000), reader.dialect, reader.tokens, TASK.verifier, WIDE, judge=judge
    )  # fmt: skip
    (found,) = rollouts.collect([PROBLEM], temperature=1.0, seed=0)
    return found


@EVERY
def test_threads_of_a_demonstration_are_right_and_a_changed_result_is_not(reader: Reader) -> None:
    script = script_of(reader)
    if script is None:
        return
    right = collect(reader, script)
    judgeable = reader.name in WITH_TASKS
    assert right.correct and set(right.thread_verdicts) == (set(right.threads) if judgeable else set())
    assert set(right.thread_verdicts.values()) <= {1.0}
    if not judgeable:
        return
    victim = next(iter(right.threads))
    wrong = collect(reader, script | {victim: [changed(reader, script[victim])]})
    assert wrong.thread_verdicts == right.thread_verdicts | {victim: 0.0}
    assert wrong.threads[victim].finished  # it closed itself
    count = sum(len(name) == 2 for name in right.threads)
    assert value(right) - value(wrong) == pytest.approx(0.2 / count)
    assert value(collect(reader, script | {victim: [changed(reader, script[victim])]}, None)) == value(right)


def changed(reader: Reader, turns: list[Ids]) -> Ids:
    """The same turn with another last digit."""
    digits = {reader.tokens.text(digit)[0]: digit for digit in "0123456789"}
    (turn,) = turns
    last = max(at for at, token in enumerate(turn) if token in digits)
    return (*turn[:last], *reader.tokens.text(str((int(digits[turn[last]]) + 1) % 10)), *turn[last + 1 :])


def test_dialects_are_sorted_by_whether_their_threads_have_tasks() -> None:
    """A dialect that is added is to say which kind it is."""
    assert set(DIALECTS) - WITH_TASKS == {"sequential", "parallel_r1", "dc_cot", "parathinker", "apr"}


def test_the_tasks_of_nested_and_of_later_blocks_go_to_the_right_threads() -> None:
    reader = Reader("multiverse")
    fork = "<Parallel><Goal><Outline>{0}1: a </Outline> <Outline>{0}2:b</Outline></Goal>"
    ends = "x</Conclusion></Parallel>"
    trajectory = reader.play(
        {
            (): [reader.turn(text) for text in (f"<think>{fork.format('')}", f"{ends}<Parallel><Goal><Outline>1:c"
                 "</Outline></Goal>", f"{ends}</think>1<|eos|>")],
            (0, 1): [reader.turn("1</Path>")],
            (0, 2): [reader.turn(fork.format("2.")), reader.turn(f"{ends}2</Path>")],
            (0, 2, 0, 1): [reader.turn("3</Path>")],
            (0, 2, 0, 2): [reader.turn("4</Path>")],
            (1, 1): [reader.turn("5</Path>")],
        }
    )  # fmt: skip
    assert reader.dialect.tasks(trajectory) == {
        (0, 1): " a ",
        (0, 2): "b",
        (0, 2, 0, 1): " a ",
        (0, 2, 0, 2): "b",
        (1, 1): "c",
    }


def test_a_thread_that_hides_its_answer_from_its_parent_has_none() -> None:
    """The root of a delegating dialect reads what follows the thread's </think>, not what it thought."""
    reader = Reader("recursive")
    asked = "<think><spawn><task>6 * 7 =</task></spawn>"
    for said, right in (("<think>1</think>42", 1.0), ("<think>42</think>", 0.0), ("<think>42", 0.0)):
        script = {(): [reader.turn(asked), reader.turn("</think>1<|eos|>")], (0, 1): [reader.turn(f"{said}<|eos|>")]}
        assert collect(reader, script).thread_verdicts == {(0, 1): right}


def test_a_turn_that_is_recorded_as_two_calls_is_one_turn() -> None:
    """Else the blocks after the first would have no threads."""
    reader = Reader("apr", options={"surface": "terse"})
    turns = ("3*4=12:5 12\n+0,0\n", "+0,0\n", "-\n")
    children = (("12-5=7:7\n7!9\n-\n",),) * 2
    trajectory = reader.play(
        reader.dialect.write(SearchRun(turns, (((0, 0),),) * 2, children)), prompt=">0\n:9:3 4 5|\n"
    )  # fmt: skip
    names = {segment.thread for segment in trajectory.segments if segment.thread}
    assert names == {(0, 1), (1, 1)}
    assert [block for block, _ in forks(trajectory)] == [(0,), (1,)]


@pytest.mark.parametrize("verdict", [1.5, -0.1, float("nan")])
def test_a_verdict_that_is_no_share_is_refused(verdict: float) -> None:
    class Odd:
        def thread_success(self, problem: Problem, asked: str, said: str) -> float:
            return verdict

    reader = Reader("threadweaver")
    script = script_of(reader)
    assert script is not None
    with pytest.raises(TaskError, match=r"problem p: thread_success is .*, not 0 to 1 or None"):
        collect(reader, script, Odd())


# Stored rollouts


def test_stored_rollouts_are_paid_as_in_the_run(tmp_path: Path) -> None:
    members = [
        told({(0, 1): 0.0, (0, 2): 0.5}, 5, [[5], [5]], 5),
        told({(0, 1): 1.0, (0, 1, 0, 1): 0.25}, 5, [[5, [[5]], 5]], 5),
        judged(grow(5, [[5]], 5)),
    ]
    lines = [line_of(recorded(9, each, 1.0, 0.0)) for each in members]
    assert ["threads" in json.loads(line) for line in lines] == [True, True, False]
    file = tmp_path / "rollouts.jsonl"
    file.write_text("".join(lines))
    ((_, group),) = read_groups([file])
    assert [each.thread_verdicts for each in group] == [each.thread_verdicts for each in members]
    assert [value(each) for each in group] == [value(each) for each in members]
    assert len({value(each) for each in members}) == 3


TINY = (
    *("data=multiplication", "data.options.factors_min=4", "data.options.factors_max=4", "data.options.high=9"),
    *("model.hidden_size=64", "model.intermediate_size=128", "model.heads=2", "model.kv_heads=2"),
    *("sft.steps=200", "sft.problems_per_step=16", "sft.warmup_steps=10", "sft.parallel_share=1.0"),
    *("algorithm.steps=2", "algorithm.prompts_per_step=4", "algorithm.group_size=4", "data.train_problems=24"),
    *("rollout=torch", "rollout.max_response_tokens=700", "logger=disabled", "logger.progress=false"),
    *("eval.problems=4", "reward=rao", "algorithm.credit=node_local", "logger.rollouts_every=1", "seed=5"),
)


@pytest.mark.slow
def test_a_run_pays_for_right_threads_and_its_records_score_the_same(tmp_path: Path) -> None:
    run(load([*TINY, f"output_dir={tmp_path / 'run'}"]))
    file = tmp_path / "run/rollouts-rank0.jsonl"
    paid = {each.trajectory.to_json(): each.reward for each in read_recorded([file])}
    members = [member for _, group in read_groups([file]) for member in group]
    assert len(members) == len(paid) == 32
    assert [value(each) for each in members] == [pytest.approx(paid[each.trajectory.to_json()]) for each in members]
    verdicts = {verdict for each in members for verdict in each.thread_verdicts.values()}
    assert verdicts == {0.0, 1.0}  # a policy that has hardly learnt to multiply closes threads with wrong products
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["tree/threads_right"] <= 1 for row in rows if row["stage"] == "rl")
