"""A folder holds one run: a start that would train something else is refused, with the keys that differ."""

from pathlib import Path
from typing import Any

import pytest

from apr_train.checkpoint import read_json
from apr_train.compose import load
from apr_train.config import ConfigError
from apr_train.identity import IDENTITY, check_same_run, code_version, forget, identity_of
from apr_train.tasks.base import Problem

PROBLEMS = [[Problem("a", "1+1=", "2"), Problem("b", "2+2=", "4")], []]


def ours(*overrides: str, problems: Any = PROBLEMS, ranks: int = 1) -> dict[str, Any]:
    return identity_of(load(list(overrides)), problems, ranks)


@pytest.mark.parametrize(
    "free",
    [
        *("name=other", "output_dir=elsewhere", "logger=online", "checkpoint.every=3", "resume=force"),
        *("rollout.kv_cache_gib=9", "algorithm.gap_warn=0.5"),
    ],
)
def test_what_trains_the_same_may_change(tmp_path: Path, free: str) -> None:
    check_same_run(tmp_path, ours(), writes=True)
    check_same_run(tmp_path, ours(free), writes=True)


@pytest.mark.parametrize(
    ("start", "told"),
    [
        ({"overrides": ("algorithm.learning_rate=0.5",)}, r"algorithm\.learning_rate was 1e-06 and is 0\.5;"),
        ({"overrides": ("reward.terms.acceleration.rho=0.4",)}, r"reward\.terms\.acceleration\.rho was .* and is 0\.4"),
        ({"overrides": ("model.lora.rank=4",)}, r"model\.lora\.rank was 0 and is 4"),
        ({"overrides": ("~reward.terms.acceleration",)}, r"reward\.terms\.acceleration\.\w+ was \S+ and is None"),
        ({"ranks": 2}, "ranks was 1 and is 2"),
        ({"problems": [PROBLEMS[0][:1], PROBLEMS[0][1:]]}, "problems was"),
        ({"problems": [[Problem("a", "1+1=", "3"), PROBLEMS[0][1]], []]}, "problems was"),
    ],
)
def test_another_run_is_refused_by_name(tmp_path: Path, start: dict[str, Any], told: str) -> None:
    check_same_run(tmp_path, ours(), writes=True)
    changed = ours(*start.pop("overrides", ()), **start)
    with pytest.raises(ConfigError, match=told) as error:
        check_same_run(tmp_path, changed, writes=True)
    assert "resume=never" in str(error.value) and "resume=force" in str(error.value)
    check_same_run(tmp_path, changed, writes=True, force=True)
    with pytest.raises(ConfigError):  # a forced start does not make the folder another run's
        check_same_run(tmp_path, changed, writes=True)
    check_same_run(tmp_path, changed, writes=True, force=True)
    check_same_run(tmp_path, ours(), writes=True)
    (noted,) = read_json(tmp_path / IDENTITY)["forced"]  # once, though it was forced twice
    assert noted and noted == {key: [ours().get(key), changed.get(key)] for key in noted}


def test_a_setting_that_did_not_exist_then_matters_only_away_from_its_default(tmp_path: Path) -> None:
    older = ours()
    del older["algorithm.epsilon_low"]
    check_same_run(tmp_path, older, writes=True)
    check_same_run(tmp_path, ours(), writes=True)
    with pytest.raises(ConfigError, match=r"algorithm\.epsilon_low"):
        check_same_run(tmp_path, ours("algorithm.epsilon_low=0.4"), writes=True)


def test_a_long_list_of_differences_stays_one_readable_line(tmp_path: Path) -> None:
    check_same_run(tmp_path, ours(), writes=True)
    with pytest.raises(ConfigError, match=r"\(and \d+ more\)"):
        check_same_run(tmp_path, ours("experiment=quickstart"), writes=True)


def test_a_rank_that_does_not_write_leaves_no_file(tmp_path: Path) -> None:
    check_same_run(tmp_path, ours(), writes=False)
    assert not list(tmp_path.iterdir())


def test_another_version_of_the_code_is_noted_and_not_refused(tmp_path: Path) -> None:
    check_same_run(tmp_path, {"seed": 0, "code": "abc"}, writes=True)
    check_same_run(tmp_path, {"seed": 0, "code": "def"}, writes=True)
    check_same_run(tmp_path, {"seed": 0, "code": "def"}, writes=True)
    assert '"later_code": [\n  "def"\n ]' in (tmp_path / "identity.json").read_text()
    assert code_version()


def test_a_new_start_forgets_what_it_would_go_on_from_and_nothing_else(tmp_path: Path) -> None:
    for name in ("identity.json", "progress.json", "metrics.jsonl", "rollouts-rank3.jsonl", "notes.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / "checkpoints" / "rl" / "step_1").mkdir(parents=True)
    (tmp_path / "rl").mkdir()
    forget(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "rl"]
