"""Recorded rollouts: one JSON line per trajectory and what was made of it, written by a run, read to be scored."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from rewards.scored import Group, Scored
from rewards.verdict import Verdict
from rollout.critical_path import measure
from rollout.errors import UserError, shortened
from rollout.trajectory import Trajectory, TrajectoryError
from rollout.viewer import Recorded


class StoredError(UserError, ValueError):
    """A file of rollouts cannot be read. Names file, line and reason."""


def recorded(
    step: int,
    scored: Scored,
    reward: float = math.nan,
    advantage: float | None = None,
    terms: Mapping[str, float] | None = None,
) -> Recorded:
    """What is recorded of a scored trajectory. NaN, as reward or as term, is what was not judged."""
    judged = {name: value for name, value in (terms or {}).items() if not math.isnan(value)}
    known = None if math.isnan(reward) else reward
    return Recorded(
        *(step, scored.trajectory, scored.verdict, known, advantage, scored.flaw, judged),
        thread_verdicts=scored.thread_verdicts,
    )


def line_of(one: Recorded) -> str:
    """One line: all of it by name, null or nothing for what was not recorded; verdicts of threads as {"0.1": 1.0} for
    thread (0, 1)."""
    head: dict[str, Any] = {
        "step": one.step,
        "reward": one.reward,
        "advantage": one.advantage,
        "verdict": one.verdict,
        "flaw": one.flaw,
    }
    if one.terms:
        head["terms"] = dict(one.terms)
    if one.thread_verdicts:
        head["threads"] = {".".join(map(str, name)): value for name, value in one.thread_verdicts.items()}
    if one.trainer_logprobs is not None:
        # Nine digits are all that a float32 holds.
        head["trainer_logprobs"] = [own and [float(f"{value:.9g}") for value in own] for own in one.trainer_logprobs]
    return json.dumps({**head, "trajectory": json.loads(one.trajectory.to_json())}, separators=(",", ":")) + "\n"


def read_groups(files: Sequence[Path]) -> list[tuple[int, Group]]:
    """(step, group) of recorded rollouts: those of one step and one problem are a group. Raises StoredError."""
    found: dict[tuple[int, str], list[Scored]] = {}
    for each in read_recorded(files):
        trajectory = each.trajectory
        verdict = cast(Verdict, each.verdict)
        scored = Scored(trajectory, measure(trajectory), verdict, each.flaw, thread_verdicts=each.thread_verdicts)
        found.setdefault((each.step, trajectory.problem_id), []).append(scored)
    return [(step, Group(tuple(members))) for (step, _), members in found.items()]


def read_recorded(files: Sequence[Path]) -> list[Recorded]:
    """All rollouts of the files, in order. Raises StoredError, also when there are none."""
    found: list[Recorded] = []
    for file in files:
        try:
            lines = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise StoredError(f"{file} cannot be read: {why}") from error
        found += [_read(line, f"{file}:{number}") for number, line in enumerate(lines, start=1)]
    if not found:
        raise StoredError(f"no rollouts in {', '.join(map(str, files))}: set logger.rollouts_every to record some")
    return found


def _read(line: str, where: str) -> Recorded:
    try:
        raw: Any = json.loads(line)
        if not isinstance(raw, dict):
            raise TypeError(f"a line is an object, not {type(raw).__name__}")
        trajectory = Trajectory.from_json(json.dumps(raw["trajectory"]))
        verdict, step, flaw = raw["verdict"], int(raw["step"]), raw.get("flaw")
        if not (flaw is None or isinstance(flaw, str)):
            raise TypeError(f"flaw {flaw!r} is no text")
        terms = {name: _number(value) for name, value in raw.get("terms", {}).items()}
        threads = {_name(name): _share(value) for name, value in raw.get("threads", {}).items()}
        told = [None if own is None else [_number(value) for value in own] for own in raw.get("trainer_logprobs") or ()]
        reward, advantage = (None if raw.get(name) is None else _number(raw[name]) for name in ("reward", "advantage"))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        cause = (isinstance(error, TrajectoryError) and error.__cause__) or error
        why = shortened(f"{type(cause).__name__}: {cause}")
        raise StoredError(f"{where} is no recorded rollout ({why})") from error
    if verdict not in get_args(Verdict):
        raise StoredError(f"{where}: verdict {verdict!r} is none of {', '.join(get_args(Verdict))}")
    return Recorded(step, trajectory, verdict, reward, advantage, flaw, terms, told or None, threads)


def _name(text: str) -> tuple[int, ...]:
    """Of a thread. ValueError for what is none."""
    return tuple(int(number) for number in text.split("."))


def _share(value: Any) -> float:
    """TypeError, OverflowError or ValueError for what is no number from 0 to 1."""
    number = _number(value)
    if not 0.0 <= number <= 1.0:
        raise ValueError(f"a thread's verdict {number} is not 0 to 1")
    return number


def _number(value: Any) -> float:
    """TypeError for what is no number, OverflowError for one that no float holds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def check_writable(*files: Path | None) -> None:
    """StoredError for the first file that cannot be written, before the work that would be lost."""
    for file in files:
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise StoredError(
                f"cannot write {file}: {'it is a folder' if file.is_dir() else 'its folder is not there'}"
            )


def write_baseline(groups: Iterable[Group], file: Path) -> int:
    """The mean L_critical of the correct rollouts of each problem, for a latency term whose reference is `stored`.

    Returns how many problems have one; problems without a correct rollout are left out.
    """
    lengths: dict[str, list[int]] = {}
    for group in groups:
        for member in group.correct:
            lengths.setdefault(member.trajectory.problem_id, []).append(member.lengths.l_critical)
    rows = [{"problem_id": name, "l_critical": sum(own) / len(own)} for name, own in lengths.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)
