"""A share of `scripts/fuzz_dialects.py --streams 1000000`, small enough for every run of the tests."""

import json

import pytest

from rollout.dialects import DIALECTS
from rollout.trajectory import Trajectory
from scripts import fuzz_dialects


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_no_stream_of_tokens_raises_or_breaks_a_limit(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    fuzz_dialects.main(["--streams", "4000", "--dialect", name])
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert sum(row["streams"] for row in rows) >= 4000
    assert {row["join"] for row in rows} == set(DIALECTS[name].joins)
    for row in rows:
        assert sum(row["outcomes"].values()) == row["trajectories"]
        assert name == "sequential" or row["deepest"] >= 1  # else nothing of forks and joins was tried
        assert {"answered", "malformed"} <= row["outcomes"].keys() or name in ("sequential", "parathinker")


def test_the_fuzzer_sees_a_budget_that_is_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def generous(*arguments: object, **options: object) -> Trajectory:
        engine, dialect, name, prompt, budget = arguments
        from rollout.orchestrator import run_trajectory

        return await run_trajectory(engine, dialect, name, prompt, type(budget)(140, 8, 16, 6))

    monkeypatch.setattr(fuzz_dialects, "run_trajectory", generous)
    with pytest.raises(AssertionError):
        fuzz_dialects.fuzz("threadweaver", "transcript", 2000, 0)
