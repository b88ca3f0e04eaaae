"""How long a trajectory would take on a machine: list scheduling of its calls on workers that decode together."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from rewards.errors import RewardError
from rewards.scored import Scored
from rollout.trajectory import Call, Trajectory


@dataclass(frozen=True, slots=True)
class Hardware:
    """`workers` calls at once; a decode step of b calls takes `step_ms(b)`; reading a new context token `prefill_ms`.

    `decode_ms`: measured (batch, milliseconds of one step) points, from batch 1 on, rising, milliseconds never falling.
    """

    workers: int
    decode_ms: tuple[tuple[int, float], ...]
    prefill_ms: float = 0.0

    def __post_init__(self) -> None:
        points = self.decode_ms
        rising = all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(points))
        if self.workers < 1 or self.prefill_ms < 0:
            raise RewardError(f"hardware needs workers >= 1 and prefill_ms >= 0, not {self.workers}, {self.prefill_ms}")
        if not points or points[0][0] != 1 or points[0][1] <= 0 or not rising:
            raise RewardError(
                "decode_ms goes from batch size 1 up, and the milliseconds of a decode step never fall as the batch "
                f"grows; got {[list(point) for point in points]}"
            )

    def step_ms(self, batch: int) -> float:
        """Milliseconds of one decode step; linear between the points, and along the last two beyond them.

        Points (1, 10) and (8, 17): 10 for 1, 12 for 3, 17 for 8, 18 for 9. One point only: the same for every batch.
        """
        if len(self.decode_ms) == 1:
            return self.decode_ms[0][1]
        pieces = list(pairwise(self.decode_ms))
        (left, low), (right, high) = next((piece for piece in pieces if batch <= piece[1][0]), pieces[-1])
        return low + (high - low) * (batch - left) / (right - left)

    def wait_ms(self, scored: Scored) -> float:
        """From the prompt to the last token of the trajectory, in milliseconds.

        A call is ready when all calls it waits for have ended; ready calls take free workers depth first, threads by
        number. A call first reads what of its context no earlier call has read or written (a join re-reads all threads
        but the first), then decodes one token per step together with the others. Waiting for the client is free.

        Root of 3 tokens, threads of 5 and 9, then 2, points (1, 10), (2, 12), nothing to read: on 2 workers
        3 * 10 + 5 * 12 + 4 * 10 + 2 * 10 = 150; on 1 worker 19 * 10 = 190.
        """
        trajectory = scored.trajectory
        calls = _depth_first(trajectory)
        waits = _waits(trajectory, calls)
        reads = [tokens * self.prefill_ms for tokens in _new_tokens(trajectory, calls)]
        writes = [float(len(trajectory.segments[call.sampled].ids)) for call in calls]
        steps = _steps_ms(self)
        ready, running, now = [call for call, behind in enumerate(waits) if not behind], list[int](), 0.0
        while ready or running:
            free = self.workers - len(running)
            running, ready = running + ready[:free], ready[free:]
            decoding = [call for call in running if reads[call] <= 0.0]
            step = steps[len(decoding)]
            # until the next event: a call has read its context, or written its last token
            ahead = min(writes[call] * step if reads[call] <= 0.0 else reads[call] for call in running)
            now += ahead
            for call in running:
                if reads[call] > 0.0:
                    reads[call] -= ahead
                else:
                    writes[call] -= ahead / step
            for call in decoding:
                if writes[call] <= 1e-9:
                    running.remove(call)
                    ready += _released(waits, call)
            ready.sort()
        return now


@cache
def _steps_ms(hardware: Hardware) -> tuple[float, ...]:
    """`step_ms` of 0 (no step: nothing decodes) to all workers."""
    return (0.0, *(hardware.step_ms(batch) for batch in range(1, hardware.workers + 1)))


def _released(waits: list[set[int]], ended: int) -> list[int]:
    """The calls that waited for this one last; takes it off everybody's list."""
    found: list[int] = []
    for call, behind in enumerate(waits):
        if ended in behind:
            behind.remove(ended)
            if not behind:
                found.append(call)
    return found


def _depth_first(trajectory: Trajectory) -> list[Call]:
    """The calls by thread and turn; block b is forked by its thread's call b.

    They are recorded as they end: that order would make the wait depend on the engine's timing.
    """
    turns: dict[tuple[int, ...], int] = {}
    keyed: list[tuple[tuple[int, ...], Call]] = []
    for call in trajectory.calls:
        thread = trajectory.segments[call.sampled].thread
        turn = turns.get(thread, 0)
        turns[thread] = turn + 1
        keyed.append(((*thread, turn), call))
    return [call for _, call in sorted(keyed, key=lambda pair: pair[0])]


def _waits(trajectory: Trajectory, calls: Sequence[Call]) -> list[set[int]]:
    """The calls that must have ended before each call can start: those its context and its parents come from."""
    segments = trajectory.segments
    sampler = {call.sampled: index for index, call in enumerate(calls)}
    behind: list[set[int]] = []
    for index, segment in enumerate(segments):
        if index in sampler:
            behind.append({sampler[index]})
        elif len(segment.parents) == 1:
            behind.append(behind[segment.parents[0]])
        else:
            behind.append({call for parent in segment.parents for call in behind[parent]})
    return [
        {sampler[source] for source in call.context if source in sampler}.union(
            *(behind[parent] for parent in segments[call.sampled].parents)
        )
        for call in calls
    ]


def _new_tokens(trajectory: Trajectory, calls: Sequence[Call]) -> list[int]:
    """Per call, the context tokens that follow the longest prefix that an earlier call has read or written."""
    known: dict[tuple[int, int], int] = {}  # a trie of segments: (node, segment) -> node; 0 is the root
    new: list[int] = []
    for call in calls:
        node, tokens = 0, 0
        for segment in (*call.context, call.sampled):
            if (node, segment) not in known:
                known[(node, segment)] = len(known) + 1
                tokens += len(trajectory.segments[segment].ids) if segment != call.sampled else 0
            node = known[(node, segment)]
        new.append(tokens)
    return new
