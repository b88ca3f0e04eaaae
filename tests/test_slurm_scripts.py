"""The sbatch scripts with a Slurm that only writes down how it was called; tests/slurm has the real one."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from apr_train.cluster import ranks_of, sbatch_command, shown
from apr_train.compose import load

SCRIPTS = sorted([*(ROOT / "slurm").glob("*.sh"), *(ROOT / "slurm").glob("*.sbatch")])
SCONTROL = """#!/usr/bin/env bash
case "$1 $2" in
  "show hostnames")
    if [[ $3 =~ ^n\\[1-([0-9])\\]$ ]]; then printf 'n%s\\n' $(seq "${BASH_REMATCH[1]}"); else tr , '\\n' <<< "$3"; fi ;;
  "show node") echo "NodeName=$4 NodeAddr=$4.lan NodeHostName=$4" ;;
  *) echo "scontrol $*" >> "$FAKE/log" ;;
esac
"""
SRUN = """#!/usr/bin/env bash
echo "nodes=$APR_NODES at=$APR_RENDEZVOUS srun $*" >> "$FAKE/log"
env | grep ^APR_SCRIPT= >> "$FAKE/log"
if [[ -n ${REACHED:-} ]]; then echo "$REACHED" > "$APR_STOPPED.0"; fi
if [[ -n ${HALVED:-} ]]; then echo "$HALVED" > outputs/mine/start_again; fi
exit "${CODE:-0}"
"""
PYTHON = """#!/usr/bin/env bash
echo "python $*" >> "$FAKE/log"
if [[ -n ${REACHED:-} ]]; then echo "$REACHED" > "$APR_STOPPED"; fi
kill -USR1 $$; kill -TERM $$
exit 1
"""


SERVING = """#!/usr/bin/env bash
if [[ $* == *secrets* ]]; then echo a-token; fi
"""
"""All is well at once."""
SERVER = """#!/usr/bin/env bash
echo "$CUDA_VISIBLE_DEVICES python $*" >> "$FAKE/log"
kill -USR1 $$
"""


class Checkout:
    """A copy of slurm/ in a folder of its own, with fakes on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        shutil.copytree(ROOT / "slurm", folder / "slurm")
        fakes = {"bin/scontrol": SCONTROL, "bin/srun": SRUN, ".venv/bin/python": PYTHON}
        for name, text in fakes.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        (folder / "outputs/mine").mkdir(parents=True)

    @property
    def node(self) -> dict[str, str]:
        """What common.sh tells node.sh."""
        told = str(self.folder / "told")
        names = ("APR_STOPPED", "APR_PYTHON", "APR_NODES", "APR_RENDEZVOUS")
        return dict(zip(names, (told, ".venv/bin/python", "2", "n1:20007"), strict=True))

    def run(self, script: str, *arguments: str, **environment: str) -> tuple[int, list[str]]:
        """Its exit code, and what the fakes were asked to do."""
        self.log.write_text("")
        slurm = {
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_NAME": "mine",
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_PROCID": "0",
            "TMPDIR": str(self.folder),
            "FAKE": str(self.folder),
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
        }
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("APR_", "SLURM_"))}
        command = ["bash", str(self.folder / "slurm" / script), *arguments]
        done = subprocess.run(
            command, env=clean | slurm | environment, cwd=self.folder, capture_output=True, text=True, check=False
        )
        return done.returncode, self.log.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


REQUEUED = "scontrol requeue 7"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_is_sound_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert len(max(script.read_text().splitlines(), key=len)) <= 120
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--external-sources", str(script)], check=True, cwd=ROOT)


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.suffix == ".sbatch"], ids=lambda script: script.name)
def test_a_script_asks_for_what_makes_a_job_survive(script: Path) -> None:
    asked = {line.removeprefix("#SBATCH --") for line in script.read_text().splitlines() if line.startswith("#SBATCH")}
    assert asked >= {"requeue", "open-mode=append", "signal=USR1@120", "ntasks-per-node=1"}
    assert not [line for line in asked if line.startswith(("account", "partition", "time"))]  # flags of sbatch


def test_all_nodes_meet_at_the_address_of_the_first(checkout: Checkout) -> None:
    code, log = checkout.run("train.sbatch", "seed=3")
    assert code == 0
    assert len(log) == 1
    assert log[0].startswith("nodes=2 at=n1.lan:20007 srun --nodes=2 --ntasks=2 --ntasks-per-node=1")
    assert "--kill-on-bad-exit=1" in log[0]
    assert log[0].endswith("slurm/node.sh seed=3 name=mine output_dir=outputs/mine")


def test_the_folder_is_that_of_the_name_or_the_one_given(checkout: Checkout) -> None:
    assert checkout.run("train.sbatch", "name=x")[1][0].endswith("name=x output_dir=outputs/x")
    assert checkout.run("sft.sbatch")[1][0].endswith("algorithm.steps=0 name=mine output_dir=outputs/mine")
    assert checkout.run("train.sbatch", "output_dir=/a b")[1][0].endswith("name=mine output_dir=/a b")


def test_a_stop_is_requeued_and_a_failure_is_not(checkout: Checkout) -> None:
    code, log = checkout.run("train.sbatch", REACHED="rl/step_3")
    assert code == 0 and log[-1] == REQUEUED
    code, log = checkout.run("train.sbatch", CODE="1")
    assert code == 1 and REQUEUED not in log
    code, log = checkout.run("train.sbatch", CODE="1", REACHED="rl/step_3")  # told to stop, and one node failed
    assert code == 1 and REQUEUED not in log


def test_each_script_starts_its_own_program(checkout: Checkout) -> None:
    for script in ("evaluate", "self_train"):
        assert f"APR_SCRIPT=scripts/{script}.py" in checkout.run(f"{script}.sbatch")[1]
        log = checkout.run("node.sh", **checkout.node, APR_SCRIPT=f"scripts/{script}.py")[1]
        assert f"scripts/{script}.py" in log[0] and (ROOT / "scripts" / f"{script}.py").is_file()
    assert not [line for line in checkout.run("train.sbatch")[1] if "APR_SCRIPT" in line]


def test_a_job_short_of_memory_is_requeued_while_it_cuts_finer(checkout: Checkout) -> None:
    for pieces in (2, 4):
        code, log = checkout.run("train.sbatch", CODE="1", HALVED=f"out of memory: {pieces} pieces")
        assert code == 0 and REQUEUED in log
    assert checkout.run("train.sbatch", CODE="1")[0] == 1  # another failure, later


def test_what_an_earlier_start_told_is_forgotten(checkout: Checkout) -> None:
    (checkout.folder / "apr-stopped-7.0").write_text("rl/step_3\n")
    assert checkout.run("train.sbatch")[1][1:] == []
    (checkout.folder / "told.0").write_text("rl/step_3\n")
    assert checkout.run("node.sh", **checkout.node)[0] == 1


def test_requeues_that_bring_nothing_come_to_an_end(checkout: Checkout) -> None:
    codes = [checkout.run("train.sbatch", REACHED="rl/step_3", APR_REQUEUES="2")[0] for _ in range(3)]
    assert codes == [0, 0, 85]
    assert checkout.run("train.sbatch", REACHED="rl/step_3", APR_REQUEUES="2")[0] == 0  # by hand, once more
    progress = [checkout.run("train.sbatch", REACHED=f"rl/step_{n}", APR_REQUEUES="1")[0] for n in range(4, 8)]
    assert progress == [0, 0, 0, 0]


def test_a_requeued_job_goes_on_also_where_it_began_anew(checkout: Checkout) -> None:
    assert "resume=auto" not in checkout.run("train.sbatch", "resume=never")[1][0]
    assert checkout.run("train.sbatch", "resume=never", SLURM_RESTART_COUNT="1")[1][0].endswith(" resume=auto")


def test_a_node_starts_a_rank_a_gpu_which_alone_take_the_signals(checkout: Checkout) -> None:
    given = checkout.node
    code, log = checkout.run("node.sh", "seed=3", **given, SLURM_GPUS_ON_NODE="8")
    assert code == 1  # torchrun's; the signals that it sent itself have not ended it
    for word in ("--nnodes=2", "--nproc-per-node=8", "--rdzv-endpoint=n1:20007", "is_host=true", "scripts/train.py"):
        assert word in log[0]
    assert (
        "--nproc-per-node=3" in checkout.run("node.sh", **given, SLURM_GPUS_ON_NODE="8", APR_RANKS_PER_NODE="3")[1][0]
    )
    assert "is_host=false" in checkout.run("node.sh", **given, SLURM_PROCID="1")[1][0]
    assert checkout.run("node.sh", **given, REACHED="rl/step_3")[0] == 0


def serving(checkout: Checkout, nodes: int, **environment: str) -> tuple[int, list[str]]:
    return checkout.run("serve_sampler.sbatch", "seed=3", SLURM_JOB_NODELIST=f"n[1-{nodes}]", **environment)


def test_servers_are_on_the_last_nodes_and_every_rank_learns_where(checkout: Checkout) -> None:
    (checkout.folder / ".venv/bin/python").write_text(SERVING)
    given = {"SLURM_GPUS_ON_NODE": "2", "SLURM_CPUS_PER_TASK": "16", "APR_SERVER_NODES": "2"}
    code, log = serving(checkout, 4, **given)
    assert code == 0
    (servers,) = [line for line in log if "slurm/server.sh" in line]
    (trainers,) = [line for line in log if "slurm/node.sh" in line]
    for word in (
        "--nodes=2 --ntasks=4 --ntasks-per-node=2 --nodelist=n3,n4 ",
        "--cpus-per-task=8 ",
        "server.sh 30700 ",
    ):
        assert word in servers
    assert "nodes=2 at=n1.lan:20007 srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --nodelist=n1,n2 " in trainers
    urls = ",".join(f"http://n{node}.lan:{port}/v1" for node, port in ((3, 30700), (3, 30701), (4, 30702), (4, 30703)))
    assert trainers.endswith(f"rollout=vllm_http rollout.urls=[{urls}]")
    assert not [line for line in log if "token" in line]


@pytest.mark.parametrize(
    ("nodes", "environment"),
    [(1, {}), (2, {"APR_SERVER_NODES": "2"}), (2, {"APR_SERVER_NODES": "0"}), (2, {"APR_SERVERS_PER_NODE": "2"})],
)
def test_servers_without_ranks_that_ask_them_are_refused_at_once(
    checkout: Checkout, nodes: int, environment: dict[str, str]
) -> None:
    assert serving(checkout, nodes, **environment) == (2, [])


def test_a_server_has_a_gpu_and_a_port_of_its_own_and_no_signal_of_the_trainers(checkout: Checkout) -> None:
    (checkout.folder / ".venv/bin/python").write_text(SERVER)
    task = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURMD_NODENAME": "n4", "CUDA_VISIBLE_DEVICES": "4,6"}
    code, log = checkout.run("server.sh", "30007", "seed=3", **task)
    assert (code, log) == (0, ["6 python scripts/serve_sampler.py --host n4.lan --port 30010 seed=3"])
    assert checkout.run("server.sh", "30007", **task | {"SLURM_LOCALID": "2"})[0] != 0  # a third server, two GPUs
    cpu = {name: value for name, value in task.items() if name != "CUDA_VISIBLE_DEVICES"}
    assert checkout.run("server.sh", "30007", **cpu)[0] == 0


def test_a_missing_environment_is_said(checkout: Checkout) -> None:
    assert checkout.run("train.sbatch", APR_VENV="nowhere") == (2, [])


# The dry run


def test_a_dry_run_shows_what_to_type() -> None:
    words = [
        "experiment=quickstart",
        "name=mine",
        "cluster=slurm",
        "cluster.nodes=2",
        "cluster.gpus_per_node=4",
        "++cluster.time=1:00:00",
        "dry_run=true",
    ]
    config = load([*words, "cluster.account=me"])
    assert ranks_of(config, here=1) == 8
    command = sbatch_command(config, words)
    flags = ["--job-name=mine", "--nodes=2", "--gpus-per-node=4", "--time=1:00:00", "--account=me"]
    assert command == ["sbatch", *flags, "slurm/train.sbatch", "experiment=quickstart", "name=mine"]
    assert (ROOT / "slurm/train.sbatch").read_text() in shown(config, words)
    served = load([*words[:4], "cluster.server_nodes=1", "rollout=vllm_http", "dry_run=true"])
    assert ranks_of(served, here=1) == 8
    assert sbatch_command(served, [])[-2:] == ["--export=ALL,APR_SERVER_NODES=1", "slurm/serve_sampler.sbatch"]
    sft = load(
        ["experiment=quickstart", "algorithm.steps=0", "cluster=slurm", "cluster.gpus_per_node=0", "dry_run=true"]
    )
    assert sbatch_command(sft, [])[-1] == "slurm/sft.sbatch" and "--gpus-per-node=0" not in sbatch_command(sft, [])
