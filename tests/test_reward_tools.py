"""The benchmark of scoring and the measurement of decode cost report what they claim."""

import json

import pytest

from scripts import bench_scoring
from scripts.measure_decode_cost import decode_curve, prefill_cost


def test_the_benchmark_scores_ten_calls_under_every_preset(root: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_scoring.main(["--trajectories", "16"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["trajectories"], last["calls"]) == (16, 10)
    assert {"robust", "hardware_aware", "threadweaver_paper"} <= set(last["seconds"])


def test_decode_and_prefill_cost_are_taken_apart_and_the_curve_never_falls() -> None:
    """A machine of 5 ms a prompt token's worth of start, 2 ms a step for one sequence, 4 for two, 3 for three."""
    per_step = {1: 2.0, 2: 4.0, 3: 3.0}

    def timed(calls: int, prompt: int, sampled: int) -> tuple[float, int]:
        return (0.25 * prompt * calls + per_step[calls] * (sampled - 1)) / 1000, sampled

    assert decode_curve(timed, [1, 2, 3], repeats=3) == [
        (1, pytest.approx(2.0)),
        (2, pytest.approx(4.0)),
        (3, pytest.approx(4.0)),
    ]
    assert prefill_cost(timed, context=64, repeats=3) == pytest.approx(0.25)
