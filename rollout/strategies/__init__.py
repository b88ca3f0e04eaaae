"""Fixed inference-time strategies: one file each; `make_strategy` finds them by name."""

from collections.abc import Mapping
from typing import Any

from rollout.errors import nearest
from rollout.options import read_options
from rollout.strategies.base import FixedStrategy, StrategyError
from rollout.strategies.best_of_n import BestOfN, BestOfNOptions
from rollout.strategies.graph_of_thoughts import GraphOfThoughts, GraphOfThoughtsOptions
from rollout.strategies.rounds import Rounds, RoundsOptions
from rollout.strategies.self_consistency import SelfConsistency, SelfConsistencyOptions
from rollout.strategies.single import Single, SingleOptions
from rollout.strategies.skeleton_of_thought import SkeletonOfThought, SkeletonOfThoughtOptions
from rollout.strategies.tree_of_thoughts import TreeOfThoughts, TreeOfThoughtsOptions
from rollout.strategies.tree_search import AbMcts, AbMctsOptions, Mcts, MctsOptions

STRATEGIES: dict[str, tuple[type[Any], type[Any]]] = {
    "single": (SingleOptions, Single),
    "self_consistency": (SelfConsistencyOptions, SelfConsistency),
    "best_of_n": (BestOfNOptions, BestOfN),
    "tree_of_thoughts": (TreeOfThoughtsOptions, TreeOfThoughts),
    "graph_of_thoughts": (GraphOfThoughtsOptions, GraphOfThoughts),
    "skeleton_of_thought": (SkeletonOfThoughtOptions, SkeletonOfThought),
    "rounds": (RoundsOptions, Rounds),
    "mcts": (MctsOptions, Mcts),
    "ab_mcts": (AbMctsOptions, AbMcts),
}
"""Of each name, the dataclass of its options and the class that is made from one."""


def make_strategy(name: str, options: Mapping[str, Any]) -> FixedStrategy:
    """The strategy `name`. Raises StrategyError for an unknown name or option, or a value that makes no sense.

    >>> make_strategy("self_consistency", {"samples": 16})
    """
    if name not in STRATEGIES:
        near = nearest(name, STRATEGIES)
        hint = f"did you mean {near}?" if near else f"use one of {', '.join(STRATEGIES)}"
        raise StrategyError(f"there is no strategy {name!r}; {hint}")
    schema, cls = STRATEGIES[name]
    return cls(read_options(f"strategy {name}", schema, options, StrategyError))
