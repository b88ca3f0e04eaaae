"""Which call of a trajectory gets how much of its advantage."""

from collections.abc import Sequence

from rewards.scored import Group, Name, Scored
from rewards.terms.answer import node_values
from rollout.trajectory import Trajectory

CallAdvantages = list[list[float | None]]
"""Per trajectory, per call. None: the call is no training row; others see it as context all the same."""

THREAD_SHARE = 1 / 2.5
"""SELFCEST: what a finished thread earns of its root's reward."""
MOST_RATIO = 1.5
"""SELFCEST: the largest |thread reward / root reward|."""


def credit_calls(
    kind: str, scored: Sequence[Scored], root: Sequence[float], threads: Sequence[float], rewards: Sequence[float]
) -> CallAdvantages:
    """The advantage of every call. `root`, `threads` (scope_advantages) and `rewards` have one number a trajectory.

    | kind | a root call | a thread's call | source |
    |---|---|---|---|
    | broadcast | root | threads | GRPO on trajectories, ThreadWeaver |
    | per_call_mean | as broadcast; `mean_over_calls` then weighs | | APR |
    | root_only | root | 0; its tokens still count in the loss's mean | RLM |
    | frozen_threads | root | none: context only | PARL |
    | ratio_scaled | root | root * clip(thread reward / reward, +-1.5) | SELFCEST |

    ratio_scaled: a thread earns reward / 2.5, and nothing above 0 when it was cut off. Root 0.6, reward 1, one thread
    finished and one cut off: 0.6, 0.24 and 0. With reward 0 a ratio says nothing: 0. `node_local` is `node_advantages`.
    """
    found: CallAdvantages = []
    for each, own, below, reward in zip(scored, root, threads, rewards, strict=True):
        row: list[float | None] = []
        for name in names_of_calls(each.trajectory):
            if not name:
                row.append(own)
            elif kind in ("broadcast", "per_call_mean"):
                row.append(below)
            elif kind == "ratio_scaled":
                row.append(own * _ratio(reward, each.threads[name].finished))
            else:
                row.append({"root_only": 0.0, "frozen_threads": None}[kind])
        found.append(row)
    return found


def _ratio(reward: float, finished: bool) -> float:
    if not abs(reward) > 0.0:  # 0, or NaN: not judged
        return 0.0
    earned = THREAD_SHARE * reward if finished else min(0.0, THREAD_SHARE * reward)
    return max(-MOST_RATIO, min(MOST_RATIO, earned / reward))


def node_advantages(groups: Sequence[Group], bonus: float, root: Sequence[float]) -> CallAdvantages:
    """RAO: every node its own advantage, from its own success and the mean of its children's (terms/answer.py).

    A thread's baseline is leave-one-out over trajectories: the mean, over the group's other trajectories that have
    nodes of this depth, of those nodes' mean value; without such a trajectory its advantage is 0. So a trajectory
    counts once however often it forked. Root calls keep `root`, one number a trajectory, from all terms; a thread's
    value knows no other term, and not the weight of node_success.

    Two trajectories, threads of values (1, 0) and (1): the first's get 1 - 1 and 0 - 1, the second's 1 - 0.5.
    """
    advantages: CallAdvantages = []
    roots = iter(root)
    for group in groups:
        values = [node_values(each, bonus) if each.judged else {} for each in group]
        means = [_depth_means(each) for each in values]
        for member, (each, own) in enumerate(zip(group, values, strict=True)):
            at_root = next(roots)
            baselines: dict[int, float | None] = {}
            for depth in {len(name) for name in own if name}:
                others = [mean[depth] for i, mean in enumerate(means) if i != member and depth in mean]
                baselines[depth] = sum(others) / len(others) if others else None
            advantages.append(
                [_node(name, own, baselines) if name else at_root for name in names_of_calls(each.trajectory)]
            )
    return advantages


def _node(name: Name, values: dict[Name, float], baselines: dict[int, float | None]) -> float:
    baseline = baselines.get(len(name))
    return 0.0 if baseline is None else values[name] - baseline


def _depth_means(values: dict[Name, float]) -> dict[int, float]:
    """The mean value of a trajectory's nodes at each depth (the length of their names)."""
    by_depth: dict[int, list[float]] = {}
    for name, value in values.items():
        by_depth.setdefault(len(name), []).append(value)
    return {depth: sum(found) / len(found) for depth, found in by_depth.items()}


def names_of_calls(trajectory: Trajectory) -> list[Name]:
    """The thread of each call; () for the root's."""
    return [trajectory.segments[call.sampled].thread for call in trajectory.calls]


def mean_over_calls(
    advantages: CallAdvantages, trajectories: Sequence[Trajectory], tokens: int, count: int
) -> CallAdvantages:
    """APR: every call weighs the same within its trajectory, and every trajectory the same in the batch.

    The loss divides the sum over tokens by `tokens`, all trained tokens of the step; a call of n tokens in a trajectory
    of c calls therefore gets A * tokens / (n * c * count), with `count` trajectories in the step. Then the loss is the
    mean over trajectories of the mean over calls of the mean over tokens. APR itself divides by the number of calls of
    the batch where we divide by that of trajectories: one factor for all, but there it shrinks as policies fork more.
    """
    weighed: CallAdvantages = []
    for row, trajectory in zip(advantages, trajectories, strict=True):
        lengths = [len(trajectory.segments[call.sampled].ids) for call in trajectory.calls]
        weighed.append(
            [
                None if value is None else value * tokens / (max(length, 1) * len(row) * count)
                for value, length in zip(row, lengths, strict=True)
            ]
        )
    return weighed
