"""Reasoning Gym as a task: the same questions by seed, two sides that never meet, and scorers that cannot do harm."""

import ast
import inspect
import json
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest

from apr_train.tasks import make_task
from apr_train.tasks.base import Problem, TaskError
from apr_train.tasks.gym import SEEDS, Gym
from rewards.verify.gym import RUNS_TEXT, TAKES_ANYTHING, GymVerifier, GymVerifierError, extract

WITHOUT_GOLD = ("boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour")
"""Data sets that give no answer of their own; their scorers check any."""
HARD = ["", "0", "1", "nan", "inf", "1e400", "[]", "{}", "[[1]]", "null", "x", "no", "True", "A"]
HARD += ["9" * 5000, "(" * 5000]
FEW = ("chain_sum", "sudoku", "knights_knaves", "family_relationships", "zebra_puzzles", "number_sorting")
DATASETS: dict[str, Any] = import_module("reasoning_gym.factory").DATASETS
import_module("reasoning_gym")
ALL = sorted(set(DATASETS) - {"composite"})


def gym(dataset: str, **options: Any) -> Gym:
    task = make_task("reasoning_gym", {"dataset": dataset, "deadline_s": 20.0} | options)
    assert isinstance(task, Gym)
    return task


def gold(problem: Problem) -> str:
    return str(json.loads(problem.answer)["answer"])


# --- problems -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", FEW)
def test_same_seed_same_problems_and_the_sides_never_meet(dataset: str) -> None:
    task = gym(dataset)
    train = task.problems("train", 12, 3)
    assert train == gym(dataset).problems("train", 12, 3)
    assert train[:5] == task.problems("train", 5, 3)
    assert [p.prompt for p in train] != [p.prompt for p in task.problems("train", 12, 4)]
    held = task.problems("heldout", 8, 3)
    assert len({p.prompt for p in train + held}) == 20
    assert len({p.id for p in train + held}) == 20
    assert all(p.meta["source"] == dataset for p in train)


def test_a_question_is_on_one_side_whatever_its_seed() -> None:
    task = gym("chain_sum", config={"max_terms": 2, "max_digits": 1})
    sides = [{p.prompt for seed in (0, 1) for p in task.problems(side, 30, seed)} for side in ("train", "heldout")]
    assert not sides[0] & sides[1]


def test_the_sides_draw_from_seeds_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    task, seeds = gym("chain_sum"), dict[str, list[int]]()
    chunk = task._chunk  # pyright: ignore[reportPrivateUsage]
    for side in ("train", "heldout"):

        def seen(seed: int, side: str = side) -> Iterator[dict[str, Any]]:
            seeds.setdefault(side, []).append(seed)
            return chunk(seed)

        monkeypatch.setattr(task, "_chunk", seen)
        task.problems(side, 100, 0)
    assert max(seeds["train"]) < SEEDS <= min(seeds["heldout"])


def test_settings_and_levels_reach_the_data_set() -> None:
    def digits(task: Gym) -> int:
        return max(json.loads(p.answer)["metadata"]["num_digits"] for p in task.problems("train", 20, 0))

    assert digits(gym("chain_sum", config={"min_digits": 7, "max_digits": 7})) == 7
    assert digits(gym("chain_sum", level=0)) < digits(gym("chain_sum", level=3))
    task = gym("chain_sum", level=2, config={"min_digits": 9, "max_digits": 9})
    assert digits(task) == 9
    assert task.problems("train", 1, 0)[0].meta["level"] == "2"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dataset": "chain_sums"}, "did you mean 'chain_sum'"),
        ({"dataset": "zzz"}, "has no data set 'zzz'"),
        ({"dataset": "composite"}, "has no data set"),
        ({"config": {"min_terms": -3}}, "data set chain_sum refuses its settings"),
        ({"config": {"min_turms": 3}}, "data set chain_sum refuses its settings"),
        ({"config": {"seed": 3}}, "leave seed out of config"),
        ({"level": -1}, "level >= 0"),
        ({"dataset": "composite", "level": 1}, "has no data set"),
        ({"threshold": 1.5}, "threshold <= 1"),
    ],
)
def test_a_wrong_setting_is_one_line(options: dict[str, Any], reason: str) -> None:
    with pytest.raises((TaskError, GymVerifierError), match=reason):
        make_task("reasoning_gym", options)


def test_a_small_data_set_says_how_many_problems_it_has() -> None:
    task = gym("chain_sum", config={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
    with pytest.raises(TaskError, match=r"eval\.problems=5000: chain_sum has [0-9]+ heldout problems"):
        task.problems("heldout", 5000, 0)
    with pytest.raises(TaskError, match="no sequential demonstration"):
        task.demonstration(task.problems("train", 1, 0)[0], "sequential")


# --- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("<think>1</think> 2 ", "2"),
        ("<think>1</think>It is <answer>\n3 4\n</answer>, yes", "3 4"),
        ("<think>1</think><answer>3</answer><answer>4</answer>", "4"),
        ("<think><answer>3</answer></think>", None),
        ("<think>3", None),
        ("<think>3</think>4</think>5", None),
        ("7", "7"),
        ("x" * 16_385, None),
        ("<answer></answer>", None),
    ],
)
def test_the_answer_is_what_stands_after_the_reasoning(response: str, found: str | None) -> None:
    assert extract(response) == found


@pytest.fixture(scope="module")
def sums() -> Iterator[tuple[Gym, list[Problem]]]:
    task = gym("chain_sum")
    yield task, task.problems("train", 4, 0)
    assert isinstance(task.verifier, GymVerifier)
    task.verifier.close()


def test_right_and_wrong_answers_are_told_apart(sums: tuple[Gym, list[Problem]]) -> None:
    task, problems = sums
    for problem in problems:
        right = gold(problem)
        assert task.verifier(f"<think>9</think>{right}", problem.answer) == "correct"
        assert task.verifier(f"<think>{right}</think>{int(right) + 1}", problem.answer) == "wrong"
        assert task.verifier(f"<think></think>{right} or {int(right) + 1}", problem.answer) == "wrong"
        assert task.verifier(f"<think>{right}", problem.answer) == "unparsable"
    assert task.verifier("1", "") == task.verifier("1", "x" * (1 << 21)) == "error"


@pytest.mark.parametrize("hostile", HARD)
def test_a_hostile_answer_has_a_verdict(sums: tuple[Gym, list[Problem]], hostile: str) -> None:
    task, problems = sums
    assert task.verifier(f"<think></think>{hostile}", problems[0].answer) in ("wrong", "unparsable", "timeout")


def test_a_threshold_gives_credit_for_part_of_an_answer() -> None:
    strict, lenient = gym("chain_sum"), gym("chain_sum", threshold=0.2)
    problem = strict.problems("train", 1, 0)[0]
    try:
        answers = [gold(problem), f"{gold(problem)} {gold(problem)}"]
        assert [strict.verifier(text, problem.answer) for text in answers] == ["correct", "wrong"]
        assert [lenient.verifier(text, problem.answer) for text in answers] == ["correct", "correct"]
    finally:
        for task in (strict, lenient):
            assert isinstance(task.verifier, GymVerifier)
            task.verifier.close()


@pytest.mark.parametrize(
    ("dataset", "answer", "verdict"),
    [
        ("complex_arithmetic", "nan", "wrong"),  # min(1, exp(-nan)) is 1
        ("prime_factorization", "x", "unparsable"),  # the scorer raises
        ("rearc", None, "correct"),  # JSON makes lists of the tuples that it compares
    ],
)
def test_holes_of_scorers_are_closed(dataset: str, answer: str | None, verdict: str) -> None:
    task = gym(dataset)
    problem = task.problems("train", 1, 0)[0]
    assert isinstance(task.verifier, GymVerifier)
    with task.verifier as verify:
        assert verify(gold(problem) if answer is None else answer, problem.answer) == verdict


def test_a_scorer_that_hangs_is_killed_and_the_next_answer_is_judged() -> None:
    task = gym("countdown", allow=["countdown"], deadline_s=3.0)
    problem = task.problems("train", 1, 0)[0]
    assert isinstance(task.verifier, GymVerifier)
    with task.verifier as verify:
        assert verify("9**9**9**9", problem.answer) == "timeout"
        assert verify(gold(problem), problem.answer) == "correct"


# --- scorers that are refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", [*RUNS_TEXT, *TAKES_ANYTHING])
def test_a_scorer_that_cannot_be_trusted_is_refused_unless_named(dataset: str) -> None:
    with pytest.raises(GymVerifierError, match=rf"{dataset} is refused, .*data\.options\.allow=\[{dataset}\]"):
        GymVerifier(dataset, {}, allow=("another",))
    GymVerifier(dataset, {}, allow=(dataset,)).close()


def test_the_list_of_scorers_that_run_text_is_whole() -> None:
    """Read off the installed sources: who hands something called `answer` to eval, exec or sympy's parser."""
    found: set[str] = set()
    for name, (dataset, _) in DATASETS.items():
        if name == "composite":
            continue
        for call in ast.walk(ast.parse(inspect.getsource(inspect.getmodule(dataset)))):  # pyright: ignore[reportArgumentType]
            if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] in (
                *("eval", "exec", "compile", "parse_expr", "sympify", "S"),
            ):
                found |= {name for word in call.args if ast.unparse(word) == "answer"}
    assert found == set(RUNS_TEXT)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", [name for name in ALL if name not in (*RUNS_TEXT, *TAKES_ANYTHING)])
def test_every_data_set_takes_its_own_answer_and_no_wrong_one(dataset: str) -> None:
    task = gym(dataset)
    first, *others = task.problems("train", 3, 0)
    assert [first, *others] == gym(dataset).problems("train", 3, 0)
    assert isinstance(task.verifier, GymVerifier)
    with task.verifier as verify:
        if dataset not in WITHOUT_GOLD:
            assert [verify(gold(p), p.answer) for p in (first, *others)] == ["correct"] * 3
        for text in HARD:
            if text.casefold() != gold(first).casefold():
                assert verify(f"<think></think>{text}", first.answer) in ("wrong", "unparsable", "timeout"), text
