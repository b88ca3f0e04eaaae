"""Figures people will quote: shares, intervals, speed-ups, the reward, each by hand."""

import math

import pytest

from apr_train.logger import progress_line
from apr_train.metrics import trajectory_metrics
from rewards.build import make_reward
from rewards.scored import Group, Scored
from rewards.verdict import Verdict
from rollout.critical_path import Lengths
from rollout.trajectory import Segment, Trajectory, TrajectoryError


def scored(l_total: int, l_critical: int, verdict: Verdict = "correct") -> Scored:
    trajectory = Trajectory("p", "threadweaver", (Segment("prompt", (1,)),), (), "answered")
    return Scored(trajectory, Lengths(l_total, l_critical, 1, 2, 2, 1, 0), verdict)


@pytest.mark.parametrize("verdict", ["timeout", "error"])
def test_a_failed_verifier_never_looks_like_a_wrong_answer(verdict: Verdict) -> None:
    assert math.isnan(make_reward({"outcome": {}})(Group((scored(200, 100, verdict),)), 1)[0])
    assert math.isnan(trajectory_metrics(scored(200, 100, verdict))["reward/accuracy"])


def test_shares_on_the_dashboard_sum_to_one() -> None:
    metrics = trajectory_metrics(scored(200, 100))
    for group in ("stop/", "verify/"):
        assert sum(value for name, value in metrics.items() if name.startswith(group)) == 1.0


def test_trajectories_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(TrajectoryError, match="log-probs"):
        Trajectory("p", "d", (Segment("prompt", (1,), (0.0,)),), (), "answered")
    with pytest.raises(TrajectoryError, match="before it"):
        Trajectory("p", "d", (Segment("prompt", (1,), None, (0,)),), (), "answered")
    with pytest.raises(TrajectoryError, match="not a trajectory line"):
        Trajectory.from_json('{"segments": []}')


def test_the_progress_line_fits_a_terminal() -> None:
    metrics = {
        "reward/total": 1.123,
        "reward/accuracy": 0.987,
        "tree/l_critical": 123.4,
        "tree/eta": 0.543,
        "perf/tokens_per_second": 2345.0,
    }
    line = progress_line("rl", 1000, 2000, {**metrics, "loss/policy": -0.001}, 1000.0)
    assert len(line) <= 80 and line.startswith("rl 1000/2000 reward 1.12 acc 0.99") and line.endswith("left 16:40")
