"""Rewards are designed on recorded rollouts: what was recorded is what is scored, and every figure is right."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_credit import TWO, tree

from apr_train.stored import StoredError, line_of, read_groups, recorded, write_baseline
from rewards.build import make_reward
from rewards.errors import RewardError
from rewards.scored import Scored
from scripts.score_rollouts import main, mean_ranks, rank_correlations


def record(folder: Path, members: list[Scored]) -> Path:
    file = folder / "rollouts.jsonl"
    file.write_text("".join(line_of(recorded(9, each, 1.0, 0.0)) for each in members))
    return file


def test_what_is_read_is_what_was_recorded(tmp_path: Path) -> None:
    members = [tree(TWO), tree(verdict="wrong"), tree(verdict="timeout")]
    ((step, group),) = read_groups([record(tmp_path, members)])
    assert step == 9
    assert [(m.trajectory, m.lengths, m.verdict, m.flaw) for m in group] == [
        (m.trajectory, m.lengths, m.verdict, m.flaw) for m in members
    ]


def test_a_reward_that_is_not_a_number_is_null_and_not_invalid_json() -> None:
    assert json.loads(line_of(recorded(1, tree())))["reward"] is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [("{}", "no recorded rollout"), ("not json", "no recorded rollout"), ("[]", "no recorded rollout")],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    file = record(tmp_path, [tree()])
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(StoredError, match=f"rollouts.jsonl:2.*{reason}"):
        read_groups([file])


def test_an_unknown_verdict_is_named(tmp_path: Path) -> None:
    file = record(tmp_path, [tree()])
    file.write_text(file.read_text().replace('"correct"', '"perfect"'))
    with pytest.raises(StoredError, match="verdict 'perfect' is none of"):
        read_groups([file])


def test_a_file_without_rollouts_says_how_to_record_some(tmp_path: Path) -> None:
    with pytest.raises(StoredError, match="rollouts_every"):
        read_groups([record(tmp_path, [])])


def test_the_baseline_is_the_mean_of_right_answers_and_a_latency_term_reads_it(tmp_path: Path) -> None:
    # right: L_critical 6 and 4, mean 5; the wrong one (4) takes no part
    groups = [g for _, g in read_groups([record(tmp_path, [tree(TWO), tree(verdict="wrong"), tree()])])]
    lengths = [member.lengths.l_critical for member in groups[0]]
    assert lengths == [6, 3, 3]
    file = tmp_path / "baseline.jsonl"
    assert write_baseline(groups, file) == 1
    assert json.loads(file.read_text()) == {"problem_id": "p", "l_critical": 4.5}
    terms = {"outcome": {}, "latency": {"reference": "stored", "baseline": str(file), "gate": ["correct"]}}
    assert make_reward(terms)(groups[0], 1) == pytest.approx([1 + 1 - 6 / 4.5, 0.0, 1 + 1 - 3 / 4.5])
    file.with_name("other.jsonl").write_text('{"problem_id": "q", "l_critical": 3}\n')
    with pytest.raises(RewardError, match="no baseline for problem p"):
        make_reward({"outcome": {}, "latency": {"reference": "stored", "baseline": str(tmp_path / "other.jsonl")}})(
            groups[0], 1
        )


def test_ranks_share_their_mean_where_values_are_equal() -> None:
    assert mean_ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]


def test_rank_correlation_by_hand() -> None:
    # ranks 0 1 2 3 against 1 0 3 2: d^2 = 4, rho = 1 - 6 * 4 / (4 * 15) = 0.6
    columns = {"a": np.array([1.0, 2.0, 3.0, 4.0]), "b": np.array([20.0, 10.0, 40.0, 30.0]), "c": np.ones(4)}
    found = rank_correlations(columns)
    assert found["a"]["b"] == 0.6 and found["a"]["c"] is None


def test_the_command_prints_every_term_and_ends_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, picture = record(tmp_path, [tree(TWO), tree()]), tmp_path / "scores.png"
    assert main([str(file), "reward=threadweaver_paper,robust", "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert picture.stat().st_size > 10_000
    assert max(map(len, out.splitlines()[:-1])) <= 80
    last = json.loads(out.splitlines()[-1])
    # 8 tokens, 6 of them critical: eta 0.25, bonus 0.125; mean of 1.125 and 1
    assert last["terms"]["threadweaver_paper"]["total"]["mean"] == pytest.approx(1.0625)
    assert set(last["terms"]["robust"]) >= {"total", "outcome", "latency", "redundancy"}


def test_schedules_are_read_at_the_recorded_step_or_the_one_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = record(tmp_path, [tree(TWO), tree()])  # recorded at step 9, when the bonus is on
    means = []
    for extra in ([], ["--step", "8"]):
        assert main([str(file), "reward=parallel_r1_s2", *extra, "--plot", str(tmp_path / "p.png")]) == 0
        means.append(json.loads(capsys.readouterr().out.splitlines()[-1])["terms"]["parallel_r1_s2"]["total"]["mean"])
    assert means == pytest.approx([1.1, 1.0])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["reward=robust,outcome", "reward.terms.latency.weight=1"], "give overrides with one reward"),
        (["reward=robst"], "did you mean reward=robust?"),
        ([], "name the rewards"),
    ],
)
def test_a_slip_of_the_command_line_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], reason: str
) -> None:
    assert main([str(record(tmp_path, [tree()])), *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and reason in said and said.count("\n") == 1
