"""The acceleration bonus of ThreadWeaver in its three published variants, which disagree.

With eta = 1 - L_critical / L_total:

| variant | formula | largest bonus | reached at |
|---|---|---|---|
| paper (arXiv 2512.07843, eq. 7) | min(rho * eta, cap) | 0.20 | eta = 0.40 |
| code (public repository) | rho * min(eta, cap) | 0.10 | eta = 0.20 |
| readme (public repository) | rho * min(L_total / L_critical - 1, cap) | 0.10 | L_total / L_critical = 1.2 |

The last two columns are for rho = 0.5, cap = 0.2. The public code also gives -1 to a wrong answer where the paper
gives 0: that is the outcome term's `wrong`, not part of the bonus.

None of the three asks whether a thread was needed, so each can pay for padding. A problem of one part: reasoned in
sequence, L_total = L_critical = 60, eta 0, R = 1.0. Forked into two threads that do the same work twice, L_critical 80
and L_total 140: eta = 1 - 80 / 140 = 0.43, paper bonus min(0.21, 0.2), R = 1.2, though the critical path grew.
"""

from dataclasses import dataclass

from rewards.reward import Scored, Term


@dataclass(frozen=True, slots=True)
class PaperAcceleration:
    """min(rho * eta, cap). L_total 200, L_critical 150, rho 0.5, cap 0.2: min(0.5 * 0.25, 0.2) = 0.125."""

    rho: float
    cap: float

    def __call__(self, scored: Scored) -> float:
        return min(self.rho * scored.lengths.eta, self.cap)


@dataclass(frozen=True, slots=True)
class CodeAcceleration:
    """rho * min(eta, cap). L_total 200, L_critical 150, rho 0.5, cap 0.2: 0.5 * min(0.25, 0.2) = 0.1."""

    rho: float
    cap: float

    def __call__(self, scored: Scored) -> float:
        return self.rho * min(scored.lengths.eta, self.cap)


@dataclass(frozen=True, slots=True)
class ReadmeAcceleration:
    """rho * min(L_total / L_critical - 1, cap). 200 and 180, rho 0.5, cap 0.2: 0.5 * min(1/9, 0.2) = 0.0556."""

    rho: float
    cap: float

    def __call__(self, scored: Scored) -> float:
        lengths = scored.lengths
        excess = lengths.l_total / lengths.l_critical - 1.0 if lengths.l_critical else 0.0
        return self.rho * min(excess, self.cap)


FORMS = {"paper": PaperAcceleration, "code": CodeAcceleration, "readme": ReadmeAcceleration}


def acceleration(form: str, rho: float, cap: float) -> Term:
    """The variant called `form`. Raises ValueError for a name that is none of FORMS."""
    if form not in FORMS:
        raise ValueError(f"unknown acceleration form {form!r}; known: {', '.join(FORMS)}")
    return FORMS[form](rho, cap)
