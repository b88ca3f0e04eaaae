"""Terms that say whether the answer is right."""

from dataclasses import dataclass
from typing import ClassVar

from rewards.scored import Group, Scored


@dataclass(frozen=True, slots=True)
class Outcome:
    """`correct` if the verdict is "correct", else `wrong` (a truncated or malformed response is wrong)."""

    judges_answer: ClassVar[bool] = True
    correct: float = 1.0
    wrong: float = 0.0

    def __call__(self, scored: Scored, group: Group) -> float:
        return self.correct if scored.correct else self.wrong


@dataclass(frozen=True, slots=True)
class FormatFirst:
    """A graded penalty for the format; `correct` or `wrong` only where there is no penalty (NPR, arXiv 2512.07461).

    | breach | penalty |
    |---|---|
    | nothing was written | -2.0 |
    | no parallel block | -1.5 |
    | a breach of the grammar, a thread that did not close itself, or no answer | -1.0 |
    | a thread of fewer than `min_thread_tokens` tokens (NPR counts characters) | -0.4 |

    The first of them that holds counts. Right, but one of two threads was cut off: -1.0. Right, and well formed: +1.
    """

    judges_answer: ClassVar[bool] = True
    correct: float = 1.0
    wrong: float = -1.0
    min_thread_tokens: int = 2

    def __call__(self, scored: Scored, group: Group) -> float:
        threads = scored.threads.values()
        if not scored.lengths.l_total:
            return -2.0
        if not scored.lengths.blocks:
            return -1.5
        answered = scored.trajectory.outcome == "answered"
        if scored.flaw is not None or not answered or not all(thread.finished for thread in threads):
            return -1.0
        if any(len(thread.sampled) < self.min_thread_tokens for thread in threads):
            return -0.4
        return self.correct if scored.correct else self.wrong


@dataclass(frozen=True, slots=True)
class NodeSuccess:
    """[correct] + bonus * mean over the root's threads of their own value, which is [success] + the same one below.

    RAO (arXiv 2605.06639): a node earns its own success and a share of the mean, not the sum, of its children's, so
    more children do not pay. A thread's own success is that it closed itself and, where the task can tell
    (`JudgesThreads` in apr_train/tasks/base.py), did what it was asked for. Right, bonus 0.2, one block of two threads,
    one of which was cut off, or closed itself with a wrong result: 1 + 0.2 * (1 + 0) / 2 = 1.1. The advantage rule
    `credit: node_local` gives every node this value of its own.
    """

    judges_answer: ClassVar[bool] = True
    bonus: float = 0.2

    def __call__(self, scored: Scored, group: Group) -> float:
        return node_values(scored, self.bonus)[()]


def node_values(scored: Scored, bonus: float) -> dict[tuple[int, ...], float]:
    """Own success + bonus * mean of the children's values, for the root () and every thread. Formula: NodeSuccess."""
    values: dict[tuple[int, ...], float] = {}
    children: dict[tuple[int, ...], list[float]] = {}
    for name in sorted([*scored.threads, ()], key=len, reverse=True):  # children before their parents
        own = scored.threads[name].success if name else float(scored.correct)
        below = children.get(name, [])
        values[name] = own + bonus * (sum(below) / len(below) if below else 0.0)
        if name:
            children.setdefault(name[:-2], []).append(values[name])
    return values
