"""Which differences between two evaluations of the same problems are more than chance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from apr_train.evaluation.metrics import Samples, paired
from apr_train.evaluation.samples import Sample
from apr_train.evaluation.statistics import DRAWS, bootstrap, holm, sign_flips

LEVEL = 0.05
FINEST = 50
"""Sign flips for each comparison, at least: the smallest p, corrected, is then 1 / FINEST."""
FIGURES: dict[str, Callable[[Sample], float | None]] = {
    "accuracy": lambda sample: None if sample.correct is None else float(sample.correct),
    "l_critical": lambda sample: float(sample.l_critical),
    "l_total": lambda sample: float(sample.l_total),
    "eta": lambda sample: sample.eta,
    "trigger_rate": lambda sample: None if sample.searched else float(sample.blocks > 0),
    "threads": lambda sample: None if sample.searched else float(sample.threads),
    "strict": lambda sample: None if sample.searched else float(sample.flaw is None),
}


@dataclass(frozen=True, slots=True)
class Difference:
    """`other` minus `one` over the same problems. `p` is Holm's over all figures that were compared.

    >>> Difference("accuracy", one=0.5, other=0.75, low=0.1, high=0.4, p=0.003).significant
    True
    """

    figure: str
    one: float
    other: float
    low: float
    high: float
    p: float

    @property
    def difference(self) -> float:
        return self.other - self.one

    @property
    def significant(self) -> bool:
        return self.p < LEVEL


def compare(one: Samples, other: Samples, seed: int = 0) -> list[Difference]:
    """Paired by problem: means, a 95% bootstrap interval of their difference, and p by sign flips, corrected by Holm
    for the number of figures. Raises ValueError unless both hold the same problems in order."""
    return compare_all([(one, other)], seed)[0]


def compare_all(pairs: Sequence[tuple[Samples, Samples]], seed: int = 0) -> list[list[Difference]]:
    """As `compare`, of several pairs that are looked at together: p is corrected for all figures of all of them."""
    draws = max(DRAWS, FINEST * len(pairs) * len(FIGURES))  # else no p could survive so many comparisons
    found: list[list[Difference]] = []
    for one, other in pairs:
        own: list[Difference] = []
        for name, figure in FIGURES.items():
            first, second = paired(one, other, figure)
            if not first:
                continue
            differences = [b - a for a, b in zip(first, second, strict=True)]
            low, high = bootstrap(differences, seed)
            means = [round(sum(values) / len(values), 6) for values in (first, second)]
            own.append(Difference(name, means[0], means[1], low, high, sign_flips(differences, seed, draws)))
        found.append(own)
    corrected = holm({f"{at} {each.figure}": each.p for at, own in enumerate(found) for each in own})
    return [[replace(each, p=corrected[f"{at} {each.figure}"]) for each in own] for at, own in enumerate(found)]
