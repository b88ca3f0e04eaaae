"""Trajectories as columns of numbers in one compressed block: thousands of them stay small and open at once."""

import base64
import json
import zlib
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, get_args

import numpy as np

from rollout.critical_path import counted, critical_segments, finish_times, measure
from rollout.shown import visible
from rollout.trajectory import Attention, Event, Origin, Outcome
from rollout.viewer.order import reading_order
from rollout.viewer.pieces import Vocabulary
from rollout.viewer.recorded import Recorded, ViewerError

ORIGINS: tuple[str, ...] = get_args(Origin)
EVENTS: tuple[str, ...] = get_args(Event)
OUTCOMES: tuple[str, ...] = get_args(Outcome)
ATTENTIONS: tuple[str, ...] = get_args(Attention)
CRITICAL = 4
"""Added to the number of a segment's origin when it is on the critical path."""
NO_LOGPROB, MOST_NATS = -32768, 32.767
"""Log-probs are whole thousandths of a nat in 16 bits, cut off at 32.767; the one number left over means none."""


class Interned:
    """Numbers for values, each value once."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def __call__(self, value: Any) -> int:
        return self._numbers.setdefault(value, len(self._numbers))

    @property
    def values(self) -> list[Any]:
        return list(self._numbers)


class _Columns:
    """Named columns of numbers, and the JSON beside them."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.places: dict[str, tuple[str, int, int]] = {}
        self._end = 0

    def add(self, name: str, kind: str, values: Sequence[Any] | np.ndarray[Any, Any]) -> None:
        """Raises ViewerError for a number that the kind cannot hold."""
        try:
            block = np.asarray(values, dtype=f"<{kind}").tobytes()
        except OverflowError as error:
            raise ViewerError(f"a number is too large to be shown ({name}): correct the file") from error
        self.places[name] = (kind, self._end, len(values))
        block += b"\0" * (-len(block) % 8)  # a view of numbers starts at a multiple of their width
        self.parts.append(block)
        self._end += len(block)

    def packed(self, header: dict[str, Any]) -> str:
        """Base64 of: the header's length, the header, the columns; deflated."""
        text = json.dumps({**header, "columns": self.places}, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-(len(text) + 4) % 8)
        return base64.b64encode(
            zlib.compress(len(text).to_bytes(4, "little") + text + b"".join(self.parts), 6)
        ).decode()


def packed(recorded: Sequence[Recorded], vocabulary: Vocabulary) -> str:
    """Everything the page shows, in letters, digits, +, / and = only. Raises ViewerError."""
    columns, text, name = _Columns(), Interned(), Interned()
    text("")
    _add_trajectories(columns, recorded, text)
    _add_segments(columns, recorded, name)
    _add_tokens(columns, recorded, vocabulary)
    terms = list(dict.fromkeys(term for each in recorded for term in each.terms))
    for number, term in enumerate(terms):
        columns.add(f"term{number}", "f4", [each.terms.get(term, np.nan) for each in recorded])
    header = {
        "terms": [visible(term) for term in terms],
        "texts": [visible(value) for value in text.values],
        "names": name.values,
        "pieces": vocabulary.texts,
        "ids": vocabulary.ids,
        "notes": {i: _notes(each) for i, each in enumerate(recorded) if each.trajectory.notes},
        **{"origins": ORIGINS, "events": EVENTS, "outcomes": OUTCOMES, "attentions": ATTENTIONS},
    }
    return columns.packed(header)


def _notes(recorded: Recorded) -> list[tuple[str, int]]:
    return [(visible(name), count) for name, count in recorded.trajectory.notes.items()]


def _add_trajectories(columns: _Columns, recorded: Sequence[Recorded], text: Interned) -> None:
    def figures(name: str, kind: str, figure: Callable[[Recorded], Any]) -> None:
        columns.add(name, kind, [figure(each) for each in recorded])

    def number(value: float | None) -> float:
        return np.nan if value is None else value

    figures("step", "f8", lambda each: each.step)
    figures("version", "f8", lambda each: each.trajectory.policy_version)
    figures("problem", "u4", lambda each: text(each.trajectory.problem_id))
    figures("dialect", "u4", lambda each: text(each.trajectory.dialect))
    figures("verdict", "u4", lambda each: text(each.verdict))
    figures("flaw", "u4", lambda each: text(each.flaw or ""))
    figures("outcome", "u1", lambda each: OUTCOMES.index(each.trajectory.outcome))
    figures("attention", "u1", lambda each: ATTENTIONS.index(each.trajectory.attention))
    figures("reward", "f4", lambda each: number(each.reward))
    figures("advantage", "f4", lambda each: number(each.advantage))
    lengths = [measure(each.trajectory) for each in recorded]
    for name in ("l_total", "l_critical", "blocks", "threads", "width", "depth", "parallel_tokens"):
        columns.add(name, "u4", [getattr(each, name) for each in lengths])
    columns.add("first_segment", "u4", _offsets([len(each.trajectory.segments) for each in recorded]))


def _add_segments(columns: _Columns, recorded: Sequence[Recorded], name: Interned) -> None:
    kinds = {"origin": "u1", "start": "u4", "thread": "u4", "event": "u1", "order": "u4", "parents": "u4"}
    found: dict[str, list[int]] = {title: [] for title in kinds}
    segments = [segment for each in recorded for segment in each.trajectory.segments]
    for each in recorded:
        trajectory = each.trajectory
        critical, finish = set(critical_segments(trajectory)), finish_times(trajectory)
        ends = {call.sampled: EVENTS.index(call.event) + 1 for call in trajectory.calls}
        found["order"] += reading_order(trajectory)
        for index, segment in enumerate(trajectory.segments):
            found["origin"].append(ORIGINS.index(segment.origin) + (CRITICAL if index in critical else 0))
            found["start"].append(finish[index] - counted(segment))
            found["thread"].append(name(segment.thread))
            found["event"].append(ends.get(index, 0))
            found["parents"] += segment.parents
    for title, kind in kinds.items():
        columns.add(title, kind, found[title])
    columns.add("first_parent", "u4", _offsets([len(segment.parents) for segment in segments]))
    columns.add("first_token", "u4", _offsets([len(segment.ids) for segment in segments]))


def _add_tokens(columns: _Columns, recorded: Sequence[Recorded], vocabulary: Vocabulary) -> None:
    """Pieces and log-probs of all tokens; the trainer's minus the sampler's where some line has them."""
    tokens: list[int] = []
    logprobs: list[float] = []
    gaps: list[float] = []
    for each in recorded:
        trainers = _by_segment(each)
        for index, segment in enumerate(each.trajectory.segments):
            tokens += vocabulary.numbers(segment.ids)
            own = segment.logprobs if segment.logprobs is not None else (np.nan,) * len(segment.ids)
            logprobs += own
            told = trainers.get(index)
            gaps += (np.nan,) * len(own) if told is None else (t - o for t, o in zip(told, own, strict=True))
    columns.add("token", "u2" if len(vocabulary.ids) <= 2**16 else "u4", tokens)
    nats = np.asarray(logprobs, dtype=np.float64)
    thousandths = np.rint(np.clip(nats, -MOST_NATS, MOST_NATS) * 1000)
    columns.add("logprob", "i2", np.where(np.isnan(nats), NO_LOGPROB, thousandths))
    if any(each.trainer_logprobs is not None for each in recorded):
        bits = np.asarray(gaps, dtype="<f4").view("<u4")
        columns.add("gap", "f4", (bits & 0xFFFFF000).view("<f4"))  # three digits: the others are noise, and do not pack


def _by_segment(recorded: Recorded) -> dict[int, Sequence[float]]:
    """The trainer's log-probs by the segment they are of. Raises ViewerError where they do not fit the calls."""
    told, calls = recorded.trainer_logprobs, recorded.trajectory.calls
    if told is None:
        return {}
    found = {call.sampled: own for call, own in zip(calls, told, strict=False) if own is not None}
    sizes = {index: len(recorded.trajectory.segments[index].ids) for index in found}
    if len(told) != len(calls) or any(len(own) != sizes[index] for index, own in found.items()):
        raise ViewerError(f"problem {recorded.trajectory.problem_id}: trainer log-probs do not fit its calls")
    return found


def _offsets(sizes: Sequence[int]) -> list[int]:
    """Where each begins, and where the last ends."""
    return [0, *accumulate(sizes)]
