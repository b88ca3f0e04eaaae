"""Two nodes on this machine: network namespaces of their own, joined by one cable. It needs root and `ip`."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

DEVICE = "cable"


class NoNamespaces(Exception):
    """`ip` does not make one here; says why."""


@dataclass(frozen=True)
class Node:
    """A namespace whose only way to the other node is `DEVICE`."""

    name: str
    address: str

    @property
    def inside(self) -> list[str]:
        """What a command begins with to run here."""
        return ["ip", "netns", "exec", self.name]

    def pids(self) -> list[int]:
        """Of all processes here."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def kill(self) -> None:
        """SIGKILL to everything here."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def cable(self, state: str) -> None:
        """`up` or `down`, at this end."""
        _ip("-n", self.name, "link", "set", DEVICE, state)


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """A pair of nodes, removed with all that runs in them. Raises NoNamespaces."""
    nodes = tuple(Node(f"apr-{os.getpid()}-{number}", f"10.93.0.{number + 1}") for number in range(2))
    with ExitStack() as ends:
        for node in nodes:
            _ip("netns", "add", node.name)
            ends.callback(_ip, "netns", "delete", node.name)
            ends.callback(node.kill)
        here, there = nodes
        _ip("link", "add", DEVICE, "netns", here.name, "type", "veth", "peer", "name", DEVICE, "netns", there.name)
        for node in nodes:
            _ip("-n", node.name, "address", "add", f"{node.address}/24", "dev", DEVICE)
            _ip("-n", node.name, "link", "set", "lo", "up")
            node.cable("up")
        yield here, there


def _ip(*words: str) -> str:
    try:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError as error:
        raise NoNamespaces("ip is not installed: run make test-nodes") from error
    if done.returncode:
        raise NoNamespaces(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
