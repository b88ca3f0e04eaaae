"""Whose folder it is and how far its run came: claimed at the start, noted after each part, read by the next start."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from apr_train.checkpoint import read_json, write_json
from apr_train.config import Config
from apr_train.identity import FREE, check_same_run, forget, identity_of
from apr_train.rollouts import Sampler
from apr_train.tasks.base import Problem

PROGRESS = "progress.json"


def claim(
    config: Config,
    world: PartialState,
    folder: Path,
    problems: Sequence[Sequence[Problem]],
    free: Sequence[str] = FREE,
) -> None:
    """Makes the folder this run's, or refuses what another run left there. ConfigError names what differs."""
    with world.main_process_first():
        if config.resume == "never" and world.is_main_process:
            forget(folder)
        ours = identity_of(config, problems, world.num_processes, free)
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
