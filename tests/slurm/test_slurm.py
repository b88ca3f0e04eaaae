"""The sbatch scripts under a real Slurm of two nodes: stopped, requeued and resumed as if nothing had happened.

Slow, needs root, slurm-wlm and munge: `make test-slurm` installs them where they are missing.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, cluster, missing
from conftest import ROOT
from real_runs import MODEL, RL, results

UNCHANGED = ("curve", "weights", "rollouts", "heldout", "summary")
under_slurm = pytest.mark.skipif(bool(missing()), reason=f"not installed: {' '.join(missing())}; run make test-slurm")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        yield running


def submit(
    slurm: Cluster,
    folder: Path,
    *overrides: str,
    flags: tuple[str, ...] = (),
    script: str = "slurm/train.sbatch",
) -> str:
    """Two nodes of one CPU rank each; what the job prints goes to <folder>.log."""
    environment = [f"--export=ALL,APR_VENV={sys.prefix}", f"--output={folder}.log", "--nodes=2", "--cpus-per-task=1"]
    command = ["sbatch", "--parsable", *environment, *flags, script, f"output_dir={folder}", *overrides]
    return slurm.call(*command, cwd=ROOT).strip()


def steps(folder: Path) -> int:
    """How many steps of RL are logged."""
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def wait_for_steps(slurm: Cluster, number: str, folder: Path, wanted: int) -> None:
    deadline = time.monotonic() + 240
    while steps(folder) < wanted:
        log = folder.parent / f"{folder.name}.log"
        alive = time.monotonic() < deadline and slurm.job(number)["JobState"] in ("PENDING", "RUNNING")
        assert alive, log.read_text()[-3000:] if log.exists() else "no log"
        time.sleep(0.1)


def finished(slurm: Cluster, number: str, folder: Path) -> dict[str, str]:
    job = slurm.wait(number, ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL"), 400)
    assert job["JobState"] == "COMPLETED", (folder.parent / f"{folder.name}.log").read_text()[-3000:]
    return job


@pytest.fixture(scope="module")
def settings(warm_policy: Path) -> tuple[str, ...]:
    return (*MODEL, *RL, f"model.path={warm_policy}", "algorithm.steps=12")


@pytest.fixture(scope="module")
def whole(slurm: Cluster, settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    job = finished(slurm, submit(slurm, folder, *settings), folder)
    assert job["Restarts"] == "0" and job["NumNodes"] == "2"
    assert json.loads((folder / "summary.json").read_text())["ranks"] == 2
    return folder


@pytest.mark.slow
@under_slurm
def test_a_job_told_to_stop_is_requeued_and_ends_as_one_that_was_not(
    slurm: Cluster, settings: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    number = submit(slurm, folder, *settings)
    wait_for_steps(slurm, number, folder, 3)
    slurm.call("scancel", "--signal=USR1", number)
    job = finished(slurm, number, folder)
    log = (tmp_path / "run.log").read_text()
    assert job["Restarts"] == "1", log[-3000:]
    assert "requeued" in log and "start 1 of" in log  # one log for both starts
    assert "Connection closed by peer" not in log, "a rank left before the other one was through"
    expected, found = results(whole, 2), results(folder, 2)
    assert len(expected["curve"]) == 12
    for name in UNCHANGED:
        assert found[name] == expected[name], f"{name} differs"


@pytest.mark.slow
@under_slurm
def test_the_time_limit_is_a_stop_and_not_an_end(slurm: Cluster, settings: tuple[str, ...], tmp_path: Path) -> None:
    """Slurm looks every 30 seconds, so its signal comes between 50 and 110 seconds after the start."""
    folder = tmp_path / "run"
    endless = ("algorithm.steps=100000", "checkpoint.every=0")
    number = submit(slurm, folder, *settings, *endless, flags=("--time=2", "--signal=USR1@40"))
    wait_for_steps(slurm, number, folder, 1)
    deadline = time.monotonic() + 240
    while slurm.job(number)["Restarts"] == "0":
        assert time.monotonic() < deadline and slurm.job(number)["JobState"] in ("RUNNING", "COMPLETING", "PENDING")
        time.sleep(0.5)
    slurm.call("scancel", number)
    assert "told to stop and saved: rl/step_" in (tmp_path / "run.log").read_text()


@pytest.mark.slow
@under_slurm
def test_a_job_whose_training_fails_is_not_requeued_and_leaves_nothing_running(
    slurm: Cluster, settings: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    (folder / "rollouts-rank1.jsonl").mkdir(parents=True)  # which rank 1 alone cannot write
    number = submit(slurm, folder, *settings)
    job = slurm.wait(number, ("COMPLETED", "FAILED", "CANCELLED"), 300)
    log = (tmp_path / "run.log").read_text()
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0"), log[-3000:]
    assert "IsADirectoryError" in log
    assert not processes_of(folder)


def processes_of(folder: Path) -> list[str]:
    """The command lines that name a run's folder."""
    found: list[str] = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has just ended
            command = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [command] if f"output_dir={folder}" in command else []
    return found


@pytest.mark.slow
@under_slurm
@pytest.mark.parametrize("count", ["1", "2"])
def test_servers_on_one_node_sample_for_as_many_ranks_on_the_other(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    monkeypatch.setitem(slurm.environment, "APR_SERVERS_PER_NODE", count)
    monkeypatch.setitem(slurm.environment, "APR_RANKS_PER_NODE", count)
    folder = tmp_path / "run"
    small = ("experiment=quickstart", "debug=default", "rollout.kv_cache_gib=0.2")
    number = submit(slurm, folder, *small, script="slurm/serve_sampler.sbatch", flags=("--cpus-per-task=2",))
    finished(slurm, number, folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["gap_logprob_mean_abs"] <= 1e-4 and summary["ranks"] == int(count)
    assert not processes_of(folder)  # the server has ended too


@pytest.mark.slow
@under_slurm
def test_a_sweep_is_an_array_of_jobs_with_a_folder_each(
    slurm: Cluster, settings: tuple[str, ...], tmp_path: Path
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="not installed: run make setup")
    swept = ("reward.terms.acceleration.rho=0.1,0.3", "name='rho-${reward.terms.acceleration.rho}'")
    own = (
        "hydra/launcher=submitit_slurm",
        f"output_dir='{tmp_path}/${{name}}'",
        f"hydra.sweep.dir={tmp_path}/multirun",
    )
    command = [
        sys.executable,
        "scripts/train.py",
        "-m",
        *settings,
        "algorithm.steps=2",
        "logger.group=rho",
        *swept,
        *own,
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=slurm.environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rho in (0.1, 0.3):
        assert (
            json.loads((tmp_path / f"rho-{rho}" / "identity.json").read_text())["reward.terms.acceleration.rho"] == rho
        )
        assert (tmp_path / f"rho-{rho}" / "summary.json").exists()


@pytest.mark.slow
@under_slurm
def test_a_cancelled_job_saves_before_it_ends(slurm: Cluster, settings: tuple[str, ...], tmp_path: Path) -> None:
    """TERM, which a partition that preempts sends as well: torchrun must neither end the ranks nor repeat it."""
    folder = tmp_path / "run"
    number = submit(slurm, folder, *settings, "algorithm.steps=100000", "checkpoint.every=0")
    wait_for_steps(slurm, number, folder, 1)
    slurm.call("scancel", number)
    slurm.wait(number, ("CANCELLED",), 60)
    deadline = time.monotonic() + 60
    while processes_of(folder):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert list((folder / "checkpoints/rl").glob("step_*/manifest.json"))
