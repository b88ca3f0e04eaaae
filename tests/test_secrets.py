"""No secret of the environment or of a setting gets into a file, a log, an error line; no model text is obeyed."""

import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from apr_train import compose
from apr_train.compose import load, one_line_errors
from apr_train.config import ConfigError
from apr_train.corpora.report import Report, show
from apr_train.logger import MetricsLog
from rollout.errors import UserError
from rollout.shown import one_line, redacted, secret_in, visible
from scripts import score_rollouts

CANARIES = {name: f"canary-{name.lower()}-91f4c2" for name in ("WANDB_API_KEY", "HF_TOKEN", "VLLM_API_KEY")}
HOSTILE = "[red]x[/red] \x1b[2J \x1b]0;title\x07 \x9b2J \u202e \r over \x7f"
SMALL = ["experiment=quickstart", "debug=default"]


def hits(folder: Path) -> list[str]:
    """Files below a folder that hold a canary, in their name or their bytes."""
    files = [each for each in folder.rglob("*") if each.is_file()]
    assert files
    return [
        f"{file}: {name}"
        for file in files
        for name, value in CANARIES.items()
        if value.encode() in file.read_bytes() or value in str(file)
    ]


def python(root: Path, *words: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    environment = os.environ | CANARIES | {"NETRC": os.devnull}
    command = [sys.executable, *words]
    return subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


RECORD = """
import sys
from pathlib import Path
from apr_train.checkpoint import Checkpoints, write_json
from apr_train.compose import load
from apr_train.identity import check_same_run, identity_of
from apr_train.logger import MetricsLog
folder = Path(sys.argv[1])
config = load(["experiment=quickstart", "logger.wandb=offline", f"output_dir={folder}"])
log = MetricsLog(config, folder, True)
log.write("rl", 1, 1, {"reward/total": 1.0}, 0.0)
log.say("said")
log.close()
check_same_run(folder, identity_of(config, [], 1), writes=True)
points = Checkpoints(folder / "checkpoints")
write_json(points.draft(1) / "run_state.json", {"step": 1})
points.seal(1)
"""


def test_metrics_wandb_identity_and_checkpoints_hold_no_secret(tmp_path: Path, root: Path) -> None:
    done = python(root, "-c", RECORD, str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-2000:]
    written = {file.name for file in (tmp_path / "run").rglob("*")}
    assert {"metrics.jsonl", "identity.json", "manifest.json"} <= written
    assert any(name.endswith(".wandb") for name in written)
    assert hits(tmp_path) == []
    assert not any(value in done.stdout + done.stderr for value in CANARIES.values())


def test_a_dry_run_prints_no_secret(root: Path) -> None:
    done = python(root, "scripts/train.py", *SMALL, "dry_run=true")
    assert done.returncode == 0 and "threadweaver" in done.stdout, done.stderr[-2000:]
    assert not any(value in done.stdout + done.stderr for value in CANARIES.values())


@pytest.mark.slow
def test_a_whole_run_writes_no_secret(tmp_path: Path, root: Path) -> None:
    overrides = [*SMALL, "logger.wandb=offline", "checkpoint.every=1", "rollout=torch", f"output_dir={tmp_path}/run"]
    done = python(root, "scripts/train.py", *overrides, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert hits(tmp_path) == []
    assert not any(value in done.stdout + done.stderr for value in CANARIES.values())


@pytest.mark.parametrize("dry", ["true", "false"])
def test_a_setting_that_takes_a_secret_from_the_environment_is_refused_unseen(root: Path, dry: str) -> None:
    done = python(root, "scripts/train.py", *SMALL, "name=${oc.env:HF_TOKEN}", f"dry_run={dry}")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: name holds the value of HF_TOKEN, and settings are written down: put it in an environment variable"
    ]


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("logger.project=x-{HF_TOKEN}-y", "logger.project holds the value of HF_TOKEN"),
        ("model.path=https://me:pw@hub.example.org/m", "model.path holds user:password@"),
        ("model.path=hf_" + "a1B2" * 9, "model.path holds what looks like a token"),
        ("++data.options.key={WANDB_API_KEY}", r"data\.options\.key holds the value of WANDB_API_KEY"),
        ("++data.options.keys=[a,{WANDB_API_KEY}]", r"data\.options\.keys holds the value of WANDB_API_KEY"),
    ],
)
def test_a_setting_that_is_a_secret_is_refused_unseen(
    monkeypatch: pytest.MonkeyPatch, override: str, found: str
) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=found) as caught:
        load([override.format(**CANARIES)])
    assert override.format(**CANARIES).partition("=")[2] not in str(caught.value)


def test_an_error_line_shows_no_secret_and_nothing_a_terminal_obeys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", CANARIES["HF_TOKEN"])
    monkeypatch.setattr(compose.sys, "argv", ["train.py"])
    with pytest.raises(SystemExit), one_line_errors():
        raise UserError(f"{CANARIES['HF_TOKEN']} at https://me:pw@host/x said {HOSTILE}")
    told = capsys.readouterr().err
    assert told.startswith("error: [HF_TOKEN] at https://[redacted]@host/x said [red]x[/red] \\x1b[2J")
    assert told.endswith("\n") and told[:-1].isprintable()


# The words themselves


def test_secrets_are_known_by_name_and_long_enough() -> None:
    environment = {"A_TOKEN": "abcdefgh", "MY_API_KEY": "abcdefgh-more", "KEYBOARD": "qwertyuiop", "PASSWORD": "short"}
    assert redacted("abcdefgh-more abcdefgh qwertyuiop short", environment) == "[MY_API_KEY] [A_TOKEN] qwertyuiop short"
    assert secret_in("qwertyuiop short", environment) is None
    assert secret_in("http://host:80/a@b", {}) is None


@pytest.mark.parametrize("text", ["plain", "η × 3", "思考", "a b"])
def test_ordinary_text_is_shown_as_it_is(text: str) -> None:
    assert visible(text) == one_line(text) == text


@pytest.mark.parametrize("text", [HOSTILE, "\ud800", "\u2028", "\u200f", "".join(map(chr, range(32)))])
def test_nothing_shown_can_be_obeyed(text: str) -> None:
    assert visible(text).isprintable() and one_line(text).isprintable()


# Where text is printed


def test_the_log_obeys_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load([*SMALL, f"output_dir={tmp_path}"])
    log = MetricsLog(config, tmp_path, True)
    log.say(HOSTILE)
    log.write("[red]rl[/red]\x1b[2J", 1, 1, {}, 0.0)
    log.close()
    told = capsys.readouterr().err
    assert "[red]x[/red]" in told and "[red]rl[/red]\\x1b[2J" in told
    assert told.replace("\n", "").isprintable()


def test_a_corpus_report_obeys_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(f"{HOSTILE}.json", "npr")
    report.drop(HOSTILE, HOSTILE)
    show(report)
    told = capsys.readouterr().out
    assert told.count("[red]x[/red]") == 3 and "\\x1b[2J" in told
    assert told.replace("\n", "").isprintable()


def test_scoring_obeys_neither_recorded_text_nor_a_file_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "[red]\x1b[2J.jsonl"
    for text in (HOSTILE.replace("\r", ""), '{"trajectory": "\\u001b[2J"}'):
        file.write_text(text)
        assert score_rollouts.main([str(file), "reward=outcome"]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ") and "[red]\\x1b[2J.jsonl" in told and told[:-1].isprintable()
    console = Console(file=(shown := StringIO()), width=80, markup=False, highlight=False)
    console.print(score_rollouts.rank_table({"[red]a": {"[red]a": 1.0}}, ["[red]a"]))
    assert "[red]a" in shown.getvalue()
