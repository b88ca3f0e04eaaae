"""Two nodes under torchrun, of which one is lost: the other one ends in time and says why, and the run goes on.

Slow, needs root and `ip`: `make test-nodes`. `-s` prints the seconds from each loss to the end.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from conftest import ROOT
from namespaces import DEVICE, Node, NoNamespaces, two_nodes
from real_runs import MODEL, RL, results, start
from test_lost_rank import killed_in_backward

from apr_train.checkpoint import Checkpoints

DEADLINES = ("deadline.update=15", "deadline.rollout=20", "deadline.verify=5", "deadline.collective=25")
STEP, SAVED = 4, 2
"""Where a node is lost, and the step whose checkpoint is the newest then."""


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[Node, Node]]:
    with ExitStack() as ends:
        try:
            made = ends.enter_context(two_nodes())
        except NoNamespaces as error:
            pytest.skip(str(error))
        yield made


@pytest.fixture(scope="module")
def settings(warm_policy: Path) -> tuple[str, ...]:
    """Of all runs here."""
    return (*MODEL, *RL, f"model.path={warm_policy}")


@pytest.fixture(scope="module")
def whole(settings: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run on two ranks of one machine, which nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    start(folder, *settings, ranks=2)
    return folder


def begin(ends: ExitStack, node: Node, number: int, folder: Path, *overrides: str, hold: str = "") -> subprocess.Popen:
    """One torchrun on one node; what it prints goes to <folder>.node<n>.log."""
    first = f"10.93.0.1:{29400 + os.getpid() % 1000}"
    agent = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    agent += [f"--rdzv-endpoint={first}", "--rdzv-id=run", f"--rdzv-conf=is_host={'false' if number else 'true'}"]
    agent += [f"--local-addr={node.address}"]
    command = [*node.inside, sys.executable, *agent, str(ROOT / "tests/nodes/held_run.py"), f"output_dir={folder}"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": DEVICE, "HOLD": hold}
    log = ends.enter_context((folder.parent / f"{folder.name}.node{number}.log").open("a"))
    return subprocess.Popen(
        [*command, *DEADLINES, *overrides], env=environment, cwd=folder.parent, stdout=log, stderr=log
    )


def run_both(nodes: tuple[Node, Node], folder: Path, *overrides: str) -> None:
    with ExitStack() as ends:
        agents = [begin(ends, node, number, folder, *overrides) for number, node in enumerate(nodes)]
        codes = [agent.wait(300) for agent in agents]
    assert codes == [0, 0], shown(folder)


def shown(folder: Path) -> str:
    return "\n".join(f"{log.name}: {log.read_text()[-3000:]}" for log in sorted(folder.parent.glob("*.node*.log")))


def same(found: Path, expected: Path) -> None:
    ours, theirs = results(found, 2), results(expected, 2)
    assert len(theirs["curve"]) == 6 and len({row["loss/policy"] for row in theirs["curve"]}) > 3
    for name, value in theirs.items():
        assert ours[name] == value, f"{name} differs"


def test_a_rank_of_another_node_killed_in_its_backward_pass_ends_this_one(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    killed_in_backward(tmp_path, "none", [node.inside for node in nodes], nodes[0].address, DEVICE)


@pytest.mark.slow
def test_two_nodes_train_as_two_ranks_of_one_machine(
    nodes: tuple[Node, Node], settings: tuple[str, ...], whole: Path, tmp_path: Path
) -> None:
    run_both(nodes, tmp_path / "run", *settings)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ranks"] == 2
    same(tmp_path / "run", whole)


LOST = "lost contact to another rank in "
LATE = "update did not end in 15 s"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "point", "lost", "told", "seconds"),
    [
        ("kill", "update", 1, LOST + "update", 10),
        ("kill", "rollout", 1, LOST + "collective", 10),
        ("kill", "update", 0, LOST + "update", 10),
        ("cable", "update", 1, LATE, 25),
        ("stop", "update", 1, LATE, 25),
        ("stop", "rollout", 1, "collective did not end in 25 s", 35),
    ],
)
def test_a_run_that_loses_a_node_ends_in_time_says_why_and_goes_on(
    nodes: tuple[Node, Node],
    settings: tuple[str, ...],
    whole: Path,
    tmp_path: Path,
    loss: str,
    point: str,
    lost: int,
    told: str,
    seconds: float,
) -> None:
    folder, held = tmp_path / "run", tmp_path / "held"
    gone = nodes[lost]
    with ExitStack() as ends:
        for node in nodes:
            ends.callback(node.kill)
        agents = [
            begin(ends, node, number, folder, *settings, hold=f"{point}:{STEP}:{lost}:{held}")
            for number, node in enumerate(nodes)
        ]
        wait_for(held, agents, folder)
        began = time.monotonic()
        if loss == "kill":
            gone.kill()
        elif loss == "cable":
            gone.cable("down")
            ends.callback(gone.cable, "up")
            held.with_name("held.go").touch()
        else:
            os.kill(int(held.read_text()), signal.SIGSTOP)
        for number in (0, 1) if loss == "cable" else (1 - lost,):  # without a cable each has lost the other one
            line, after = first_error(tmp_path / f"run.node{number}.log", began)
            print(f"\n{loss} of node {lost} in {point}: the rank of node {number} after {after:.1f} s: {line}")
            assert told in line and f"step {STEP} of rl (step_{SAVED} is saved)" in line and after < seconds
            if number == 1 and loss == "cable":  # torchrun waits for the rendezvous for as long as the kernel does
                until(lambda: nodes[1].pids() == [agents[1].pid], tmp_path / "run.node1.log")
            else:
                assert agents[number].wait(30) != 0 and not nodes[number].pids()
                print(f"torchrun after {time.monotonic() - began:.1f} s")
    newest = Checkpoints(folder / "checkpoints" / "rl").newest()
    assert newest is not None and newest.name == f"step_{SAVED}"
    run_both(nodes, folder, *settings)
    same(folder, whole)


def wait_for(held: Path, agents: list[subprocess.Popen], folder: Path) -> None:
    deadline = time.monotonic() + 180
    while not held.exists() or not held.read_text():
        assert time.monotonic() < deadline and all(agent.poll() is None for agent in agents), shown(folder)
        time.sleep(0.05)


def first_error(log: Path, began: float) -> tuple[str, float]:
    """The line that a rank ends with, and the seconds until it is there."""

    def lines() -> list[str]:
        return [line for line in log.read_text().splitlines() if line.startswith("error: rank")]

    until(lambda: bool(lines()), log)
    return lines()[0], time.monotonic() - began


def until(fact: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not fact():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)
