"""A private Slurm of two nodes on this machine: its own munge, controller, two slurmd, folder and ports.

It touches no Slurm that is installed and running here, and ends with the test. It needs root, as slurmd does.
"""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

NODES = ("n1", "n2")
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue", "sinfo")
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=30
OverTimeLimit=0
InactiveLimit=0
SchedulerParameters=sched_interval=1,bf_interval=1
"""
"""cred_expire is also how long a requeued job waits: two minutes by default."""


def missing() -> list[str]:
    """The programs of Slurm and munge that are not installed."""
    search = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    return [name for name in NEEDED if shutil.which(name, path=search) is None]


@dataclass(frozen=True)
class Cluster:
    """A running one. `environment` leads every Slurm command to it."""

    folder: Path
    environment: dict[str, str]

    def call(self, *command: str, cwd: Path | None = None) -> str:
        """Runs a Slurm command and returns what it printed; AssertionError with its complaint when it fails."""
        done = subprocess.run(
            command, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` knows: JobState, Restarts, ExitCode, Reason and more."""
        shown = self.call("scontrol", "show", "job", "-o", number)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def wait(self, number: str, states: Sequence[str], seconds: float) -> dict[str, str]:
        """The job once it is in one of `states`."""
        deadline = time.monotonic() + seconds
        while (job := self.job(number))["JobState"] not in states:
            assert time.monotonic() < deadline, f"job {number} is {job['JobState']} and not {', '.join(states)}"
            time.sleep(0.5)
        return job


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Starts all daemons, waits until both nodes are idle, and ends them whatever happens."""
    folder.mkdir(parents=True)
    ports = free_ports(1 + len(NODES))
    lines = [
        f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} CPUs=2 State=UNKNOWN"
        for name, port in zip(NODES, ports[1:], strict=True)
    ]
    # Both nodes are this machine, so each claims all its cores: jobs may share them, the test has them alone.
    lines.append(f"PartitionName=main Nodes={','.join(NODES)} Default=YES MaxTime=60 State=UP")
    conf = folder / "slurm.conf"
    text = CONF.format(folder=folder, host=socket.gethostname(), controller_port=ports[0])
    conf.write_text(text + "SlurmdParameters=config_overrides\n" + "\n".join(lines) + "\n")
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    dropped = ("SLURM", "SBATCH", "APR_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    path = os.pathsep.join((clean.get("PATH", ""), "/usr/sbin", "/sbin"))
    environment = clean | {"SLURM_CONF": str(conf), "PATH": path}
    munge = [f"--{name}={folder}/munge.{name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
    with ExitStack() as ends:
        daemon(ends, environment, folder, "munged", "--foreground", "--force", f"--key-file={key}", *munge)
        wait_until(lambda: (folder / "munge.socket").exists(), folder, "munged has no socket")
        running = Cluster(folder, environment)
        # Children first, or slurmd would leave the steps of a failed test behind.
        daemon(ends, environment, folder, "slurmctld", "-D", "-f", str(conf))
        for name in NODES:
            (folder / f"spool.{name}").mkdir()
            daemon(ends, environment, folder, "slurmd", "-D", "-f", str(conf), "-N", name, log=name)
        ends.callback(cancel_all, running)
        wait_until(lambda: idle(running) == len(NODES), folder, "the nodes did not come up")
        yield running


def daemon(ends: ExitStack, environment: dict[str, str], folder: Path, *command: str, log: str = "") -> None:
    """Starts one, with its output in a file, and arranges its end."""
    with (folder / f"{log or command[0]}.log").open("w") as output:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=output)

    def end() -> None:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    ends.callback(end)


def cancel_all(running: Cluster) -> None:
    """Kills what still runs and waits until it is gone: a step outlives its slurmd."""

    def queued() -> list[str]:
        command = ["squeue", "--noheader", "--format=%A"]
        done = subprocess.run(command, env=running.environment, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout.split()

    deadline = time.monotonic() + 20
    while (jobs := queued()) and time.monotonic() < deadline:
        command = ["scancel", "--full", "--signal=KILL", *jobs]
        subprocess.run(command, env=running.environment, capture_output=True, timeout=30, check=False)
        subprocess.run(["scancel", *jobs], env=running.environment, capture_output=True, timeout=30, check=False)
        time.sleep(0.5)


def idle(running: Cluster) -> int:
    """How many nodes are."""
    command = ["sinfo", "--noheader", "--Node", "--format=%T"]
    done = subprocess.run(command, env=running.environment, capture_output=True, text=True, timeout=30, check=False)
    return done.stdout.split().count("idle")


def wait_until(fact: Callable[[], bool], folder: Path, failure: str, seconds: float = 60) -> None:
    """Until it holds; AssertionError with the ends of all logs otherwise."""
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            logs = [f"{log.name}: {log.read_text()[-1500:]}" for log in sorted(folder.glob("*.log"))]
            raise AssertionError("\n".join([failure, *logs]))
        time.sleep(0.3)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, all different."""
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
