"""The quickstart's table says what the records say; a comparison that cannot be made is refused or ended at once."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from made_samples import sample

from apr_train.evaluation.metrics import summarise
from apr_train.evaluation.samples import Sample, write_samples
from scripts import quickstart

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
FAIL = [sys.executable, "-c", "raise SystemExit(3)"]


def record(name: str, parts: int, correct: bool, l_critical: int, l_total: int, blocks: int = 0) -> Sample:
    own = {"l_critical": l_critical, "l_total": l_total, "blocks": blocks, "threads": 2 * blocks}
    return sample(name, parts=parts, correct=correct, **own)


OURS = [record("a", 1, True, 50, 50), record("b", 3, True, 200, 450, blocks=1)]
SEQUENTIAL = [record("a", 1, True, 100, 100), record("b", 3, False, 300, 300)]


def write_run(folder: Path, records: list[Sample]) -> None:
    (folder / "rl").mkdir(parents=True)
    write_samples(folder / "rl" / "heldout.jsonl", records)
    sft = summarise([record("a", 1, True, 60, 60), record("b", 3, True, 240, 240)])
    summary = {"sft": sft, "rl": summarise(records), "gap_logprob_mean_abs": 2.5e-7}
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def summary(tmp_path: Path) -> dict[str, Any]:
    write_run(tmp_path / "ours", OURS)
    write_run(tmp_path / "sequential_baseline", SEQUENTIAL)
    return quickstart.merge(tmp_path, seed=4, seconds=61.4)


def test_the_speedup_is_the_baseline_s_critical_path_over_ours(summary: dict[str, Any]) -> None:
    assert summary["speedup_ratio_of_means"] == 1.6  # 400 / 250
    assert summary["speedup_mean_of_ratios"] == 1.75  # (100 / 50 + 300 / 200) / 2
    # A resample is a twice, b twice or both, with odds 1:1:2: the outer quantiles are a alone and b alone.
    assert summary["speedup_ratio_of_means_ci95"] == summary["speedup_mean_of_ratios_ci95"] == [1.5, 2.0]
    assert summary["critical_path_sft_over_rl"] == 1.2  # 150 / 125
    assert (summary["rl"]["accuracy"], summary["sequential_baseline"]["accuracy"]) == (1.0, 0.5)
    assert (summary["seed"], summary["wall_seconds"], summary["gap_logprob_mean_abs"]) == (4, 61.4, 2.5e-7)


def test_the_table_shows_each_policy_whole_and_by_parts(
    summary: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    quickstart.show(summary, Path("outputs/quickstart"))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.splitlines()[0].strip() == "held-out problems: 2, temperature 1, seed 4"
    cells = [line.replace("│", " ").split() for line in shown.splitlines()]
    for row in (
        ["SFT", "all", "1.000", "150.0", "150.0", "0.00"],
        ["RL", "(ours)", "all", "1.000", "125.0", "250.0", "0.50"],
        ["1", "1.000", "50.0", "50.0", "0.00"],
        ["3", "1.000", "200.0", "450.0", "1.00"],
        ["sequential", "RL", "all", "0.500", "200.0", "200.0", "0.00"],
    ):
        assert row in cells
    assert "critical path, sequential over ours: 1.60x [1.50, 2.00]" in shown
    assert "mean of per-problem ratios:          1.75x [1.50, 2.00]" in shown
    assert "sampler/trainer gap 2.5e-07 nats, 61 s in all" in shown


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.problems=0", "eval.problems=0 leaves nothing to compare"),
        ("eval=none", "eval.problems=0 leaves nothing to compare"),
        ("sft.steps=0", "sft.steps=0 leaves nothing to compare"),
        ("algorithm.steps=0", "algorithm.steps=0 leaves nothing to compare"),
        ("sft.parallel_share=0.3", "the baseline cannot show parallel blocks"),
        ("sft.parallel_share=0", "the baseline cannot show parallel blocks"),
        ("experiment=quickstart", "the dialect is what is compared"),
        ("dialect=threadweaver", "the dialect is what is compared"),
        ("output_dir=outputs/mine", "use --folder"),
        ("name=mine", "use --folder"),
        ("dry_run=true", "dry_run=true trains nothing"),
        ("rollout.max_treads=1", "unknown key rollout.max_treads; did you mean rollout.max_threads?"),
        ("algorithm.loss=grpo", "use dapo or cispo"),
        ("--sead=1", "cannot read '--sead=1'"),
    ],
)
def test_overrides_that_leave_no_comparison_start_nothing(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart, "train_both", lambda *_: pytest.fail("a run was started"))
    (tmp_path / "summary.json").write_text("an earlier comparison")
    assert quickstart.main(["--folder", str(tmp_path), override]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ") and message in told.err and told.err.count("\n") == 1
    assert (tmp_path / "summary.json").exists()  # a slip of the keyboard costs nothing


def test_a_failed_run_leaves_no_results_of_an_earlier_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = [tmp_path / "summary.json", tmp_path / "curves.png"]
    stale += [tmp_path / run / file for run in quickstart.RUNS for file in quickstart.RESULTS]
    kept = [tmp_path / "notes.txt", tmp_path / "ours/rl/model.safetensors"]
    for file in (*stale, *kept):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    monkeypatch.setattr(quickstart, "train_both", lambda *_: False)
    assert quickstart.main(["--folder", str(tmp_path)]) == 1
    assert not any(file.exists() for file in stale)
    assert all(file.exists() for file in kept)


def test_ctrl_c_is_one_line_and_its_own_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "train_both", interrupted)
    assert quickstart.main(["--folder", str(tmp_path)]) == 130
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("bad", "where"), [("ours", "see above"), ("sequential_baseline", "see a.log")])
def test_one_run_that_fails_ends_the_other_at_once(bad: str, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    children = {
        name: subprocess.Popen(FAIL if name == bad else SLEEP, start_new_session=True) for name in quickstart.RUNS
    }
    try:
        assert not quickstart.watch(children, Path("a.log"))
    finally:
        quickstart.stop(children.values())
    assert {name: child.returncode for name, child in children.items() if name != bad}.popitem()[1] == -signal.SIGTERM
    assert children[bad].returncode == 3
    assert capsys.readouterr().err == f"the run {bad!r} failed with exit code 3: {where}\n"
    assert time.monotonic() - started < 30


def test_a_run_that_ignores_the_request_is_killed() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, start_new_session=True)
    assert child.stdout is not None
    with child.stdout:
        child.stdout.readline()  # from now on it is deaf
        quickstart.stop([child], patience=0.2)
    assert child.returncode == -signal.SIGKILL


def test_two_runs_that_end_well_are_a_comparison() -> None:
    children = {name: subprocess.Popen([sys.executable, "-c", ""]) for name in quickstart.RUNS}
    assert quickstart.watch(children, Path("a.log"))
