"""A report that shows other numbers than were measured, runs what a model wrote, or takes any folder for a run."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from made_samples import sample

from apr_train import vocabulary
from apr_train.evaluation.compare import compare, compare_all
from apr_train.evaluation.matched import matched
from apr_train.evaluation.metrics import AXES, curve, figures, speedups
from apr_train.evaluation.samples import HELDOUT, Sample, SamplesError, read_samples, write_samples
from apr_train.report import charts
from apr_train.report.figures import CURVES, build, finite
from apr_train.report.folders import ReportError, read_runs
from scripts.report import main, write

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>$\\frac{$\u202e'\"&{{7*7}}"
CONTROL = "\x1b[2J"


def rows(count: int = 12, samples: int = 2, **fields: Any) -> list[Sample]:
    """Problems of one to three parts, some of them wrong; all fork unless said."""
    own = {"blocks": 1, "threads": 3, "width": 3, "depth": 1, "parallel_tokens": 40} | fields
    return [
        sample(f"p{n}", k, parts=n % 3 + 1, correct=(n + k) % 4 > 0, l_critical=30 + 7 * n + k, window=90 + n, **own)
        for n in range(count)
        for k in range(samples)
    ]


SERIAL = {"blocks": 0, "threads": 0, "width": 0, "depth": 0, "parallel_tokens": 0}


def evaluation(folder: Path, told: dict[str, list[Sample]], problems: str = "same", **summary: Any) -> Path:
    """A folder as scripts/evaluate.py leaves it."""
    for name, samples in told.items():
        write_samples(folder / name / HELDOUT, samples)
    time = {"samples": 24, "wall_seconds": 1.5, "cpu_seconds": 3.0, "seconds_per_sample": 0.0625}
    listed = {name: {"settings": {"samples": 2}, "time": time, "heldout": {}} for name in told}
    (folder / "summary.json").write_text(json.dumps({"name": "x", "seed": 3, "rows": listed} | summary))
    (folder / "identity.json").write_text(json.dumps({"kind": "an evaluation", "problems": problems}))
    return folder


def trained(folder: Path, steps: int = 3) -> Path:
    """A folder as scripts/train.py leaves it."""
    for stage in ("sft", "rl"):
        write_samples(folder / stage / HELDOUT, rows(samples=1))
    (folder / "summary.json").write_text(json.dumps({"name": "t", "sft": {}, "rl": {}, "wall_seconds": 9.0}))
    (folder / "identity.json").write_text(json.dumps({"problems": "train", "data.seed": 0}))
    step = {"reward/total": 1.0, "reward/accuracy": float("nan"), "tree/eta": 0.4, "gap/logprob_mean_abs": 3e-7}
    lines = [{"stage": stage, "step": n, **step} for stage in ("sft", "rl") for n in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    return evaluation(tmp_path / "judged", {"ours": rows(), "no_forks": rows(l_total=500, **SERIAL)})


class Page(HTMLParser):
    """Elements, attributes and text as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_the_same_samples_give_the_same_numbers(judged: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        write([judged], tmp_path / name)
    first, second = ((tmp_path / name / "report.json").read_bytes() for name in ("one", "other"))
    assert first == second
    report = json.loads(first)
    own = read_samples(judged / "ours" / HELDOUT)
    assert report["rows"][0]["figures"]["accuracy"] == figures(own)["accuracy"]
    base = read_samples(judged / "no_forks" / HELDOUT)
    assert report["rows"][0]["speedup"] == finite(dict(speedups(base, own)))


def test_every_plotted_point_is_one_of_the_curve(judged: Path) -> None:
    report = build(read_runs([judged]))
    for axis in AXES:
        figure = charts.curves(report, (axis,))
        assert figure is not None
        drawn = {str(line.get_label()): line.get_xydata().tolist() for line in figure.axes[0].lines}  # type: ignore
        for label in ("ours", "no_forks"):
            points = curve(read_samples(judged / label / HELDOUT), axis)
            assert drawn[label] == [[point["budget"], point["accuracy"]] for point in points]
            assert len(points) > 5


def test_matched_budgets_by_hand() -> None:
    long = [sample(f"p{n}", l_critical=10 + n, l_total=100 + n) for n in range(10)]
    short = [sample(f"p{n}", k, l_critical=50, l_total=54, correct=k > 0) for n in range(10) for k in range(3)]
    found = matched({"long": long, "short": short})
    assert (found.dearest, found.total, found.reference, found.critical) == ("long", 108, "long", 18)
    assert found.rows["long"]["total"]["accuracy"] == found.rows["long"]["critical"]["accuracy"] == 0.9
    assert found.rows["short"]["critical"]["accuracy"] == 0.0  # none is as fast
    assert found.rows["short"]["total"]["accuracy"] == 0.0  # two fit, one of them right: a tie, and the first wins
    with pytest.raises(ValueError, match="without samples"):
        matched({"none": []})


def test_more_comparisons_make_chance_harder_to_pass() -> None:
    one = [sample(str(n), l_critical=100 + n % 7, threads=n % 2) for n in range(40)]
    other = [sample(str(n), l_critical=100 + n % 7 + (-1, 2)[n % 3 > 0], threads=n % 2) for n in range(40)]
    alone = {each.figure: each.p for each in compare(one, other)}
    many = {each.figure: each.p for each in compare_all([(one, other)] * 20)[7]}
    assert alone["l_critical"] < 0.05 and many["l_critical"] > alone["l_critical"]
    apart = [sample(str(n), l_critical=1 + n % 7, threads=n % 2) for n in range(40)]
    assert {d.figure: d for d in compare_all([(one, apart)] * 40)[0]}["l_critical"].significant  # draws keep up


def test_other_problems_are_not_compared(tmp_path: Path) -> None:
    one = evaluation(tmp_path / "one", {"no_forks": rows(**SERIAL)}, problems="these")
    other = evaluation(tmp_path / "other", {"ours": rows()}, problems="those")  # of the same names
    report = build(read_runs([one, other]))
    assert report["rows"][1]["speedup"] == {"impossible": "other problems"}
    assert report["comparisons"] == [{"one": "one/no_forks", "other": "other/ours", "impossible": "other problems"}]
    write([one, other], tmp_path / "out")
    assert "other problems" in Page((tmp_path / "out/report.html").read_text()).text


def test_a_baseline_is_named_or_found_or_said_to_be_missing(judged: Path, tmp_path: Path) -> None:
    assert build(read_runs([judged]))["baseline"]["row"] == "no_forks"
    assert build(read_runs([judged]), "ours")["baseline"] == {"row": "ours", "why": "named by --baseline"}
    with pytest.raises(ReportError, match="did you mean no_forks"):
        build(read_runs([judged]), "no_fork")
    runs = read_runs([trained(tmp_path / "ours"), trained(tmp_path / "sequential_baseline")])
    assert build(runs)["baseline"]["row"] == "sequential_baseline/rl"
    with pytest.raises(ReportError, match="several rows are called 'rl'"):
        build(runs, "rl")


def test_an_evaluation_without_a_baseline_works(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "judged", {"policy": [sample(f"p{n}", l_critical=9 + n) for n in range(4)]})
    (folder / "identity.json").unlink()
    written = write([folder], tmp_path / "out")
    report = json.loads(Path(written["numbers"]).read_text())
    assert report["baseline"]["row"] is None and report["rows"][0]["speedup"] is None and not report["comparisons"]
    assert "and --baseline names none" in Path(written["page"]).read_text()


@pytest.mark.parametrize("rest", ["heldout", "metrics"])
def test_a_training_run_alone_works(tmp_path: Path, rest: str) -> None:
    folder = trained(tmp_path / "run")
    if rest == "metrics":  # it has only begun, and is writing a line
        for stage in ("sft", "rl"):
            shutil.rmtree(folder / stage)
        (folder / "summary.json").unlink()
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"stage": "rl", "st')
    written = write([folder], tmp_path / "out")
    report = json.loads(Path(written["numbers"]).read_text())
    assert report["training"]["run"]["tree/eta"] == [[1, 0.4], [2, 0.4], [3, 0.4]]
    assert (
        "reward/total" in report["training"]["run"] and "reward/accuracy" not in report["training"]["run"]
    )  # NaN at every step
    assert [row["row"] for row in report["rows"]] == (["sft", "rl"] if rest == "heldout" else [])
    assert "training" in written["pictures"] and all(Path(p).exists() for p in written["pictures"].values())


def test_compared_pairs_are_those_that_were_asked_for(judged: Path) -> None:
    report = build(read_runs([judged]), pairs=[("ours", "no_forks")])
    assert [(pair["one"], pair["other"]) for pair in report["comparisons"]] == [("ours", "no_forks")]
    total = next(d for d in report["comparisons"][0]["differences"] if d["figure"] == "l_total")
    assert total["difference"] > 0 and total["significant"]


# -- what others wrote -------------------------------------------------------------------------------------------------


def test_what_a_model_wrote_is_text(tmp_path: Path) -> None:
    bad = HOSTILE + CONTROL
    name = bad.replace("/", "|").replace("\x1b", "")
    own = {"flaw": bad, "source": bad, "level": bad, "outcome": bad, "openings": (bad,)}
    wrong = [sample(bad + str(n), correct=False, answer=bad, l_critical=20 + n, blocks=1, **own) for n in range(5)]
    shown = {"command": bad, "task": bad, "model": bad, "setup": {"machine": bad, "versions": {bad: bad}}}
    folder = evaluation(tmp_path / "judged", {name: wrong, "_no_forks": wrong, "$x_{": wrong}, **shown)
    written = write([folder], tmp_path / "out", baseline="_no_forks", words=["--out", bad])
    text = Path(written["page"]).read_text()
    page = Page(text)
    assert "script" not in page.tags and page.tags.count("img") == len(written["pictures"])
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]
    assert all(value.startswith("data:image/png;base64,") for name, value in page.attributes if name == "src")
    assert page.text.count("<script>alert(1)</script>") > 10 and "{{7*7}}" in page.text
    assert "\u202e" not in text and "\x1b" not in text
    policy = next(value for _, value in page.attributes if value.startswith("default-src"))
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")


def test_the_style_is_the_one_that_the_policy_lets_in(judged: Path, tmp_path: Path) -> None:
    import base64
    import hashlib

    text = Path(write([judged], tmp_path / "out")["page"]).read_text()
    style = text.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"sha256-{digest}" in text.replace("&#43;", "+").replace("&#39;", "'")


def foreign(folder: Path, what: str) -> list[Path]:
    """A folder that is no run, for one reason."""
    summary = folder / "summary.json"
    spoil: dict[str, Callable[[], object]] = {
        "missing": lambda: shutil.rmtree(folder),
        "empty": lambda: (shutil.rmtree(folder), folder.mkdir()),
        "another file": lambda: (shutil.rmtree(folder), folder.mkdir(), summary.write_text('{"a": 1}')),
        "torn": lambda: summary.write_text('{"rows": '),
        "deep": lambda: summary.write_text("[" * 100_000),
        "a list": lambda: summary.write_text("[]"),
        "no rows": lambda: summary.write_text('{"rows": {}}'),
        "rows of text": lambda: summary.write_text('{"rows": {"a": "b"}}'),
        "time of text": lambda: summary.write_text('{"rows": {"ours": {"time": {"wall_seconds": "x"}}}}'),
        "setup of text": lambda: summary.write_text('{"setup": "x", "rows": {"ours": {}}}'),
        "outside": lambda: summary.write_text('{"rows": {"no_forks/../ours": {}}}'),
        "not over": summary.unlink,
        "no samples": lambda: (folder / "ours" / HELDOUT).write_text(""),
        "other samples": lambda: (folder / "ours" / HELDOUT).write_text('{"problem_id": "p"}\n'),
        "samples of text": lambda: (folder / "ours" / HELDOUT).write_text(
            json.dumps(asdict(sample("p")) | {"l_critical": "9"}) + "\n"
        ),
        "lost samples": lambda: (folder / "ours" / HELDOUT).unlink(),
        "metrics of text": lambda: (folder / "metrics.jsonl").write_text("hello\n"),
        "endless step": lambda: (folder / "metrics.jsonl").write_text('{"stage": "rl", "step": Infinity}\n'),
        "twice": lambda: None,
    }
    spoil[what]()
    return [folder, folder] if what == "twice" else [folder]


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("missing", "there is no folder"),
        ("empty", "holds no run: name a folder"),
        ("another file", "holds no run: name a folder"),
        ("torn", "summary.json cannot be read"),
        ("deep", "summary.json cannot be read"),
        ("a list", "holds no object"),
        ("no rows", "names no rows"),
        ("rows of text", "tells nothing of the row 'a'"),
        ("time of text", "a time of the row 'ours' that is no number"),
        ("setup of text", "a setup that is none"),
        ("outside", "which is no folder's name"),
        ("not over", "an evaluation that is not over"),
        ("no samples", "holds no samples"),
        ("other samples", "is no sample"),
        ("samples of text", "is no sample"),
        ("lost samples", "cannot be read"),
        ("metrics of text", "metrics.jsonl:1 is no step"),
        ("endless step", "metrics.jsonl:1 is no step"),
        ("twice", "is named twice"),
    ],
)
def test_a_folder_that_is_no_run_is_one_line(
    judged: Path, capsys: pytest.CaptureFixture[str], what: str, told: str
) -> None:
    assert main([str(each) for each in foreign(judged, what)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("error: ") and told in captured.err
    assert not (judged / "report").exists()


def test_a_folder_of_runs_names_them(tmp_path: Path) -> None:
    trained(tmp_path / "both" / "ours")
    with pytest.raises(ReportError, match=r"itself: name .*both/ours"):
        read_runs([tmp_path / "both"])


def test_samples_of_an_older_version_are_refused(judged: Path) -> None:
    (judged / "ours" / HELDOUT).write_text('{"problem_id": "p", "correct": true}\n')
    with pytest.raises(SamplesError, match="evaluate again with this version"):
        read_runs([judged])


# -- whole -------------------------------------------------------------------------------------------------------------


def test_the_command_prints_where_the_page_is(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(judged), "--compare", "ours", "no_forks"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    page = Path(told["page"])
    assert page == judged / "report" / "report.html" and page.exists() and Path(told["numbers"]).exists()
    assert f"python scripts/report.py {judged} --compare ours no_forks" in page.read_text()
    assert main([str(judged)]) == 0  # the report beside the rows is not taken for one


@pytest.mark.slow
def test_an_untrained_model_is_evaluated_and_reported(tmp_path: Path) -> None:
    from test_evaluation import SETTINGS, run

    quick = ["sft.steps=1", "sft.problems_per_step=2", "sft.warmup_steps=0", "algorithm.steps=0"]
    run("train", *SETTINGS, f"output_dir={tmp_path / 'fresh'}", "eval.problems=1", *quick)
    rows = "+eval.rows={ours:{samples:2},no_forks:{forks:false}}"
    own = [*SETTINGS, f"model.path={tmp_path / 'fresh/sft'}", "eval.problems=6", "eval.alone=2", rows]
    shown = run("evaluate", *own, f"output_dir={tmp_path / 'judged'}")
    assert "within a critical path of" in shown
    import subprocess

    command = [sys.executable, str(ROOT / "scripts/report.py"), str(tmp_path / "judged"), str(tmp_path / "fresh")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads(Path(json.loads(done.stdout.splitlines()[-1])["numbers"]).read_text())
    assert [row["row"] for row in report["rows"]] == ["judged/ours", "judged/no_forks", "fresh/sft"]
    assert report["rows"][0]["figures"]["samples"] == 12 and report["rows"][0]["time"]["alone_problems"] == 2
    assert report["rows"][2]["speedup"] == {"impossible": "other problems"}  # one problem, and not six
    assert report["runs"][0]["command"].startswith("python ") and "eval.rows=" in report["runs"][0]["command"]
    summary = json.loads((tmp_path / "judged/summary.json").read_text())
    for row in report["rows"][:2]:
        assert row["figures"] == summary["rows"][row["name"]]["heldout"]


def test_the_commands_of_the_page_on_evaluation_are_real(monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    from apr_train import compose
    from apr_train.evaluation.rows import rows_of

    monkeypatch.setattr(compose, "check_model_folder", lambda model: None)
    text = (ROOT / "docs/evaluate.md").read_text().replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("    python scripts/evaluate.py")]
    rows = [list(rows_of(compose.load(words[2:]))) for words in commands]
    assert len(rows) >= 4 and ["ours", "no_forks", "voted"] in rows
    assert (ROOT / "docs/img/report.png").stat().st_size < 300_000


def test_every_metric_that_is_drawn_is_one_that_is_logged() -> None:
    for names in (CURVES, charts.TRAINING):
        assert all(vocabulary.find(name) for name in names)
    assert set(CURVES) == set(charts.TRAINING)
