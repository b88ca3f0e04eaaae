"""Micro-batches that memory does not hold: cut into pieces, twice as many each time, alike on all ranks."""

import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from apr_train.checkpoint import read_json, replace_text, write_json
from rollout.errors import UserError

MEMORY = "memory.json"
AGAIN = "start_again"
"""Written where a run ended only to be started again: slurm/common.sh does."""
LACKS = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""What a RuntimeError says when there is no memory left: CUDA and NCCL, torch on a CPU, cuBLAS."""


class OutOfMemory(UserError, RuntimeError):
    """A forward or backward pass did not fit. Says into how many pieces the next start cuts, or what to lower."""


@dataclass
class Pieces:
    """In how many pieces the micro-batches of a stage are computed; noted in `folder`/memory.json, for later starts.

    A rank that is alone cuts and goes on. One of several cannot: the others wait in collectives of a pass that it never
    ends. It notes what all ranks of the next start read, and ends.

    >>> pieces = Pieces(Path("outputs/run"), "rl", alone=True)
    >>> pieces.halve("step 7", parts=40)
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

    def halve(self, where: str, parts: int) -> None:
        """Twice as many pieces from now on, of a micro-batch that has `parts` to be dealt out; or OutOfMemory."""
        if self.count >= min(parts, 2**self.most):
            why = f"guard.halvings={self.most}" if self.count < parts else f"it has {parts} to cut"
            raise OutOfMemory(
                f"out of memory in {where}, with micro-batches in {self.count} pieces ({why}): lower "
                "rollout.max_response_tokens, or take more ranks or a smaller model"
            )
        self.count *= 2
        write_json(self.folder / MEMORY, self._noted() | {self.stage: self.count})
        told = f"out of memory in {where}: micro-batches are computed in {self.count} pieces"
        if not self.alone:
            replace_text(self.folder / AGAIN, f"{told}\n")
            raise OutOfMemory(f"{told} from the next start on: start the same command again, and it goes on")
        self.say(f"{told} from now on")

    def _noted(self) -> dict[str, int]:
        file = self.folder / MEMORY
        return read_json(file) if file.exists() else {}


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that there is no memory left."""
    return any(lack in str(error) for lack in LACKS)


def peak_memory_gib() -> float:
    """The most GPU memory (GiB) that torch had allocated since the last call; without a GPU the most that this process
    ever held."""
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
