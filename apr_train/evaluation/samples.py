"""One sample of one held-out problem, as it is kept in a file: what every figure is computed from."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast, get_args, get_type_hints

from apr_train.checkpoint import replace_text
from apr_train.tasks.base import Problem
from rewards.scored import Scored
from rewards.terms.tokens import Redundancy
from rollout.errors import UserError
from rollout.trajectory import Trajectory

HELDOUT = "heldout.jsonl"
"""The file of a row, or of a training stage."""
OPENING = 8
"""Sampled tokens of a thread that count as how it opens."""
_REDUNDANCY = Redundancy(free=0.0)


class SamplesError(UserError, ValueError):
    """A file holds no samples. Names file, line and reason."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one strategy made of one problem, once. Lengths are in response tokens; the prompt never counts.

    >>> sample.correct  # None: the verifier itself failed, and nobody may call this sample wrong
    True
    """

    problem_id: str
    number: int
    """Of this problem's samples, from 0."""
    parts: int | None
    """How many independent pieces the problem has, where the task knows."""
    source: str | None
    """Which benchmark it is of, where the task mixes several."""
    level: str | None
    verdict: str
    outcome: str
    flaw: str | None
    """The first breach of the strict grammar."""
    answer: str
    """What votes are counted by, as the verifier spells it; empty where there is none."""
    l_critical: int
    l_total: int
    window: int
    """The longest context that one call had, prompt and sampled tokens included: what a window must hold."""
    blocks: int
    threads: int
    width: int
    depth: int
    parallel_tokens: int
    redundancy: float
    """Mean over threads of the largest overlap of 4-grams with a sibling, 0 to 1."""
    logprob: float | None
    """Mean over sampled tokens, nats; None where none was."""
    openings: tuple[str, ...]
    """A name for the first tokens of each thread: equal names, equal tokens."""
    searched: bool = False
    """Of a search: its client forks, whatever the policy does, and no grammar is checked."""

    @property
    def correct(self) -> bool | None:
        return None if self.verdict in ("timeout", "error") else self.verdict == "correct"

    @property
    def eta(self) -> float:
        """1 - L_critical / L_total; 0 of an empty response."""
        return 1.0 - self.l_critical / self.l_total if self.l_total else 0.0


def sample_of(problem: Problem, number: int, scored: Scored, answer: str, *, searched: bool = False) -> Sample:
    """The sample that a judged trajectory is."""
    trajectory, lengths = scored.trajectory, scored.lengths
    logprobs = [value for segment in trajectory.segments for value in segment.logprobs or ()]
    openings = (thread.sampled[:OPENING] for thread in scored.threads.values())
    return Sample(
        problem_id=problem.id,
        number=number,
        parts=problem.parts,
        source=problem.meta.get("source"),
        level=problem.meta.get("level"),
        verdict=scored.verdict,
        outcome=trajectory.outcome,
        flaw=scored.flaw,
        answer=answer,
        l_critical=lengths.l_critical,
        l_total=lengths.l_total,
        window=_window(trajectory),
        blocks=lengths.blocks,
        threads=lengths.threads,
        width=lengths.width,
        depth=lengths.depth,
        parallel_tokens=lengths.parallel_tokens,
        redundancy=round(_REDUNDANCY.of(scored), 6),
        logprob=round(sum(logprobs) / len(logprobs), 4) if logprobs else None,
        openings=tuple(blake2b(repr(opening).encode(), digest_size=4).hexdigest() for opening in openings),
        searched=searched,
    )


def _window(trajectory: Trajectory) -> int:
    held = [len(segment.ids) for segment in trajectory.segments]
    return max((sum(held[at] for at in (*call.context, call.sampled)) for call in trajectory.calls), default=0)


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """JSON lines, one a sample; whole or not at all."""
    replace_text(path, "".join(json.dumps(asdict(sample)) + "\n" for sample in samples))


_KINDS: dict[str, Any] = get_type_hints(Sample)


def _fits(value: object, kind: Any) -> bool:
    """Whether JSON gave a field what it is to hold; a whole number is a float too."""
    if kind == tuple[str, ...]:
        return isinstance(value, tuple) and all(isinstance(each, str) for each in cast(tuple[object, ...], value))
    kinds: tuple[Any, ...] = get_args(kind) or (kind,)
    allowed = (*kinds, int) if float in kinds else kinds
    return isinstance(value, allowed) and isinstance(value, bool) == (kind is bool)


def read_samples(path: Path) -> list[Sample]:
    """What `write_samples` wrote. Raises SamplesError."""
    names = {field.name for field in fields(Sample)}
    found: list[Sample] = []
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise SamplesError(f"{path} cannot be read ({error.strerror}): name the folder of an evaluation") from error
    for number, line in enumerate(lines, start=1):
        try:
            row: dict[str, Any] = json.loads(line)
            if set(row) != names:
                raise ValueError("its fields are others")
            row["openings"] = tuple(row["openings"])
            if wrong := [name for name, value in row.items() if not _fits(value, _KINDS[name])]:
                raise TypeError(f"{wrong[0]} is of another kind")
            found.append(Sample(**row))
        except (ValueError, TypeError, RecursionError) as error:
            raise SamplesError(f"{path}:{number} is no sample: evaluate again with this version") from error
    return found
