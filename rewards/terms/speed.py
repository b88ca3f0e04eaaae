"""Terms about time: how long the chain is that had to be waited for, alone or against a reference."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from rewards.errors import RewardError
from rewards.hardware import Hardware
from rewards.scored import Figure, Group, Scored


@dataclass(frozen=True, slots=True)
class Acceleration:
    """rho * eta, eta = 1 - L_critical / L_total; or rho * (L_total / L_critical - 1) with `form: ratio`.

    ThreadWeaver (arXiv 2512.07843) publishes three bonuses that disagree. In our settings:

    | source | formula | settings | largest | reached at |
    |---|---|---|---|---|
    | paper, eq. 7 | min(rho * eta, cap) | rho 0.5, cap 0.2 | 0.20 | eta 0.40 |
    | public code | weight * min(eta, cap) | weight 0.5, cap 0.2 | 0.10 | eta 0.20 |
    | public README | weight * min(L_total / L_critical - 1, cap) | form ratio, weight 0.5, cap 0.2 | 0.10 | ratio 1.2 |

    `rho` acts before the clip, `weight` after it. L_total 200, L_critical 150: 0.125 | 0.1 | 0.1.

    None asks whether a thread was needed, so each can pay for padding: 60 tokens in sequence give 0; the same work done
    twice in two threads, L_critical 80 and L_total 140, has eta 0.43 and the paper's full 0.2, for a longer wait.
    """

    judges_answer: ClassVar[bool] = False
    rho: float = 1.0
    form: Literal["eta", "ratio"] = "eta"

    def __call__(self, scored: Scored, group: Group) -> float:
        lengths = scored.lengths
        if self.form == "eta":
            return self.rho * lengths.eta
        return self.rho * (lengths.l_total / lengths.l_critical - 1.0 if lengths.l_critical else 0.0)


@dataclass(frozen=True, slots=True)
class Latency:
    """1 - L_critical / L_reference: positive when faster than the reference, whatever L_total is.

    `reference`: `group_mean`, the mean L_critical of the group's correct members; `group_best`, their least, so that
    the value of a correct member is never above 0; `stored`, a figure of the same prompt read from the file `baseline`
    (`scripts/score_rollouts.py --write-baseline` makes it from a sequential run). Without a correct member: 0.

    Correct members of 60 and 100 tokens, group mean 80: +0.25 and -0.25. A thread that does not shorten the path
    changes nothing here, so padding cannot pay.
    """

    judges_answer: ClassVar[bool] = False
    reference: Literal["group_mean", "group_best", "stored"] = "group_mean"
    baseline: str | None = None
    """JSON lines of {"problem_id": .., "l_critical": ..}."""

    def __post_init__(self) -> None:
        if (self.reference == "stored") != (self.baseline is not None):
            raise RewardError("a latency term needs `baseline: file.jsonl` exactly when its reference is `stored`")
        if self.baseline is not None:
            read_baseline(self.baseline)

    def __call__(self, scored: Scored, group: Group) -> float:
        if self.baseline is None:
            return _gain(self.reference == "group_best", scored, group, l_critical)
        stored = read_baseline(self.baseline)
        if scored.trajectory.problem_id not in stored:
            raise RewardError(
                f"{self.baseline} has no baseline for problem {scored.trajectory.problem_id}: "
                "record one with the same data settings and seed"
            )
        return 1.0 - scored.lengths.l_critical / stored[scored.trajectory.problem_id]


@dataclass(frozen=True, slots=True)
class HardwareLatency:
    """1 - T / T_reference, T the milliseconds this trajectory would take on `workers` workers (see hardware.py).

    `decode_ms` are pairs [sequences decoded together, milliseconds of one step]; `prefill_ms` is the time of one
    context token that no earlier call had read. `scripts/measure_decode_cost.py` measures both. The reference is
    `group_mean` or `group_best` of the correct members, as in Latency.

    Correct members that take 600 ms and 1,000 ms, group mean 800 ms: +0.25 and -0.25.
    """

    judges_answer: ClassVar[bool] = False
    workers: int = 4
    decode_ms: tuple[tuple[float, ...], ...] = ((1, 1.0),)
    prefill_ms: float = 0.0
    reference: Literal["group_mean", "group_best"] = "group_mean"

    def __post_init__(self) -> None:
        self.hardware()

    def hardware(self) -> Hardware:
        """The machine of these settings. Raises RewardError."""
        if any(len(pair) != 2 or pair[0] != int(pair[0]) for pair in self.decode_ms):
            raise RewardError("decode_ms is a list of pairs [batch size, milliseconds of one decode step]")
        return Hardware(self.workers, tuple((int(batch), ms) for batch, ms in self.decode_ms), self.prefill_ms)

    def __call__(self, scored: Scored, group: Group) -> float:
        return _gain(self.reference == "group_best", scored, group, _clock(self))


@cache
def _clock(term: HardwareLatency) -> Figure:
    return term.hardware().wait_ms


@dataclass(frozen=True, slots=True)
class Overlong:
    """-min(1, max(0, L_critical - (longest - buffer)) / buffer): DC-CoT's penalty on the longest path (2601.23027).

    0 up to longest - buffer, then falling linearly to -1 at `longest`. longest 7500, buffer 5500: L_critical 2000 gives
    0, 4750 gives -0.5, 9000 gives -1.
    """

    judges_answer: ClassVar[bool] = False
    longest: int = 7500
    buffer: int = 5500

    def __post_init__(self) -> None:
        if not 0 < self.buffer <= self.longest:
            raise RewardError(f"overlong needs 0 < buffer <= longest, not {self.buffer} and {self.longest}")

    def __call__(self, scored: Scored, group: Group) -> float:
        over = scored.lengths.l_critical - (self.longest - self.buffer)
        return -min(1.0, max(0, over) / self.buffer)


@dataclass(frozen=True, slots=True)
class Concurrency:
    """Mean share of `workers` threads that decode, over the critical path: parallel tokens / (workers * L_critical).

    AsyncThink (arXiv 2510.26658), as recalled: its formula could not be read again; clip it with `cap`, the paper's
    tau. Two threads of 30 tokens each, L_critical 40, 4 workers: 60 / 160 = 0.375.
    """

    judges_answer: ClassVar[bool] = False
    workers: int = 4

    def __call__(self, scored: Scored, group: Group) -> float:
        lengths = scored.lengths
        return lengths.parallel_tokens / (self.workers * lengths.l_critical) if lengths.l_critical else 0.0


def l_critical(scored: Scored) -> float:
    """L_critical in tokens."""
    return float(scored.lengths.l_critical)


def _gain(best: bool, scored: Scored, group: Group, figure: Figure) -> float:
    """1 - own figure / (mean or least of the group's correct members'); 0 without a correct member."""
    figures = group.figures(figure)
    right = [figures[id(member)] for member in group.correct]
    if not right:
        return 0.0
    reference = min(right) if best else sum(right) / len(right)
    return 1.0 - figures[id(scored)] / reference if reference else 0.0


@cache
def read_baseline(path: str) -> Mapping[str, float]:
    """L_critical by problem id. Raises RewardError naming the line that cannot be read."""
    if not Path(path).is_file():
        raise RewardError(f"baseline {path}: no such file; scripts/score_rollouts.py --write-baseline makes one")
    found: dict[str, float] = {}
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        try:
            row: dict[str, Any] = json.loads(line)
            found[str(row["problem_id"])] = float(row["l_critical"])
        except (ValueError, KeyError, TypeError) as error:
            raise RewardError(f'{path}:{number}: not {{"problem_id": .., "l_critical": ..}} ({error!r})') from error
        if not 0 < found[str(row["problem_id"])] < math.inf:
            raise RewardError(f"{path}:{number}: l_critical must be above 0, and finite")
    return found
