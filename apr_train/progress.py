"""Whose folder it is and how far its run came: claimed at the start, noted after each part, read by the next start."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from apr_train.checkpoint import LATEST, read_json, replace_text, write_json
from apr_train.config import Config, ConfigError
from apr_train.identity import FREE, check_same_run, forget, identity_of
from apr_train.lifecycle import Stopped
from apr_train.rollouts import Sampler
from apr_train.tasks.base import Problem

PROGRESS = "progress.json"
HELDOUT_NOTES = "heldout.part.jsonl"
"""Records of an evaluation that is not over."""
STOPPED = "APR_STOPPED"
"""Names, in the environment, the file that says to the launcher of this node that the run saved because it was told to
stop: torchrun's exit code is 1 whatever its ranks' was."""


def claim(
    config: Config,
    world: PartialState,
    folder: Path,
    problems: Sequence[Sequence[Problem]],
    free: Sequence[str] = FREE,
    more: Mapping[str, str] | None = None,
) -> None:
    """Makes the folder this run's, or refuses what another run left there; `more` is what settings do not say of it.
    ConfigError names what differs."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir={folder} cannot be made ({error.strerror}): name another folder") from error
    with world.main_process_first():
        ours = identity_of(config, problems, world.num_processes, free) | dict(more or {})
        if config.resume == "never" and world.is_main_process:
            forget(folder, ours.get("kind"))
        check_same_run(folder, ours, writes=world.is_main_process, force=config.resume == "force")


@dataclass
class Progress:
    """Which parts of a run are done, what came of them, and how often the sampler had taken weights by then."""

    folder: Path
    world: PartialState
    parts: dict[str, dict[str, Any]]
    sampler: Sampler | None = None

    @classmethod
    def load(cls, folder: Path, world: PartialState) -> "Progress":
        """What an earlier start noted. Collective, so that no rank reads what another one writes meanwhile."""
        file = folder / PROGRESS
        found = cls(folder, world, read_json(file) if file.exists() else {})
        world.wait_for_everyone()
        return found

    def once(self, name: str, act: Callable[[], Any]) -> Any:
        """What `act` returns, now or in an earlier start; JSON."""
        assert self.sampler is not None
        if name not in self.parts:
            result = act()
            self.parts[name] = {"result": result, "policy_version": self.sampler.policy_version}
            if self.world.is_main_process:
                write_json(self.folder / PROGRESS, self.parts)
            self.world.wait_for_everyone()
        self.sampler.policy_version = self.parts[name]["policy_version"]
        return self.parts[name]["result"]


@contextmanager
def noted_stop(folder: Path, world: PartialState) -> Iterator[None]:
    """When the run is told to stop, tells the launcher of each node how far it came. Collective then.

    No rank leaves before all nodes are told: where one ends, torchrun and srun end the others.
    """
    try:
        yield
    except Stopped:
        file = os.environ.get(STOPPED)
        came: list[str] = gather_object([reached(folder)])  # of the first rank, which wrote what the others read
        if file and world.is_local_main_process:
            replace_text(Path(file), f"{came[0]}\n")
        world.wait_for_everyone()
        raise


def reached(folder: Path) -> str:
    """How far a run came, in words that change as soon as it comes further.

    >>> reached(Path("outputs/quickstart"))  # the warm start is over, and 40 steps of GRPO are saved
    'sft sft_heldout rl/step_40'
    """
    done = list(read_json(folder / PROGRESS)) if (folder / PROGRESS).exists() else []
    saved = [
        f"{file.parent.name}/{file.read_text().strip()}" for file in sorted(folder.glob(f"checkpoints/*/{LATEST}"))
    ]
    counted = [f"{file.parent.name}/{_lines(file)}" for file in sorted(folder.glob(f"**/{HELDOUT_NOTES}"))]
    rounds = [f"{file.parent.name}/{read_json(file).get('batches')}" for file in sorted(folder.glob("round*/*.json"))]
    begun = [each for each in saved if each.partition("/")[0] not in done]
    return " ".join([*done, *begun, *rounds, *counted]) or "nothing"


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines())
