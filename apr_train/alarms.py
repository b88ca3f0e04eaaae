"""Two alarms on the curves of a run: parallelism that dies with its bonus, and parallelism that saves no time."""

from collections.abc import Mapping
from dataclasses import dataclass, field

WINDOW = 10
"""Steps that are averaged: one period of the usual alternating schedule."""
COLLAPSE = 0.7
"""Serial collapse: the trigger rate is below this share of what it was when the bonus was relaxed."""
RELAXED = 0.5
"""A bonus is relaxed once its schedule is below this share of its highest, both averaged."""
RISE, FALL = 1.1, 0.98
"""Spurious parallelism: L_total above RISE, L_critical not below FALL times what they were in the first window."""


@dataclass
class Alarms:
    """Watches the metrics of each step. Deterministic: the same curves raise the same alarms at the same steps.

    >>> alarms = Alarms()
    >>> alarms.update(metrics)  # shown on the dashboard; `alarms.news` has a line for each alarm that has just begun
    {'tree/alarm_serial_collapse': 0.0, 'tree/alarm_spurious_parallelism': 0.0}
    """

    news: list[str] = field(default_factory=list[str])
    _seen: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    _highest: float = 0.0
    _at_relaxation: tuple[int, float] | None = None
    """(step, trigger rate) when the bonus was last seen at full strength."""
    _ringing: set[str] = field(default_factory=set[str])

    def update(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Takes one step's metrics; says which alarms ring, 1 or 0. Silent until the first window is full."""
        bonus = sum(value for name, value in metrics.items() if name.startswith("reward/schedule/"))
        row = {name: metrics[f"tree/{name}"] for name in ("trigger_rate", "l_total", "l_critical")}
        self._seen.append(row | {"bonus": bonus})
        self.news = []
        full = len(self._seen) >= WINDOW
        return {
            "tree/alarm_serial_collapse": self._ring("serial collapse", self._collapse() if full else None),
            "tree/alarm_spurious_parallelism": self._ring("spurious parallelism", self._spurious() if full else None),
        }

    def _ring(self, name: str, why: str | None) -> float:
        if why and name not in self._ringing:
            self.news.append(f"{name} alarm, step {len(self._seen)}: {why}")
        (self._ringing.add if why else self._ringing.discard)(name)
        return float(why is not None)

    def _mean(self, name: str, first: int | None = None) -> float:
        """Over the last window, or over the one that starts at index `first`."""
        start = len(self._seen) - WINDOW if first is None else first
        return sum(row[name] for row in self._seen[start : start + WINDOW]) / WINDOW

    def _collapse(self) -> str | None:
        bonus, trigger = self._mean("bonus"), self._mean("trigger_rate")
        self._highest = max(self._highest, bonus)
        if bonus >= 0.99 * self._highest:
            self._at_relaxation = (len(self._seen), trigger)
        if self._at_relaxation is None or bonus >= self._floor(RELAXED):
            return None
        step, before = self._at_relaxation
        if trigger >= COLLAPSE * before:
            return None
        return (
            f"the trigger rate fell from {before:.2f} to {trigger:.2f} since the bonus was relaxed after step {step}: "
            "relax it more slowly, or keep some of it"
        )

    def _floor(self, share: float) -> float:
        """`share` of the way from the weakest sum of schedules seen to the highest: constant terms do not count."""
        lowest = min(row["bonus"] for row in self._seen)
        return lowest + share * (self._highest - lowest)

    def _spurious(self) -> str | None:
        total = self._mean("l_total") / max(self._mean("l_total", 0), 1e-9)
        critical = self._mean("l_critical") / max(self._mean("l_critical", 0), 1e-9)
        if total <= RISE or critical < FALL:
            return None
        return (
            f"L_total is {total - 1:+.0%} and L_critical {critical - 1:+.0%} against the first {WINDOW} steps: tokens "
            "are paid for that save no time; score these rollouts with reward=robust"
        )
