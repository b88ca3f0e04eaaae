"""Countdown as searched traces: solvers against traces worked out by hand, the strict verifier, and the task."""

import re
from collections import Counter
from itertools import pairwise
from random import Random
from statistics import mean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_train.tasks import make_task
from apr_train.tasks.base import TaskError
from apr_train.tasks.countdown import side
from apr_train.tasks.search import apr, heuristic, sos_plus, successors
from rewards.verdict import Verdict
from rewards.verify.countdown_search import countdown_search
from rollout.search_trace import (
    FULL,
    SURFACES,
    TAGS,
    TERSE,
    SearchRun,
    State,
    Surface,
    child_return,
    node_of,
    render_spawn,
    resolve_spawn,
    root_line,
)

BOTH = pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)


class Steady(Random):
    """Shuffles nothing, and finds everything promising."""

    def shuffle(self, x: Any) -> None:
        return None

    def random(self) -> float:
        return 0.0


def drawn(seed: int, count: int, size: int, number_max: int = 99) -> list[tuple[int, tuple[int, ...]]]:
    """Solvable instances of the task."""
    options = {"numbers": size, "number_max": number_max}
    return [
        _instance(problem.answer) for problem in make_task("countdown_search", options).problems("train", count, seed)
    ]


def _instance(answer: str) -> tuple[int, tuple[int, ...]]:
    target, _, *numbers = answer.split(" ")
    return int(target), tuple(map(int, numbers))


def asked(target: int, numbers: tuple[int, ...]) -> str:
    return f"{target} from {' '.join(map(str, numbers))}"


# --- the verifier -----------------------------------------------------------------------------------------------------

WAY = """\
Moving to Node #0
Current State: 62:[53, 22, 4, 2], Operations: []
Exploring Operation: 53-22=31, Resulting Numbers: [4, 2, 31]
Generated Node #0,3: 62:[4, 2, 31] Operation: 53-22=31
Moving to Node #0,3
Current State: 62:[4, 2, 31], Operations: ['53-22=31']
Exploring Operation: 4-2=2, Resulting Numbers: [31, 2]
Generated Node #0,3,0: 62:[31, 2] Operation: 4-2=2
Moving to Node #0,3,0
Current State: 62:[31, 2], Operations: ['53-22=31', '4-2=2']
Exploring Operation: 31*2=62, Resulting Numbers: [62]
62,62 equal: Goal Reached
"""
SEARCH = "Exploring Operation: 31*2=62, Resulting Numbers: [62]\n62,62 equal: Goal Reached\n"
REFERENCE = "62 from 2 4 22 53"


def changed(*changes: tuple[str, str]) -> str:
    way = WAY
    for old, new in changes:
        assert old in way
        way = way.replace(old, new)
    return SEARCH + way


JUDGED: dict[str, tuple[str, Verdict]] = {
    "a way after a search": (SEARCH + WAY, "correct"),
    "a way without a search": (WAY, "correct"),
    "no newline at the end": (SEARCH + WAY.removesuffix("\n"), "correct"),
    "SoS+ leaves out the first move": (SEARCH + WAY.partition("\n")[2], "correct"),
    "numbers of a state in another order": (changed(("[53, 22, 4, 2]", "[2, 53, 4, 22]")), "correct"),
    "and below": (changed(("[4, 2, 31]", "[2, 4, 31]")), "correct"),
    "only the last way counts": (SEARCH + WAY.replace("4-2=2", "4-2=3") + WAY, "correct"),
    "a wrong way after a right one": (WAY + WAY.replace("31*2", "31+2"), "wrong"),
    "gave up": ("33,62 unequal: No Solution\nNo solution found.\n", "wrong"),
    "gave up after the way": (WAY + "No solution found.\n", "wrong"),
    "a goal without a way": (SEARCH, "unparsable"),
    "a forged goal": ("62,62 equal: Goal Reached\n" * 2, "unparsable"),
    "a forged goal after the root": (
        SEARCH + "".join(WAY.splitlines(True)[:2]) + "62,62 equal: Goal Reached\n",
        "wrong",
    ),
    "a child's way": (SEARCH + "".join(WAY.splitlines(True)[4:]), "unparsable"),
    "a way inside a join": (f"{TAGS[2]}\n{WAY}{TAGS[3]}\n", "unparsable"),
    "a goal after such a join": (f"{TAGS[2]}\n{WAY}{TAGS[3]}\n62,62 equal: Goal Reached\n", "unparsable"),
    "words after the way": (WAY + "Done.\n", "unparsable"),
    "an empty line after the way": (WAY + "\n", "unparsable"),
    "words inside the way": (changed(("Moving to Node #0,3\n", "So:\nMoving to Node #0,3\n")), "unparsable"),
    "nothing": ("", "unparsable"),
    "other words": ("<think></think>(53-22)*2", "unparsable"),
    "another target": (changed(("62:", "31:"), ("62,62", "31,31")), "wrong"),
    "another goal": (changed(("62,62 equal", "31,31 equal")), "wrong"),
    "an unequal goal": (changed(("62,62 equal", "33,62 equal")), "wrong"),
    "other given numbers": (changed(("[53, 22, 4, 2]", "[53, 22, 4, 3]")), "wrong"),
    "a given number less": (changed(("[53, 22, 4, 2]", "[53, 22, 4]")), "wrong"),
    "a given number more": (changed(("[53, 22, 4, 2]", "[53, 22, 4, 2, 1]")), "wrong"),
    "a number used that is not there": (changed(("4-2=2", "8-6=2")), "wrong"),
    "an operation computed wrongly": (changed(("53-22=31", "53-21=31")), "wrong"),
    "a result that is not the result": (changed(("4-2=2", "4-2=1"), ("[31, 2]", "[31, 1]")), "wrong"),
    "another result on the table": (changed(("[4, 2, 31]", "[4, 2, 30]")), "wrong"),
    "a number lost on the way": (changed(("[4, 2, 31]", "[4, 31]")), "wrong"),
    "a number gained on the way": (changed(("[31, 2]", "[31, 2, 2]")), "wrong"),
    "the result not last": (changed(("[4, 2, 31]", "[4, 31, 2]")), "wrong"),
    "operations not carried on": (changed(("Operations: ['53-22=31', '4-2=2']", "Operations: ['4-2=2']")), "wrong"),
    "operations gone": (changed(("Operations: ['53-22=31']", "Operations: []")), "wrong"),
    "another operation generated": (changed(("31] Operation: 53-22=31", "31] Operation: 22-53=31")), "wrong"),
    "a move elsewhere": (changed(("Moving to Node #0,3\n", "Moving to Node #0,2\n")), "wrong"),
    "a node of another parent": (changed(("#0,3,0", "#0,2,0")), "wrong"),
    "a step left out": (SEARCH + "".join(WAY.splitlines(True)[:6] + WAY.splitlines(True)[10:]), "wrong"),
    "a state left out": (changed(("Current State: 62:[4, 2, 31], Operations: ['53-22=31']\n", "")), "wrong"),
    "a dead end on the way": (changed(("62,62 equal: Goal", "33,62 unequal: No Solution\n62,62 equal: Goal")), "wrong"),
}


@pytest.mark.parametrize(("response", "verdict"), JUDGED.values(), ids=JUDGED)
def test_only_a_legal_way_from_all_the_numbers_to_the_target_counts(response: str, verdict: Verdict) -> None:
    assert countdown_search(response, REFERENCE) == verdict


@pytest.mark.parametrize(
    ("target", "given_numbers", "operations", "verdict"),
    [
        (6, "3 3", ["3+3=6"], "correct"),  # one of two equal numbers is used, not both
        (9, "3 3 3", ["3+3=6", "6+3=9"], "correct"),
        (9, "3 3", ["3*3=9"], "correct"),
        (9, "3 5", ["3*3=9"], "wrong"),  # the published SoS+ checker took a number as often as it liked
        (6, "3 5", ["3+3=6"], "wrong"),
        (3, "9 3", ["9/3=3"], "correct"),
        (4, "9 2", ["9/2=4"], "wrong"),  # with a remainder
        (0, "9 0", ["9*0=0"], "correct"),
        (0, "9 0", ["0/9=0"], "wrong"),  # smaller by larger
        (9, "9 0", ["9/0=9"], "wrong"),
        (0, "9 0", ["9/0=0"], "wrong"),
        (5, "3 8", ["8-3=5"], "correct"),
        (5, "3 8", ["3-8=5"], "wrong"),  # would be negative
        (11, "3 8", ["3+8=11"], "correct"),  # any order where the order is nothing
        (12, "3 8", ["3+8=12"], "wrong"),
        (12, "3 8", ["12+0=12"], "wrong"),
    ],
)
def test_legal_operations_are_those_of_the_game(
    target: int, given_numbers: str, operations: list[str], verdict: Verdict
) -> None:
    """Ways of TERSE lines whose states follow what the operations say."""
    assert (
        countdown_search(terse_way(target, given_numbers, operations), f"{target} from {given_numbers}", TERSE)
        == verdict
    )


def terse_way(target: int, given_numbers: str, operations: list[str]) -> str:
    left, text, done, node = given_numbers.split(" "), f">0\n:{target}:{given_numbers}|\n", [], "0"
    for operation in operations:
        a, _, b, _, result = re.split(r"([-+*/=])", operation)
        for number in (a, b):
            if number in left:
                left.remove(number)
        left, done, node = [*left, result], [*done, operation], f"{node},0"
        text += f"{operation}:{' '.join(left)}\n"
        if len(done) < len(operations):
            text += f"+{node}\n>{node}\n:{target}:{' '.join(left)}|{' '.join(done)}\n"
    return f"{text}{target}={target}\n"


def test_leftover_numbers_are_refused_where_the_published_checker_took_them() -> None:
    way = terse_way(6, "3 3 7", ["3+3=6"])
    assert way == ">0\n:6:3 3 7|\n3+3=6:7 6\n6=6\n"
    assert countdown_search(way, "6 from 3 3 7", TERSE) == "wrong"
    hidden = way.replace("3+3=6:7 6", "3+3=6:6")
    assert countdown_search(hidden, "6 from 3 3 7", TERSE) == "wrong"


def test_the_surface_is_the_tasks_and_not_the_policys_choice() -> None:
    assert countdown_search(terse_way(9, "3 3", ["3*3=9"]), "9 from 3 3", FULL) == "unparsable"
    assert countdown_search(WAY, REFERENCE, TERSE) == "unparsable"


@pytest.mark.parametrize(
    "answer", ["", "62", "62 from", "62 from 2,4", "62 from 2  4", "x from 2", "9" * 5000 + " from 2"]
)
def test_a_broken_reference_is_an_error_and_not_the_models_fault(answer: str) -> None:
    assert countdown_search(WAY, answer) == "error"


def independent(response: str) -> bool:
    """Whether the operations of the last way in a full trace, computed anew, make 62 of the numbers of REFERENCE."""
    way = response[response.rindex("Operations: []") :]
    left = Counter((53, 22, 4, 2))
    for a, sign, b, result in re.findall(r"Exploring Operation: (\d+)(\D)(\d+)=(\d+)", way):
        left.subtract((int(a), int(b)))
        value = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}.get(sign)
        value = int(a) // int(b) if sign == "/" and int(b) and int(a) % int(b) == 0 else value
        if min(left.values()) < 0 or value != int(result):
            return False
        left[int(result)] += 1
    return +left == Counter((62,))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_change_of_a_character_makes_a_wrong_way_right(data: st.DataObject) -> None:
    response = SEARCH + WAY
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.integers(len(SEARCH), len(response) - 1))
        character = data.draw(st.one_of(st.sampled_from("0123456789+-*/=,[]'#: \n"), st.characters()))
        response = response[:place] + character + response[place + data.draw(st.integers(0, 1)) :]
    if countdown_search(response, REFERENCE) == "correct":
        assert independent(response)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=30), st.sampled_from(WAY.splitlines())), max_size=40), st.booleans())
def test_no_response_makes_the_verifier_fail(pieces: list[str], terse: bool) -> None:
    verdict = countdown_search("\n".join(pieces), REFERENCE, TERSE if terse else FULL)
    assert verdict in ("correct", "wrong", "unparsable")
    assert verdict != "correct" or independent("\n".join(pieces))


def test_a_long_response_is_judged_by_its_end_alone() -> None:
    assert countdown_search("x" * 3_000_000 + "\n" + WAY, REFERENCE) == "correct"
    assert countdown_search("Moving to Node #0\n" * 100_000 + "62,62 equal: Goal Reached\n", REFERENCE) == "unparsable"
    assert countdown_search(WAY.replace("62", "6" * 100_000), REFERENCE) == "unparsable"


# --- the solvers ------------------------------------------------------------------------------------------------------


def test_the_heuristic_is_the_codes_and_not_the_papers() -> None:
    assert heuristic((2, 31), 62) == 0
    assert heuristic((4, 2, 31), 62) == 2  # 4 is 2 away from 2; |4 + 2 + 31 - 31| would be 6
    assert heuristic((1, 100, 33), 62) == 1 + 38 + 2  # 1 is no factor, 62 is
    assert heuristic((0,), 7) == 7


def test_successors_are_all_legal_moves_with_the_result_last() -> None:
    found = successors(State(62, (2, 53, 4)))
    assert [state.operations[-1] for state in found] == [
        *("53+2=55", "53*2=106", "53-2=51"),
        *("4+2=6", "4*2=8", "4-2=2", "4/2=2"),
        *("53+4=57", "53*4=212", "53-4=49"),
    ]
    assert [state.numbers for state in found][3:5] == [(53, 6), (53, 8)]
    assert [state.numbers for state in successors(State(5, (5, 0)))] == [(5,), (0,), (5,)]


def test_a_search_with_beam_one_goes_as_worked_out_by_hand() -> None:
    """[2, 31] is the one successor of 53, 22, 2 of distance 0, [62] the one of 2, 31; nothing is left to draw."""
    run = apr(62, (53, 22, 2), Random(0), beam=1, child_beam=1, surface=TERSE)
    assert run == SearchRun((
        "53-22=31:2 31\n+0,0\n>0,0\n:62:2 31|53-22=31\n31*2=62:62\n62=62\n"
        ">0\n:62:53 22 2|\n53-22=31:2 31\n+0,0\n>0,0\n:62:2 31|53-22=31\n31*2=62:62\n62=62\n",
    ))  # fmt: skip
    nested = sos_plus(62, (53, 22, 2), Random(0), beam=1, nest=1.0)
    assert nested == (
        "Exploring Operation: 53-22=31, Resulting Numbers: [2, 31]\n"
        "Generated Node #0,0: 62:[2, 31] Operation: 53-22=31\n"
        "Start Sub Search at level 1: Moving to Node #0,0\n"
        "Current State: 62:[2, 31], Operations: ['53-22=31']\n"
        "Exploring Operation: 31*2=62, Resulting Numbers: [62]\n"
        "62,62 equal: Goal Reached\n"
        "Current State: 62:[53, 22, 2], Operations: []\n"
        "Exploring Operation: 53-22=31, Resulting Numbers: [2, 31]\n"
        "Generated Node #0,0: 62:[2, 31] Operation: 53-22=31\n"
        "Moving to Node #0,0\n"
        "Current State: 62:[2, 31], Operations: ['53-22=31']\n"
        "Exploring Operation: 31*2=62, Resulting Numbers: [62]\n"
        "62,62 equal: Goal Reached\n"
    )


def test_a_spawn_and_its_join_go_as_worked_out_by_hand() -> None:
    """The two nearest: [2, 31] at 0 and [2, 75] at 13. Of 2, 75 the nearest is 73, which is not 62."""
    run = apr(62, (53, 22, 2), Steady(), beam=2, child_beam=1)
    path = (
        "Moving to Node #0,0\n"
        "Current State: 62:[2, 31], Operations: ['53-22=31']\n"
        "Exploring Operation: 31*2=62, Resulting Numbers: [62]\n"
        "62,62 equal: Goal Reached\n"
    )
    restated = (
        "Moving to Node #0\n"
        "Current State: 62:[53, 22, 2], Operations: []\n"
        "Exploring Operation: 53-22=31, Resulting Numbers: [2, 31]\n"
        "Generated Node #0,0: 62:[2, 31] Operation: 53-22=31\n" + path
    )
    expanded = (
        "Exploring Operation: 53-22=31, Resulting Numbers: [2, 31]\n"
        "Generated Node #0,0: 62:[2, 31] Operation: 53-22=31\n"
        "Exploring Operation: 53+22=75, Resulting Numbers: [2, 75]\n"
        "Generated Node #0,1: 62:[2, 75] Operation: 53+22=75\n"
    )
    assert run == SearchRun(
        (expanded, restated),
        (((0, 0), (0, 1)),),
        (
            (
                "Exploring Operation: 31*2=62, Resulting Numbers: [62]\n62,62 equal: Goal Reached\n" + path,
                "Exploring Operation: 75-2=73, Resulting Numbers: [73]\n"
                "73,62 unequal: No Solution\nNo solution found.\n",
            ),
        ),
    )
    assert run.transcript() == (
        f"{expanded}<Sub Searches>\n<Goal Reached in Sub Search 0 at level 1 at Node #0,0>\n{path}"
        f"<No Solution in Sub Search 1 at level 1 at Node #0,1>\n<End Sub Searches>\n{restated}"
    )
    assert countdown_search(run.transcript(), "62 from 53 22 2") == "correct"


@BOTH
@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(3, 4), beam=st.integers(1, 6), sequential=st.booleans())
def test_every_trace_that_reaches_its_goal_is_judged_correct_and_no_other(
    surface: Surface, seed: int, size: int, beam: int, sequential: bool
) -> None:
    ((target, numbers),) = drawn(seed, 1, size)
    random = Random(seed)
    if sequential:
        text = sos_plus(target, numbers, random, beam=beam, surface=surface)
    else:
        text = apr(target, numbers, random, beam=beam, child_beam=beam + 2, surface=surface).transcript(surface)
    failed = text.endswith({"full": "No solution found.\n", "terse": "\n-\n"}[surface.name])
    assert countdown_search(text, asked(target, numbers), surface) == ("wrong" if failed else "correct")


def test_five_numbers_are_searched_too() -> None:
    ((target, numbers),) = drawn(3, 1, 5, number_max=20)
    verdicts = {
        countdown_search(
            apr(target, numbers, Random(seed), beam=3, child_beam=4, surface=TERSE).transcript(TERSE),
            asked(target, numbers),
            TERSE,
        )
        for seed in range(8)
    }
    assert verdicts <= {"correct", "wrong"}


def test_a_run_depends_on_its_random_source_alone() -> None:
    def make(seed: int) -> tuple[SearchRun, str]:
        random = Random(seed)
        instance = (24, (7, 3, 9, 14))
        return apr(*instance, random, beam=3, child_beam=4), sos_plus(*instance, random, beam=3)

    assert make(5) == make(5)
    assert len({str(make(seed)) for seed in range(5)}) == 5


def test_no_node_is_given_more_successors_than_the_beam_and_all_kept_ones_become_children() -> None:
    wider = 0
    for seed, (target, numbers) in enumerate(drawn(0, 60, 4)):
        prompt = root_line(target, numbers, TERSE)
        run = apr(target, numbers, Random(seed), beam=3, child_beam=5, promising=1.0, surface=TERSE)
        ((nodes,), (children,)) = run.spawns, run.children
        assert sorted(nodes) == [(0, 0), (0, 1), (0, 2)]
        prompts = resolve_spawn(render_spawn(nodes, TERSE), prompt + run.turns[0], TERSE)
        assert isinstance(prompts, list)
        states = [TERSE.read(text.split("\n")[1]) for text in prompts]
        distances = [heuristic(state.numbers, target) for state in states if state]
        assert distances == sorted(distances)  # the nearest child first
        for text in children:
            expansions = re.split(r"^:.*\n", text, flags=re.MULTILINE)
            tried = [len(re.findall(r"^\d+[-+*/]", part, re.MULTILINE)) for part in expansions]
            assert max(tried) <= 5
            wider += max(tried) > 3
    assert wider > 10  # children have a beam of their own


def test_a_parent_whose_children_all_failed_goes_on_with_its_queue() -> None:
    rounds = [apr(t, n, Random(k), beam=4, child_beam=4, promising=0.5) for k, (t, n) in enumerate(drawn(1, 60, 4))]
    several = [run for run in rounds if len(run.spawns) > 1]
    assert len(several) > 5
    for run in several:
        assert all(child_return(text) is None for children in run.children[:-1] for text in children)
        for turn in run.turns[1:-1]:  # from the join to the next spawn: on to a node that was waiting
            assert node_of(turn) in {(0, k) for k in range(4)}


def test_a_search_without_promise_or_with_one_successor_has_no_children() -> None:
    for seed, (target, numbers) in enumerate(drawn(2, 20, 4)):
        assert apr(target, numbers, Random(seed), beam=4, child_beam=4, promising=0.0).spawns == ()
        assert apr(target, numbers, Random(seed), beam=1, child_beam=4, promising=1.0).spawns == ()


def test_sub_searches_inside_a_text_are_nested_like_parentheses() -> None:
    left_over = 0
    for seed, (target, numbers) in enumerate(drawn(4, 40, 4)):
        text = sos_plus(target, numbers, Random(seed), beam=3)
        open_levels: list[int] = []
        for line in map(FULL.read, text.splitlines()):
            assert line is not None
            if line.kind == "enter":
                assert line.index == len(open_levels) + 1
                open_levels.append(line.index)
            elif line.kind == "leave":
                assert open_levels.pop() == line.index
        assert not open_levels or text.endswith("Goal Reached\n")
        left_over += bool(open_levels)
        for first, second in pairwise(text.splitlines()):
            assert ("Exit Sub Search" in first) == (second == "No solution found in sub search")
    assert left_over > 3


def _statistics(form: str, **options: Any) -> dict[str, float]:
    """What a task's demonstrations of 500 problems come to."""
    task = make_task("countdown_search", {"form": form, **options})
    problems = task.problems("train", 500, seed=7)
    runs = [task.demonstration(problem, task.forms[-1]) for problem in problems]
    searches = [run for run in runs if isinstance(run, SearchRun)]
    texts = [run.transcript() for run in searches]
    longest = [max(map(len, (t, *sum(run.children, ())))) for t, run in zip(texts, searches, strict=True)]
    return {
        "accuracy": mean(task.verifier(t, p.answer) == "correct" for t, p in zip(texts, problems, strict=True)),
        "rounds": mean(len(run.spawns) for run in searches),
        "children": mean(sum(map(len, run.spawns)) / len(run.spawns) if run.spawns else 0 for run in searches),
        "longest": mean(longest),
    }


@pytest.mark.slow
def test_the_solvers_reach_the_published_statistics() -> None:
    """Measured with the released code on 2,000 problems: 71.3 %, 1.05 rounds, 5.4 children a round (0 without one) and
    a longest text of 3,962 characters; 65.7 %, 0.53, 2.9 and 8,937 with promising=0.1; SoS+ 51.8 % and 4,147 with beams
    up to 5, 75.2 % up to 15. One standard error of an accuracy of 500 is 2 points."""
    released = _statistics("apr")
    assert released["accuracy"] == pytest.approx(0.713, abs=0.05)
    assert released["rounds"] == pytest.approx(1.05, abs=0.1)
    assert released["children"] == pytest.approx(5.4, abs=0.4)
    assert released["longest"] == pytest.approx(3962, rel=0.1)
    printed = _statistics("apr", promising=0.1)
    assert printed["accuracy"] == pytest.approx(0.657, abs=0.05)
    assert printed["rounds"] == pytest.approx(0.53, abs=0.1)
    assert printed["children"] == pytest.approx(2.9, abs=0.4)
    assert printed["longest"] == pytest.approx(8937, rel=0.2)
    narrow = _statistics("sos_plus")
    assert narrow["accuracy"] == pytest.approx(0.518, abs=0.05)
    assert narrow["longest"] == pytest.approx(4147, rel=0.2)
    assert _statistics("sos_plus", beam_max=15)["accuracy"] == pytest.approx(0.752, abs=0.05)


# --- the task ---------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"numbers": 3, "surface": "terse"}


def run_of(task: Any, problem: Any) -> SearchRun:
    run = task.demonstration(problem, task.forms[-1])
    assert isinstance(run, SearchRun)
    return run


def test_problems_are_those_of_countdown_on_the_same_side() -> None:
    plain = make_task("countdown", {}).problems("heldout", 20, seed=3)
    searched = make_task("countdown_search", {}).problems("heldout", 20, seed=3)
    assert [p.answer for p in plain] == [p.answer for p in searched]
    assert all(side(numbers, target) == "heldout" for target, numbers in (_instance(p.answer) for p in searched))
    assert len({problem.id for problem in searched}) == 20
    assert {problem.parts for problem in searched} == {6}


@pytest.mark.parametrize("form", ["apr", "sos_plus"])
@BOTH
def test_the_prompt_is_where_the_trace_starts(form: str, surface: Surface) -> None:
    task = make_task("countdown_search", {"form": form, "surface": surface.name})
    for problem in task.problems("train", 5, 0):
        target, numbers = _instance(problem.answer)
        assert problem.prompt == root_line(target, numbers, surface, moving=form == "apr")
        assert problem.parts == {"apr": 6, "sos_plus": 1}[form]


def test_same_problem_same_demonstration_and_other_problems_others() -> None:
    task, again = make_task("countdown_search", SMALL), make_task("countdown_search", SMALL)
    problems = task.problems("train", 30, 0)
    assert problems == again.problems("train", 30, 0)
    assert problems[:7] == task.problems("train", 7, 0)
    runs = [run_of(task, problem) for problem in problems]
    assert runs == [run_of(again, problem) for problem in reversed(problems)][::-1]
    assert len({str(run) for run in runs}) == 30


def test_the_sequential_form_of_apr_never_spawns_and_sos_plus_has_no_other() -> None:
    task = make_task("countdown_search", SMALL)
    for problem in task.problems("train", 20, 0):
        run = task.demonstration(problem, "sequential")
        assert isinstance(run, SearchRun)
        assert len(run.turns) == 1
    one = make_task("countdown_search", SMALL | {"form": "sos_plus"})
    (problem,) = one.problems("train", 1, 0)
    assert isinstance(one.demonstration(problem, "sequential"), SearchRun)
    with pytest.raises(TaskError, match="no parallel form"):
        one.demonstration(problem, "parallel")


def test_demonstrations_fail_as_often_as_the_solver_unless_only_solved_ones_are_wanted() -> None:
    for form in ("apr", "sos_plus"):
        failing = make_task("countdown_search", SMALL | {"form": form})
        solved = make_task("countdown_search", SMALL | {"form": form, "only_solved": True})
        verdicts = [
            {task.verifier(run_of(task, p).transcript(TERSE), p.answer) for p in task.problems("train", 60, 0)}
            for task in (failing, solved)
        ]
        assert verdicts == [{"correct", "wrong"}, {"correct"}]
        assert failing.problems("heldout", 20, 0) == solved.problems("heldout", 20, 0)  # the test stays as hard
        assert solved.problems("train", 9, 0) == solved.problems("train", 20, 0)[:9]


def test_a_prompt_tells_the_budget_that_its_demonstration_spends() -> None:
    task = make_task("countdown_search", SMALL | {"surface": "full", "condition": "sub_calls"})
    told: set[int] = set()
    for problem in task.problems("train", 60, 0):
        found = re.fullmatch(r"Sub Call Budget: (\d+) (Moving to Node #0\n.*\n)", problem.prompt)
        assert found
        run = run_of(task, problem)
        assert int(found[1]) == (round(sum(map(len, run.spawns)) / len(run.spawns)) if run.spawns else 0)
        told.add(int(found[1]))
    assert {0, 2, 5, 10} <= told <= set(range(11))
    for problem in task.problems("heldout", 5, 0):
        assert problem.prompt.startswith("Sub Call Budget: 10 Moving")


def test_token_budgets_come_in_bins_of_512_up_to_4096() -> None:
    options: dict[str, Any] = {"form": "sos_plus", "condition": "tokens", "budget": 1024}
    task = make_task("countdown_search", options)
    told: set[int] = set()
    for problem in task.problems("train", 60, 0):
        found = re.fullmatch(r"Token Budget: (\d+) (Current State: .*\n)", problem.prompt)
        assert found
        length = len(run_of(task, problem).turns[0])
        assert int(found[1]) - 512 < length <= int(found[1]) or (int(found[1]) == 4096 and length > 4096)
        told.add(int(found[1]))
    assert {512, 4096} < told <= set(range(512, 4097, 512))
    assert task.problems("heldout", 1, 0)[0].prompt.startswith("Token Budget: 1024 ")
    halved = make_task("countdown_search", options | {"characters_per_token": 1e9})
    assert {p.prompt.split(" ")[2] for p in halved.problems("train", 20, 0)} == {"512"}


def test_a_demonstration_that_does_not_spend_what_the_prompt_says_is_refused() -> None:
    fixed = make_task("countdown_search", SMALL | {"condition": "sub_calls", "train_budget": 10})
    problems = fixed.problems("train", 20, 0)
    assert {problem.prompt[:4] for problem in problems} == {"c10 "}
    with pytest.raises(TaskError, match="does not spend"):
        _ = [run_of(fixed, problem) for problem in problems]
    own = make_task("countdown_search", SMALL | {"condition": "sub_calls"})
    with pytest.raises(TaskError, match=r"sft.parallel_share=1"):
        _ = [own.demonstration(problem, "sequential") for problem in own.problems("train", 20, 0)]


def test_a_budget_before_the_prompt_hides_no_node_from_the_client() -> None:
    task = make_task("countdown_search", SMALL | {"condition": "sub_calls"})
    for problem in task.problems("train", 20, 0):
        run = run_of(task, problem)
        for spawn in run.spawns[:1]:
            prompts = resolve_spawn(render_spawn(spawn, TERSE), problem.prompt + run.turns[0], TERSE)
            assert isinstance(prompts, list)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"numbers": 2}, "3 to 5 numbers"),
        ({"form": "sos"}, "not one of apr, sos_plus"),
        ({"numbers": 5, "number_max": 1000}, "cannot spell"),
        ({"beam_max": 0}, "1 <= beam_max"),
        ({"beam_max": 16}, "<= child_beam_max"),
        ({"promising": 1.5}, "from 0 to 1"),
        ({"nest": -0.1}, "from 0 to 1"),
        ({"condition": "tokens"}, "form=apr cannot be conditioned on tokens"),
        ({"form": "sos_plus", "condition": "sub_calls"}, "form=sos_plus cannot be conditioned"),
        ({"budget": -1}, "0 or more"),
        ({"characters_per_token": 0}, "above 0"),
        ({"terse": True}, "no option 'terse'"),
    ],
)
def test_an_option_that_cannot_be_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError) as caught:
        make_task("countdown_search", options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_traces_that_next_to_never_succeed_are_told_and_not_searched_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apr_train.tasks.countdown_search.MAX_DRAWS", 20)
    monkeypatch.setattr("apr_train.tasks.countdown_search.CountdownSearch._solved", lambda *_: False)
    with pytest.raises(TaskError, match="raise beam_max"):
        make_task("countdown_search", SMALL | {"only_solved": True}).problems("train", 1, 0)
