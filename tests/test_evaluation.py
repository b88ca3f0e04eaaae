"""An evaluation that is stopped goes on without losing or repeating a problem, and knows neither batches nor ranks."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT
from dying_engines import BUDGET, DIALECT, PARALLEL, DyingSampler
from helpers import Judge, toy_tokens
from real_runs import MODEL, running
from safetensors.torch import load_file, save_file

from apr_train.compose import load
from apr_train.config import ConfigError
from apr_train.evaluation.evaluate import check
from apr_train.evaluation.heldout import draws, seal, take
from apr_train.evaluation.rows import Row, complete, rollouts_of, rows_of
from apr_train.lifecycle import REQUEUE
from apr_train.progress import reached
from apr_train.rollouts import Rollouts
from apr_train.tasks.base import Problem
from apr_train.validate_sampling import check_trainable
from rollout.dialects import make_dialect
from rollout.errors import UserError
from rollout.strategies.writing import forbidden

SETTINGS = [each for each in MODEL if not each.startswith("eval.")]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that nobody trained."""
    folder = tmp_path_factory.mktemp("fresh")
    overrides = [f"output_dir={folder}", *SETTINGS, "eval.problems=1", "sft.steps=1", "algorithm.steps=0"]
    run("train", *overrides, "sft.problems_per_step=2", "sft.warmup_steps=0")
    return folder / "sft"


def run(script: str, *overrides: str, ranks: int = 1, code: int = 0) -> str:
    """What it printed; its errors, where it is to end with `code`."""
    own = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *own, str(ROOT / f"scripts/{script}.py"), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stderr if code else done.stdout


def table(shown: str) -> list[str]:
    """The lines of the tables, without what libraries say before them."""
    lines = shown.splitlines()
    first = next(at for at, line in enumerate(lines) if "L_critical" in line)
    return lines[first : next(at for at, line in enumerate(lines) if line.startswith("everything:"))]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "heldout.jsonl").read_text().splitlines()]


ROWS = "+eval.rows={plain:{},voted:{search:self_consistency,options:{samples:2},forks:false}}"


def test_a_stopped_evaluation_neither_loses_nor_repeats_a_problem(tmp_path: Path, fresh: Path) -> None:
    own = [
        *SETTINGS,
        f"model.path={fresh}",
        "eval.problems=21",
        "eval.batch_problems=4",
        "eval.record=6",
        "eval.alone=2",
        ROWS,
    ]
    shown = run("evaluate", *own, f"output_dir={tmp_path / 'whole'}")
    assert " 21 " in table(shown)[2] and max(map(len, table(shown))) <= 80
    files = [f"{row}/{name}.jsonl" for row in ("plain", "voted") for name in ("heldout", "rollouts")]
    wanted = {name: (tmp_path / "whole" / name).read_text() for name in files}
    assert len({row["problem_id"] for row in records(tmp_path / "whole" / "voted")}) == 21
    assert wanted["plain/rollouts.jsonl"].count("\n") == wanted["voted/rollouts.jsonl"].count("\n") == 6
    broken = tmp_path / "broken"
    command = [sys.executable, str(ROOT / "scripts/evaluate.py"), *own, f"output_dir={broken}"]
    for row, number in (("plain", signal.SIGTERM), ("voted", signal.SIGKILL)):
        notes = broken / row / "heldout.part.jsonl"
        with running(command, tmp_path / "log") as started:
            started.until(lambda notes=notes: notes.exists() and len(notes.read_text().splitlines()) >= 4, 120)
            os.kill(started.process.pid, number)
            started.ended(60)
            assert started.process.returncode == (REQUEUE if number == signal.SIGTERM else -number)
        assert 4 <= len(notes.read_text().splitlines()) < 21
        assert f"{row}/{len(notes.read_text().splitlines())}" in reached(broken)  # for the script that requeues
    assert table(run("evaluate", *own, f"output_dir={broken}")) == table(shown)
    assert {name: (broken / name).read_text() for name in files} == wanted
    noted, again = (
        [json.loads(line) for line in (tmp_path / each / "metrics.jsonl").open()] for each in ("whole", "broken")
    )
    assert [(line["stage"], line["step"]) for line in noted] == [("plain_heldout", 1), ("voted_heldout", 2)]
    assert noted == again and noted[0]["eval/samples"] == 21
    assert not list(broken.glob("**/*.part.jsonl"))
    assert table(run("evaluate", *own, f"output_dir={broken}")) == table(shown)  # of what is finished


def test_other_weights_under_the_same_path_are_another_evaluation(tmp_path: Path, fresh: Path) -> None:
    shutil.copytree(fresh, tmp_path / "model")
    own = [*SETTINGS, f"model.path={tmp_path / 'model'}", "eval.problems=2", f"output_dir={tmp_path / 'run'}"]
    run("evaluate", *own)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, tmp_path / "model" / "model.safetensors")
    refused = run("evaluate", *own, code=2)
    assert "weights was " in refused and "resume=never" in refused


def test_an_evaluation_does_not_remove_the_run_that_it_judges(fresh: Path) -> None:
    own = [*SETTINGS, f"model.path={fresh}", "eval.problems=2", f"output_dir={fresh.parent}", "resume=never"]
    assert "holds training and not an evaluation" in run("evaluate", *own, code=2)
    assert (fresh.parent / "summary.json").exists()


@pytest.mark.slow
def test_two_ranks_find_what_one_finds(tmp_path: Path, fresh: Path) -> None:
    own = [*SETTINGS, f"model.path={fresh}", "eval.problems=9", "eval.batch_problems=4"]
    for ranks in (1, 2):
        run("evaluate", *own, f"output_dir={tmp_path / str(ranks)}", ranks=ranks)
    for one, other in zip(records(tmp_path / "1/policy"), records(tmp_path / "2/policy"), strict=True):
        assert one.pop("logprob") == pytest.approx(other.pop("logprob"), abs=2e-4)  # batches differ in the last digits
        assert one == other


def test_what_cannot_be_evaluated_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"eval\.problems=0"):
        check(load(["model.path=x", "eval.problems=0"]))
    with pytest.raises(ConfigError, match=r"model\.path is not set"):
        check(load([]))
    with pytest.raises(ConfigError, match=r"eval\.alone=3 times one problem at a time: start one rank, not 2"):
        check(load(["model.path=x", "eval.alone=3"]), ranks=2)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ("{a:{samples:0}}", "a row of eval.rows has samples=0"),
        ("{a:{threads:apart}}", "row a of eval.rows, option threads: 'apart' is not"),
        ("{a:{sample:3}}", "row a of eval.rows has no option 'sample': did you mean 'samples'?"),
        ("{a:{search:self_consistancy}}", "did you mean self_consistency?"),
        ("{a:{search:best_of_n,options:{n:3}}}", "strategy best_of_n has no option 'n'"),
    ],
)
def test_a_row_that_means_nothing_is_refused_before_the_model_is_loaded(rows: str, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        check(load(["model.path=x", f"+eval.rows={rows}"]))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["+eval.rows={a:{max_critical_tokens:64}}", "rollout.answer_tokens=100"], "row a: rollout.answer_tokens=100"),
        (["+eval.rows={a:{temperature:-1.0}}"], "row a: eval.temperature=-1.0 must be at least 0"),
        (["+eval.rows={a:{threads:in_order}}", "dialect=apr", "reward=outcome"], "row a: strategy=in_order writes"),
        (["strategy=in_order", "dialect=multiverse"], "strategy=in_order writes"),
        (["+eval.rows={a:{threads:group_think}}"], "row a: strategy=group_think needs strategy.stride"),
        (["+eval.rows={a:{search:mcts,max_critical_tokens:64}}"], "search mcts samples in stages"),
    ],
)
def test_a_row_that_would_fail_hours_later_is_refused_at_the_start(settings: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        check(load(["model.path=x", *settings]))


@pytest.mark.parametrize(
    ("dialect", "row", "says"),
    [
        ("parathinker", Row(forks=False), "threads that the client forks"),
        ("threadweaver", Row(search="skeleton_of_thought", options={"skeleton": "task"}), "takes problems apart"),
        ("threadweaver", Row(search="graph_of_thoughts"), "takes problems apart"),
    ],
)
def test_what_a_dialect_or_a_task_cannot_serve_is_said_before_the_first_row(dialect: str, row: Row, says: str) -> None:
    tokens, config = toy_tokens(dialect), load([f"dialect={dialect}"])
    rollouts: Any = SimpleNamespace(dialect=make_dialect(dialect, tokens), tokens=tokens, parts=None)
    with pytest.raises(ConfigError, match=says):
        rollouts_of(config, rollouts, complete(config, row))


def test_a_kill_while_a_row_is_sealed_leaves_no_notes_of_samples_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("heldout", "rollouts"):
        (tmp_path / f"{name}.part.jsonl").write_text("new")
    rename, done = Path.replace, list[Path]()

    def once(file: Path, target: Path) -> Path:
        if done:
            raise KeyboardInterrupt
        done.append(file)
        return rename(file, target)

    monkeypatch.setattr(Path, "replace", once)
    with pytest.raises(KeyboardInterrupt):
        seal(tmp_path, is_main=True)
    assert {file.name for file in tmp_path.iterdir()} == {"heldout.jsonl", "rollouts.part.jsonl"}


def test_a_row_is_sealed_in_whatever_order_a_kill_left_it(tmp_path: Path) -> None:
    for left in (["heldout", "rollouts"], ["heldout"], ["rollouts"], []):
        for name in left:
            (tmp_path / f"{name}.part.jsonl").write_text("new")
        for name in {"heldout", "rollouts"} - set(left):
            (tmp_path / f"{name}.jsonl").write_text("new")
        seal(tmp_path, is_main=True)
        assert {file.name: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys(
            ("heldout.jsonl", "rollouts.jsonl"), "new"
        )


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden"])
def test_a_row_is_a_folder_of_its_own(name: str) -> None:
    config = load([])
    config.eval.rows = {name: {}}
    with pytest.raises(ConfigError, match="rows are folders"):
        rows_of(config)


def test_what_only_an_evaluation_may_do_is_not_trained() -> None:
    check_trainable(load([]))
    for override in ("strategy.name=in_order", "strategy.forks=false", "strategy=self_consistency", "eval=strategies"):
        with pytest.raises(ConfigError, match="a policy is trained as it is sampled"):
            check_trainable(load([override]))
    load(["model.dtype=bfloat16"])  # what nothing is trained of needs no master weights
    check_trainable(load(["model.dtype=bfloat16", "deepspeed=zero0"]))
    with pytest.raises(ConfigError, match="float32 master weights"):
        check_trainable(load(["model.dtype=bfloat16"]))


def test_a_row_without_forks_bans_every_tag_but_those_around_the_reasoning() -> None:
    tokens = toy_tokens()
    banned = {tokens.decode((token,)) for token in forbidden(make_dialect("threadweaver", tokens), tokens.eos, "x")}
    assert "<Parallel>" in banned and "<Thread>" in banned and not banned & {"<think>", "</think>", "<|eos|>"}


def test_rows_keep_what_they_do_not_say() -> None:
    config = load(["eval.samples=3", "eval.temperature=0.5", "rollout.max_critical_tokens=90"])
    assert rows_of(config)["policy"] == Row("fork_join", True, "single", {}, 3, 0.5, 768, 90)
    config = load(
        ["strategy=self_consistency", "+eval.rows={a:{},b:{search:single,temperature:0.0,max_critical_tokens:50}}"]
    )
    rows = rows_of(config)
    assert (rows["a"].search, rows["a"].options) == ("self_consistency", {"samples": 40})
    assert (rows["b"].search, rows["b"].options, rows["b"].temperature) == ("single", {}, 0.0)
    assert rows["b"].max_critical_tokens == 50


def test_votes_are_counted_by_the_verifier_s_spelling_and_not_by_the_text() -> None:
    class Spelt(Judge):
        def answer(self, response: str) -> str | None:
            return "one" if len(response) % 2 else None

    rollouts = Rollouts(DyingSampler(), DIALECT, PARALLEL, Spelt(lambda response, reference: "wrong"), BUDGET)
    found = take(rollouts, draws([Problem(f"p{n}", f"a{n}=", "1") for n in range(4)], 3), Row(temperature=1.0), 3)
    assert {sample.answer for sample, _ in found} == {"one", ""}
    assert not rollouts.searched and not any(sample.searched for sample, _ in found)


def test_a_prompt_that_leaves_no_room_costs_its_own_trajectory_and_no_other() -> None:
    rollouts = Rollouts(DyingSampler(), DIALECT, PARALLEL, Judge(lambda response, reference: "correct"), BUDGET)
    problems = [Problem("long", "1" * rollouts.sampler.max_context, "1"), Problem("p", "a1=", "1")]
    long, short = rollouts.collect(problems, temperature=1.0, seed=3)
    assert (long.trajectory.outcome, long.verdict, long.lengths.l_total) == ("truncated", "unparsable", 0)
    assert long.trajectory.notes == {"strategy/prompt does not fit": 1}
    assert short.lengths.l_total > 0
