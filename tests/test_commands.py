"""The commands a user types, whole: two ranks under ZeRO, and a sampler server beside a trainer."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_vllm_http import free_port

SMALL = ["experiment=quickstart", "debug=default", "rollout.kv_cache_gib=0.2"]


def command(root: Path, *words: str, timeout: float = 500) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=root, capture_output=True, text=True, timeout=timeout, check=False
    )


def summary_of(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["sft"]["problems"] == summary["rl"]["problems"] == 8
    assert summary["gap_logprob_mean_abs"] <= 1e-4
    assert (folder / "rl" / "model.safetensors").is_file()
    return summary


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_two_ranks_train_and_evaluate_like_one(tmp_path: Path, root: Path, stage: str) -> None:
    one = command(root, "scripts/train.py", *SMALL, f"output_dir={tmp_path}/one")
    assert one.returncode == 0, one.stderr[-2000:]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = command(root, *launcher, "scripts/train.py", *SMALL, f"deepspeed={stage}", f"output_dir={tmp_path}/two")
    assert two.returncode == 0, two.stderr[-2000:]
    expected, found = summary_of(tmp_path / "one"), summary_of(tmp_path / "two")
    assert found["ranks"] == 2
    assert found["rl"]["l_total_mean"] == pytest.approx(expected["rl"]["l_total_mean"], rel=0.02)


@pytest.mark.slow
def test_a_server_samples_for_the_trainer_and_its_death_is_one_line(tmp_path: Path, root: Path) -> None:
    port, folder = free_port(), tmp_path / "run"
    url = f"http://127.0.0.1:{port}/v1"
    serve = [sys.executable, "scripts/serve_sampler.py", "--port", str(port), *SMALL, f"output_dir={folder}"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(serve, cwd=root, stdout=log, stderr=log, start_new_session=True)
    train = ["scripts/train.py", *SMALL, "rollout=vllm_http", f"rollout.urls=[{url}]", f"output_dir={folder}"]
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, tmp_path / "log")
        done = command(root, *train)
        assert done.returncode == 0, done.stderr[-2000:]
        summary_of(folder)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
    dead = command(root, *train, "resume=never")  # the same command again would find the run finished
    assert dead.returncode == 2 and dead.stderr.splitlines()[-1].startswith("error:") and url in dead.stderr


def wait_for(health: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(400):
        time.sleep(0.5)
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            if httpx.get(health, timeout=5).is_success:
                return
        except httpx.ConnectError:
            continue
    raise TimeoutError(log.read_text()[-2000:])
