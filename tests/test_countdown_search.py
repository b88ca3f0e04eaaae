"""Countdown as searched traces: the strict verifier, and the task with its budgets."""

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_train.tasks import make_task
from apr_train.tasks.base import TaskError
from apr_train.tasks.countdown import side
from rewards.verdict import Verdict
from rewards.verify.countdown_search import SearchVerifier, countdown_search
from rollout.search_trace import (
    FULL,
    SURFACES,
    TAGS,
    TERSE,
    SearchRun,
    Surface,
    render_spawn,
    resolve_spawn,
    root_line,
)

BOTH = pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)


def _instance(answer: str) -> tuple[int, tuple[int, ...]]:
    target, _, *numbers = answer.split(" ")
    return int(target), tuple(map(int, numbers))


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
    "the target out of nowhere": (changed(("31*2=62, Res", "31+2=33, Res")), "wrong"),
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
        (0, "0 0", ["0/0=0"], "wrong"),
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
    way = terse_way(target, given_numbers, operations)
    assert SearchVerifier(TERSE)(way, f"{target} from {given_numbers}") == verdict


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
    assert SearchVerifier(TERSE)(way, "6 from 3 3 7") == "wrong"
    hidden = way.replace("3+3=6:7 6", "3+3=6:6")
    assert SearchVerifier(TERSE)(hidden, "6 from 3 3 7") == "wrong"


@pytest.mark.parametrize("answer", ["9 from 3 5", "9 from 3", "9 from 3 3 3", "9 from 1 9", "18 from 3 3"])
def test_a_way_that_starts_from_other_numbers_is_refused_however_sound_it_is(answer: str) -> None:
    assert SearchVerifier(TERSE)(terse_way(9, "3 3", ["3*3=9"]), answer) == "wrong"


def test_the_surface_is_the_tasks_and_not_the_policys_choice() -> None:
    assert SearchVerifier(FULL)(terse_way(9, "3 3", ["3*3=9"]), "9 from 3 3") == "unparsable"
    assert SearchVerifier(TERSE)(WAY, REFERENCE) == "unparsable"


@pytest.mark.parametrize(
    "answer", ["", "62", "62 from", "62 from 2,4", "62 from 2  4", "x from 2", "9" * 5000 + " from 2"]
)
def test_a_broken_reference_is_an_error_and_not_the_models_fault(answer: str) -> None:
    assert countdown_search(WAY, answer) == "error"


def independent(response: str) -> bool:
    """Whether the operations of the last way in a full trace, computed anew, make 62 of the numbers of REFERENCE."""
    way = response[response.rindex("Operations: []") :]
    left = Counter[int]((53, 22, 4, 2))
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
    verdict = SearchVerifier(TERSE if terse else FULL)("\n".join(pieces), REFERENCE)
    assert verdict in ("correct", "wrong", "unparsable")
    assert verdict != "correct" or independent("\n".join(pieces))


def test_a_long_response_is_judged_by_its_end_alone() -> None:
    assert countdown_search("x" * 3_000_000 + "\n" + WAY, REFERENCE) == "correct"
    assert countdown_search("Moving to Node #0\n" * 100_000 + "62,62 equal: Goal Reached\n", REFERENCE) == "unparsable"
    assert countdown_search(WAY.replace("62", "6" * 100_000), REFERENCE) == "unparsable"
    start = "".join(WAY.splitlines(True)[:2])
    assert countdown_search(start + "33,62 unequal: No Solution\n" * 40 + SEARCH, REFERENCE) == "unparsable"


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
