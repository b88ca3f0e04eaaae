"""Figures people will quote: shares, intervals, speed-ups, the reward, each by hand."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_train.evaluate import Record, read_records, speedups, summarise, wilson, write_records
from apr_train.logger import progress_line
from apr_train.metrics import trajectory_metrics
from rewards.build import make_reward
from rewards.scored import Group, Scored
from rewards.verdict import Verdict
from rollout.critical_path import Lengths
from rollout.trajectory import Segment, Trajectory, TrajectoryError


def record(name: str, l_critical: int, parts: int = 2, correct: bool | None = True, blocks: int = 0) -> Record:
    return Record(name, parts, correct, "answered", l_critical, 2 * l_critical, blocks, 2 * blocks)


def scored(l_total: int, l_critical: int, verdict: Verdict = "correct") -> Scored:
    trajectory = Trajectory("p", "threadweaver", (Segment("prompt", (1,)),), (), "answered")
    return Scored(trajectory, Lengths(l_total, l_critical, 1, 2, 2, 1, 0), verdict)


@pytest.mark.parametrize("verdict", ["timeout", "error"])
def test_a_failed_verifier_never_looks_like_a_wrong_answer(verdict: Verdict) -> None:
    assert math.isnan(make_reward({"outcome": {}})(Group((scored(200, 100, verdict),)), 1)[0])
    assert math.isnan(trajectory_metrics(scored(200, 100, verdict))["accuracy"])


def test_shares_on_the_dashboard_sum_to_one() -> None:
    metrics = trajectory_metrics(scored(200, 100))
    for group in ("stop/", "verify/"):
        assert sum(value for name, value in metrics.items() if name.startswith(group)) == 1.0


def test_speedups_by_hand() -> None:
    found = speedups([record("a", 100), record("b", 300)], [record("a", 50), record("b", 200)])
    assert found["speedup_ratio_of_means"] == 1.6 and found["speedup_mean_of_ratios"] == 1.75
    low, high = found["speedup_mean_of_ratios_ci95"]  # type: ignore[misc]
    assert (low, high) == (1.5, 2.0)  # of two problems a bootstrap draws one of them twice in half of all draws


def test_a_speedup_of_other_problems_is_refused() -> None:
    with pytest.raises(ValueError, match="same problems"):
        speedups([record("a", 100)], [record("b", 50)])


def test_summary_by_hand() -> None:
    records = [record("a", 10, 1), record("b", 20, 2, False, 1), record("c", 60, 2, None, 1)]
    summary = summarise(records)
    assert (summary["accuracy"], summary["not_judged"], summary["l_critical_mean"]) == (0.5, 1, 30.0)
    assert summary["trigger_rate"] == pytest.approx(2 / 3, abs=1e-6)
    assert summary["by_parts"]["2"]["accuracy"] == 0.0 and summary["by_parts"]["1"]["accuracy"] == 1.0


def test_wilson_by_hand() -> None:
    # 9 of 10: centre (0.9 + 1.92/10)/1.38416, the textbook's (0.596, 0.982)
    assert wilson(9, 10) == (0.5958, 0.9821)
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=5))
def test_records_survive_their_file(lengths: list[int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        records = [record(str(i), n, correct=None if n % 3 else True) for i, n in enumerate(lengths)]
        write_records(Path(folder) / "r.jsonl", records)
        assert read_records(Path(folder) / "r.jsonl") == records


def test_trajectories_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(TrajectoryError, match="log-probs"):
        Trajectory("p", "d", (Segment("prompt", (1,), (0.0,)),), (), "answered")
    with pytest.raises(TrajectoryError, match="before it"):
        Trajectory("p", "d", (Segment("prompt", (1,), None, (0,)),), (), "answered")
    with pytest.raises(TrajectoryError, match="not a trajectory line"):
        Trajectory.from_json('{"segments": []}')


def test_the_progress_line_fits_a_terminal() -> None:
    metrics = {
        "reward": 1.123,
        "accuracy": 0.987,
        "tree/l_critical": 123.4,
        "tree/eta": 0.543,
        "perf/tokens_per_s": 2345.0,
    }
    line = progress_line("rl", 1000, 2000, {**metrics, "loss/policy": -0.001}, 1000.0)
    assert len(line) <= 80 and line.startswith("rl 1000/2000 reward 1.12 acc 0.99") and line.endswith("left 16:40")
