"""Strategies on a real model: what they record is what it sampled, under the views that it was shown."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from helpers import toy_tokens
from trainers import tiny_model

from rewards.verify.exact import exact_text
from rollout.critical_path import measure
from rollout.dialects import make_dialect
from rollout.engine import Completion, Prompt, Sampling
from rollout.engines.torch_engine import TorchEngine
from rollout.orchestrator import Budget
from rollout.strategies import make_strategy
from rollout.strategies.base import Question, Setting, Solved
from rollout.view import View


@dataclass
class Watched:
    """Keeps what was sent and what came."""

    inner: TorchEngine
    sent: list[tuple[View, Sampling, Completion]] = field(default_factory=list)

    @property
    def max_context(self) -> int:
        return self.inner.max_context

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        assert isinstance(prompt, View)
        done = await self.inner.complete(prompt, sampling, thread)
        self.sent.append((prompt, sampling, done))
        return done


def solve(dialect: str, join: str | None, name: str, options: dict[str, Any]) -> tuple[list[Solved], Watched, Any]:
    """Three questions at once."""
    tokens = toy_tokens(dialect)
    model = tiny_model("sdpa")
    model.resize_token_embeddings(len(tokens.tokenizer), mean_resizing=False)
    engine = Watched(TorchEngine(model, max_context=900, device="cpu"))
    budget = Budget(response=60, answer=6, threads=8, blocks=4, thread=6)
    where = Setting(engine, make_dialect(dialect, tokens, join), tokens, budget)
    strategy = make_strategy(name, options)
    asked = [Question(f"q{n}", f"a{n}b7=", tokens.prompt(f"a{n}b7="), exact_text.answer) for n in range(3)]
    return engine.inner.run([strategy.solve(where, each, seed) for seed, each in enumerate(asked)]), engine, model


CASES = [
    ("threadweaver", None, "tree_of_thoughts", {"steps": 2, "branch": 2, "keep": 2, "thought_tokens": 8}),
    ("threadweaver", None, "self_consistency", {"samples": 3}),
    ("parathinker", "stitched", "self_consistency", {"samples": 2}),
    ("parathinker", "stitched", "rounds", {"population": 2, "subset": 1, "rounds": 2}),
    ("parathinker", "transcript", "rounds", {"population": 2, "subset": 1, "rounds": 2}),
]


@pytest.mark.parametrize(("dialect", "join", "name", "options"), CASES)
def test_views_of_the_record_are_those_that_were_sent(dialect: str, join: Any, name: str, options: Any) -> None:
    solved, engine, _ = solve(dialect, join, name, options)
    recorded = [
        (each.trajectory.view(call), each.trajectory.segments[call.sampled].ids)
        for each in solved
        for call in each.trajectory.calls
    ]
    assert sorted(map(repr, recorded)) == sorted(repr((view, done.ids)) for view, _, done in engine.sent)
    for each in solved:
        lengths = measure(each.trajectory)
        assert 0 < lengths.l_critical < lengths.l_total


def test_thoughts_are_sampled_without_the_tags_that_fork() -> None:
    """And the log-probs are those of the distribution without them."""
    solved, engine, model = solve(*CASES[0])
    tokens = toy_tokens("threadweaver")
    tags = {tokens.tag(tag) for tag in ("<Parallel>", "<Outlines>", "</Outlines>", "<Thread>", "</Thread>")}
    for view, sampling, done in engine.sent:
        assert tags <= set(sampling.banned_ids) and not tags & set(done.ids)
        with torch.no_grad():
            logits = model(torch.tensor([[*view.ids, *done.ids]])).logits[0, len(view.ids) - 1 : -1]
        logits[:, list(sampling.banned_ids)] = float("-inf")
        own = logits.log_softmax(-1).gather(1, torch.tensor(done.ids)[:, None])[:, 0]
        torch.testing.assert_close(own, torch.tensor(done.logprobs), atol=1e-4, rtol=0)
    assert all(each.trajectory.attention == "causal" for each in solved)
