"""APR's search traces as text (placeholder until its functions land)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SearchRun:
    turns: tuple[str, ...]
    spawns: tuple[tuple[int, ...], ...]
    children: tuple[tuple[str, ...], ...]
