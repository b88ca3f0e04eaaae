"""The check of the verifier on the benchmarks: its reader of LaTeX is right, and it finds a lax verifier."""

import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from benchmark_files import FOLDER, needs_files
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))  # as it is for a script that is run
from latex_values import differs
from perturbed_answers import perturbed, restated
from verify_benchmarks import MathVerifier, main

GOLDS = ["204", "0.5", r"\frac{3}{4}", "4.5e33", "3, 5, 7", "(3,4]", "(1,2)", "52_8", "6m", r"\text{east}", "f(x)=2x"]


@pytest.mark.parametrize(
    ("one", "other", "different"),
    [
        ("1/2", "0.5", False),
        (r"\frac43", r"\dfrac{4}{3}", False),
        (r"10,\!080", "10080", False),
        ("1,2", "2,1", False),
        ("7,7", "7", False),
        ("(1,2)", "(2,1)", True),
        ("(3,4]", "[3,4]", True),
        ("x=5", "5", False),
        (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}", False),
        ("4.5e33", r"4.5 \times 10^{33}", False),
        ("4.5e33", "4.5e34", True),
        ("n(n+1)/2", r"\frac{n^2+n}{2}", False),
        ("n(n+1)/2", r"\frac{n^2+2n}{2}", True),
        (r"\binom{2n}{n}", r"\frac{(2n)!}{n! n!}", False),
        (r"\cot x", r"\frac{\cos x}{\sin x}", False),
        (r"\log_{2} 8", "3", False),
        (r"\sqrt[3]{8}", "2", False),
        ("4210_{5}", "555", False),
        ("4210_{5}", "4210_{6}", True),
        (r"90^\circ", "90", False),
        (r"\text{east}", "East", False),
        (r"\text{east}", r"\text{west}", True),
        (r"\lfloor 7/2 \rfloor", "3", False),
        ("m \\ddot{x}", "m", None),
        ("1/0", "2", None),
    ],
)
def test_the_reader_knows_equal_from_different_and_what_it_cannot_read(one: str, other: str, different: Any) -> None:
    assert differs(one, other) is different


def test_changes_are_seeded_and_cover_every_sort_of_answer() -> None:
    first = [list(perturbed(gold, GOLDS, Random(7))) for gold in GOLDS]
    assert first == [list(perturbed(gold, GOLDS, Random(7))) for gold in GOLDS]
    kinds = {kind for changes in first for kind, _ in changes}
    wanted = {"digit", "off by one", "ten times", "member dropped", "end of an interval", "order of a point"}
    assert kinds >= wanted | {"another base", "letter dropped", "word", "squared", "fraction upside down"}


@pytest.mark.parametrize("gold", [gold for gold in GOLDS if gold != "6m"])
def test_a_restatement_is_the_same_answer(gold: str) -> None:
    assert {differs(gold, text) for _, text in restated(gold)} == {False}


def write(folder: Path, name: str) -> None:
    rows = [{"id": f"{name}-{k}", "problem": f"Q{k}", "answer": gold} for k, gold in enumerate(GOLDS)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main(words)
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_every_sort_of_answer_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "aime24")
    code, report = run(capsys, "aime24", "--folder", str(tmp_path), "--deadline", "20", "--seed", "3")
    assert code == 0
    assert report["false_accepts"] == []
    assert report["false_rejects"] == {"boxed": [], "said": [], "restated": []}
    assert report["cases"]["wrong"] > 40


def test_a_verifier_that_takes_everything_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def takes_all(_: object, pairs: list[Any]) -> list[str]:
        return ["correct" for _ in pairs]

    monkeypatch.setattr(MathVerifier, "verify_many", takes_all)
    write(tmp_path, "aime24")
    code, report = run(capsys, "aime24", "--folder", str(tmp_path), "--wrong", "30")
    assert (code, len(report["false_accepts"])) == (1, 30)


def test_a_missing_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--folder", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: there is no file")


@needs_files
def test_some_of_the_real_references_pass(capsys: pytest.CaptureFixture[str]) -> None:
    code, report = run(
        capsys, "--folder", str(FOLDER), "--rows", "12", "--wrong", "80", "--deadline", "20", "--seed", "5"
    )
    assert (code, report["false_rejects"]["boxed"], report["false_accepts"]) == (0, [], [])


@pytest.mark.slow
@needs_files
def test_all_references_pass_and_a_thousand_wrong_answers_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    code, report = run(capsys, "--folder", str(FOLDER), "--deadline", "20")
    assert (code, report["cases"]["wrong"], report["false_accepts"]) == (0, 1000, [])
    assert report["false_rejects"]["boxed"] == []
