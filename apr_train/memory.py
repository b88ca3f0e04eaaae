"""Micro-batches that memory does not hold: cut into pieces, twice as many each time, alike on all ranks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from apr_train.checkpoint import read_json, write_json
from rollout.errors import UserError

MEMORY = "memory.json"


class OutOfMemory(UserError, RuntimeError):
    """A forward or backward pass did not fit. Says into how many pieces the next start cuts, or what to lower."""


@dataclass
class Pieces:
    """In how many pieces the micro-batches of a stage are computed; noted in `folder`/memory.json, for later starts.

    A rank that is alone cuts and goes on. One of several cannot: the others wait in collectives of a pass that it never
    ends. It notes what all ranks of the next start read, and ends.

    >>> pieces = Pieces(Path("outputs/run"), "rl", alone=True)
    >>> pieces.cut("step 7")
    >>> pieces.count
    2
    """

    folder: Path
    stage: str
    alone: bool
    most: int = 3
    """How often a micro-batch may be halved."""
    say: Callable[[str], None] = print
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = int(self._noted().get(self.stage, 1))

    def cut(self, where: str) -> None:
        """Halves from now on, or raises OutOfMemory."""
        if self.count >= 2**self.most:
            raise OutOfMemory(
                f"out of memory in {where}, with micro-batches in {self.count} pieces (guard.halvings={self.most}): "
                "raise algorithm.micro_batches, or lower rollout.max_response_tokens"
            )
        self.count *= 2
        write_json(self.folder / MEMORY, self._noted() | {self.stage: self.count})
        told = f"out of memory in {where}: micro-batches are computed in {self.count} pieces"
        if not self.alone:
            raise OutOfMemory(f"{told} from the next start on: start the same command again, and it goes on")
        self.say(f"{told} from now on")

    def _noted(self) -> dict[str, int]:
        file = self.folder / MEMORY
        return read_json(file) if file.exists() else {}


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that there is no memory left: CUDA in a class of its own, a CPU in words."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
