"""Modes of one policy: the same tags decoded one thread after the other, and no forks at all."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from dying_engines import tokens_of
from helpers import toy_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from test_orchestrator import DIALECT, TOKENS, TWO, WIDE, Spy

from rollout.critical_path import measure
from rollout.dialects import DialectError, make_dialect
from rollout.dialects.base import Dialect, Script
from rollout.engine import Completion, Prompt, Sampling, causal_ids
from rollout.engines.replay import ReplayEngine
from rollout.orchestrator import Budget, Strategy, run_trajectory
from rollout.tokens import Tokens
from rollout.trajectory import Trajectory

IN_ORDER = Strategy("in_order")


def play(
    script: Script, strategy: Strategy, dialect: Dialect = DIALECT, tokens: Tokens = TOKENS
) -> tuple[Trajectory, Spy]:
    spy = Spy(ReplayEngine(script, 4000))
    prompt = tokens.prompt("a3b7=")
    return asyncio.run(run_trajectory(spy, dialect, "p", prompt, WIDE, strategy=strategy)), spy


def test_threads_in_order_read_those_before_them_and_nothing_is_parallel() -> None:
    script = DIALECT.write(TWO)
    (apart, _), (in_order, spy) = play(script, Strategy()), play(script, IN_ORDER)
    assert in_order.response_ids() == apart.response_ids()  # the same text
    seen = {thread: TOKENS.decode(ids) for thread, ids, _ in spy.sent if thread}
    assert seen[(0, 2)].endswith("\n<Thread>\n1:a345\n</Thread><Thread>\n2:") and "b78" not in seen[(0, 1)]
    lengths = measure(in_order)
    assert lengths.l_critical == lengths.l_total == measure(apart).l_total > measure(apart).l_critical
    assert (lengths.threads, lengths.parallel_tokens) == (2, measure(apart).parallel_tokens)


@dataclass
class Drawing:
    """Draws by what it is asked; counts which calls are in flight at once, and may not sample what is banned."""

    max_context: int = 1000
    flying: int = 0
    most: int = 0
    sent: list[list[int]] = field(default_factory=list)

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        ids = causal_ids(prompt, "a drawing engine")
        self.sent.append(ids)
        self.flying += 1
        self.most = max(self.most, self.flying)
        for _ in range(len(thread) + 2):
            await asyncio.sleep(0)
        self.flying -= 1
        stops = tuple(stop for stop in sampling.stop_ids if stop not in sampling.banned_ids)
        asked: dict[str, Any] = {"seed": sampling.seed, "max_tokens": sampling.max_tokens, "stop_ids": stops}
        return tokens_of(ids, asked, "w", 40)


PARALLEL = toy_tokens("parathinker")
BEGINS = make_dialect("parathinker", PARALLEL, "transcript", {"first_finish": False})
"""Every trajectory has a block, whatever is drawn."""


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    response=st.integers(40, 300),
    critical=st.none() | st.integers(30, 200),
)
def test_whatever_is_sampled_in_order_keeps_its_budgets_and_replays(
    seed: int, response: int, critical: int | None
) -> None:
    engine, budget = Drawing(), Budget(response, 8, 8, 4, critical)
    prompt = PARALLEL.prompt("a3=")
    trajectory = asyncio.run(run_trajectory(engine, BEGINS, "p", prompt, budget, seed=seed, strategy=IN_ORDER))
    lengths = measure(trajectory)
    assert lengths.threads >= 2 and engine.most == 1
    assert lengths.l_critical == lengths.l_total <= min(response, critical or response)
    assert sorted(trajectory.context_ids(call) for call in trajectory.calls) == sorted(engine.sent)


def test_a_block_that_no_single_text_holds_is_refused_in_order() -> None:
    tokens = toy_tokens("multiverse")
    dialect = make_dialect("multiverse", tokens, "stitched")
    with pytest.raises(DialectError, match="transcript join"):
        play(dialect.write(TWO), IN_ORDER, dialect, tokens)


def test_banned_ids_reach_every_call() -> None:
    fork = TOKENS.tag("<Parallel>")
    _, spy = play(DIALECT.write(TWO), Strategy(banned_ids=(fork,)))
    assert len(spy.sent) == 4 and all(sampling.banned_ids == (fork,) for *_, sampling in spy.sent)
