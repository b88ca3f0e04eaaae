"""Checks every dialect x join x engine: is what is trained exactly what was sampled?

    python scripts/check_dialects.py                       # all of them, about ten minutes on two cores
    python scripts/check_dialects.py --dialect npr apr     # some

Per dialect a tiny model is warm-started on random demonstrations, nested where the dialect nests, until it
forks by itself. Each engine then samples from it, and of these trajectories the table shows

    dlogp    max |log p of the sampler - log p of the trainer's packed forward|, nats        at most 1e-4
    grad     max error of the packed gradient over one dense forward per call, relative      at most 1e-5
    forced   max gradient of a label that no call sampled, such as a token of the client's   0
    replay   the contexts in the trajectory are the ones that were sent                      exact
    trip     demonstrations are written, played, checked, stored and read without a change   exact
    forks    share of trajectories that forked; a check that saw none proves nothing         above 0

The row `vectors` is the stitched join of a model with a learned vector per thread (model.thread_vectors).
What an engine cannot do is refused with the line that training would print. Below the table: the gap that the masks of
the public trainers (apr_train/published.py) would leave on the same trajectories. The last line is JSON.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from apr_train.compose import load
from apr_train.config import PUBLIC_MASKS, ModelConfig
from apr_train.fidelity import compare, pack_all, packed_logps, published_logps
from apr_train.model import character_tokenizer, prepare_model_folder
from apr_train.specimens import SETTINGS, scripts_of
from rollout.critical_path import measure
from rollout.dialects import DIALECTS, make_dialect
from rollout.dialects.base import Dialect, Script
from rollout.engine import Completion, Engine, Prompt, Sampling, Together
from rollout.engines import thread_vectors
from rollout.engines.replay import ReplayEngine
from rollout.errors import UserError
from rollout.orchestrator import FORK_JOIN, Budget, Strategy, run_trajectory
from rollout.tokens import Tokens, register_tags
from rollout.trajectory import Trajectory
from rollout.view import View

MAX_CONTEXT = 640
BUDGET = Budget(response=320, answer=16, threads=8, blocks=6, depth=3)
BAR = {"dlogp": 1e-4, "grad": 1e-5, "forced": 0.0}
ENGINES = ("torch", "vllm")
STRATEGIES = (("parathinker", "group_think"), ("parathinker", "hogwild"))
VECTORS = (("parathinker", 4),)
"""Dialects that are checked with a learned vector for each of so many threads, too."""
LONGER = {"apr": 4}
"""How many times more steps a dialect's warm start takes until most rollouts fork."""
MODEL = ModelConfig(hidden_size=64, layers=2, heads=4, kv_heads=2, head_dim=32, intermediate_size=128)


Cell = tuple[str, str, str, int]


@dataclass
class Row:
    """One cell. `refused`: why this engine does not do it, empty when it does; `why`: what failed."""

    dialect: str
    join: str
    engine: str
    strategy: str = "fork_join"
    thread_vectors: int = 0
    dlogp: float | None = None
    grad: float | None = None
    forced: float | None = None
    replay: bool | None = None
    trip: bool | None = None
    forks: float | None = None
    depth: int | None = None
    refused: str = ""
    why: str = ""
    passed: bool = False
    published: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def cell(self) -> "Cell":
        """What it shares with the other engines' rows."""
        return self.dialect, self.join, self.strategy, self.thread_vectors

    def judge(self) -> None:
        """Sets `passed`, and says why not."""
        over = [name for name, most in BAR.items() if not (getattr(self, name) or 0.0) <= most]
        wrong = [name for name in ("replay", "trip") if not getattr(self, name)]
        self.why = ", ".join([*over, *wrong, *([] if self.forks else ["it never forked"])])
        self.passed = not self.why


class Spy:
    """Passes calls on and keeps what each saw."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.max_context = engine, engine.max_context
        self.asked: dict[tuple[int, ...], list[View]] = {}

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        self.asked.setdefault(thread, []).append(prompt if isinstance(prompt, View) else View.causal([tuple(prompt)]))
        return await self.engine.complete(prompt, sampling, thread)

    async def complete_together(
        self,
        prompt: Prompt,
        headers: Sequence[tuple[int, ...]],
        samplings: Sequence[Sampling],
        *,
        stride: int,
        mode: Literal["group_think", "hogwild"],
        threads: Sequence[tuple[int, ...]] = (),
    ) -> list[Completion]:
        for header, thread in zip(headers, threads, strict=True):
            pieces = prompt.pieces if isinstance(prompt, View) else (tuple(prompt),)
            self.asked.setdefault(thread, []).append(View.causal([*pieces, header]))
        engine = cast(Together, self.engine)
        return await engine.complete_together(prompt, headers, samplings, stride=stride, mode=mode, threads=threads)


def replays(trajectory: Trajectory, spy: Spy) -> bool:
    """Whether each request's view is the context of the call that recorded it."""
    told: dict[tuple[int, ...], list[View]] = {}
    goes_on: set[tuple[int, ...]] = set()
    for call in trajectory.calls:
        thread = trajectory.segments[call.sampled].thread
        if thread not in goes_on:  # the second part of one request has no request of its own
            alone = trajectory.is_flat(call) or trajectory.attention == "stitched"
            seen = trajectory.view(call) if alone else View.causal([trajectory.segments[s].ids for s in call.context])
            told.setdefault(thread, []).append(seen)
        goes_on = goes_on | {thread} if call.event == "kept" else goes_on - {thread}
    return told == spy.asked and Trajectory.from_json(trajectory.to_json()) == trajectory


def play(dialect: Dialect, tokens: Tokens, script: Script, strategy: Strategy = FORK_JOIN) -> Trajectory:
    """The rollout of a policy that writes this script."""
    engine, wide = ReplayEngine(script, 100_000), Budget(50_000, 16, threads=32, blocks=32, thread=200)
    return asyncio.run(run_trajectory(engine, dialect, "p", prompt_of(tokens, dialect), wide, strategy=strategy))


def prompt_of(tokens: Tokens, dialect: Dialect) -> tuple[int, ...]:
    return tokens.prompt(">0\n:12:3 4 5|\n" if dialect.name == "apr" else "a=")


def round_trips(dialect: Dialect, tokens: Tokens, scripts: Sequence[Script]) -> bool:
    """Whether every script comes back from the recorded trajectory, strictly well formed and through JSON."""
    for script in scripts:
        trajectory = play(dialect, tokens, script)
        sampled: Script = {}
        for call in trajectory.calls:
            segment = trajectory.segments[call.sampled]
            if call.event != "cancelled":
                sampled.setdefault(segment.thread, []).append(segment.ids)
        same = all(sum(turns, ()) == sum(script[thread], ()) for thread, turns in sampled.items())
        if not same or dialect.check(trajectory) or Trajectory.from_json(trajectory.to_json()) != trajectory:
            return False
    return True


def warm_start(model: Any, trajectories: Sequence[Trajectory], steps: int) -> None:
    """Plain maximum likelihood of what the demonstrations sample."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    rng = random.Random(0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20) * (1 - step / steps)
        packed = pack_all(rng.sample(list(trajectories), 16))
        logps = packed_logps(model, packed)
        loss = -torch.cat([logps[at] for at in packed.where]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


# -- cells -------------------------------------------------------------------------------------------------------------


Trained = dict[tuple[str, int], dict[str, Tensor]]
"""A dialect's weights after its warm start, without and with vectors."""


@dataclass
class Policy:
    """A dialect under one join, and the weights that speak it."""

    name: str
    join: str
    strategy: Strategy
    dialect: Dialect
    weights: dict[str, Tensor]
    trip: bool
    published: dict[str, float]


def refusal(name: str, join: str, engine: str, strategy: str, vectors: int = 0) -> str:
    """The line with which training refuses this cell; empty when it does not."""
    try:
        load(
            [
                *(f"dialect={name}", f"dialect.join={join}", f"rollout={engine}", f"strategy={strategy}"),
                f"model.thread_vectors={vectors}",
            ]
        )
    except UserError as error:
        return str(error)
    return ""


def prepare(cell: Cell, tokens: Tokens, folder: Path, steps: int, trained: Trained) -> Policy:
    """Demonstrations, their round trip, and weights: one warm start a dialect serves all its joins and strategies."""
    name, join, strategy, vectors = cell
    dialect = make_dialect(name, tokens, join, SETTINGS.get(name, {}))
    scripts = scripts_of(name, dialect, random.Random(0), 160)
    together = Strategy("group_think" if strategy == "group_think" else "fork_join", thread_vectors=vectors > 0)
    shown = [play(dialect, tokens, script, together) for script in scripts]
    forking = [t for t in shown if measure(t).blocks and sum(len(s.ids) for s in t.segments) < MAX_CONTEXT]
    model = load_model(folder)
    if (name, vectors) in trained:
        model.load_state_dict(trained[name, vectors])
    else:
        warm_start(model, forking, steps * LONGER.get(name, 1))
        trained[name, vectors] = dict(model.state_dict())
    trip = round_trips(dialect, tokens, scripts[:40])
    gaps = published_gaps(name, model, forking[:24], tokens)
    how = Strategy(cast(Any, strategy), thread_vectors=vectors > 0)
    return Policy(name, join, how, dialect, trained[name, vectors], trip, gaps)


def load_model(folder: Path) -> Any:
    return thread_vectors.load(folder, dtype=torch.float32, attn_implementation="tree")


def check(row: Row, policy: Policy, engine: Any, model: Any, tokens: Tokens, count: int) -> None:
    """Samples with the engine and fills the row."""
    model.load_state_dict(policy.weights)
    engine.load_weights((name, weight) for name, weight in policy.weights.items() if name != "lm_head.weight")
    spies = [Spy(engine) for _ in range(count)]
    prompt = prompt_of(tokens, policy.dialect)
    trajectories: list[Trajectory] = engine.run(
        [
            run_trajectory(spy, policy.dialect, f"p{n}", prompt, BUDGET, seed=n, strategy=policy.strategy)
            for n, spy in enumerate(spies)
        ]
    )
    shapes = [measure(t) for t in trajectories]
    row.forks, row.depth = sum(s.blocks > 0 for s in shapes) / count, max(s.depth for s in shapes)
    row.replay = all(replays(t, spy) for t, spy in zip(trajectories, spies, strict=True))
    row.trip = policy.trip
    row.dlogp, row.grad, row.forced = compare(model, trajectories)
    row.published = policy.published
    row.judge()


def published_gaps(name: str, model: Any, shown: Sequence[Trajectory], tokens: Tokens) -> dict[str, float]:
    """Mean |log p as sampled - log p as a public trainer computes it|, nats, over well-formed responses."""
    packed = pack_all(shown)
    logps = packed_logps(model, packed).detach()
    exact = [logps[at] for at in packed.where]
    gaps: dict[str, float] = {}
    for preset in (preset for preset, reads in PUBLIC_MASKS.items() if reads == name):
        theirs = [own.detach() for t in shown for own in published_logps(model, t, preset, tokens)]
        found = [(own - ours).abs() for ours, own in zip(exact, theirs, strict=True) if len(own)]
        gaps[preset] = round(torch.cat(found).mean().item(), 4)
    return gaps


# -- the table ---------------------------------------------------------------------------------------------------------


def cells(names: Sequence[str]) -> list[Row]:
    """Every dialect, join and engine, and the strategies and vectors of the one dialect that has them."""
    found: list[Cell] = [(name, join, "fork_join", 0) for name in names for join in DIALECTS[name].joins]
    found += [(name, "transcript", strategy, 0) for name, strategy in STRATEGIES if name in names]
    found += [(name, "stitched", "fork_join", count) for name, count in VECTORS if name in names]
    return [Row(name, join, engine, how, vectors) for name, join, how, vectors in found for engine in ENGINES]


def run(rows: list[Row], arguments: argparse.Namespace, folder: Path) -> None:
    """Fills the rows, engine by engine: a process can have one vLLM."""
    tokenizer = character_tokenizer()
    every = {tag: None for name, cls in DIALECTS.items() for tag in cls.tags(SETTINGS.get(name, {}))}
    folders = {count: folder / str(count) for count in sorted({row.thread_vectors for row in rows})}
    for count, each in folders.items():
        sizes = replace(MODEL, max_context=MAX_CONTEXT, thread_vectors=count)
        prepare_model_folder(sizes, list(every), each, arguments.seed)
    register_tags(tokenizer, list(every))
    tokens = Tokens(tokenizer)
    policies: dict[Cell, Policy] = {}
    trained: Trained = {}
    for row in rows:
        row.refused = refusal(row.dialect, row.join, row.engine, row.strategy, row.thread_vectors)
        if not row.refused and row.cell not in policies:
            start = folders[row.thread_vectors]
            policies[row.cell] = prepare(row.cell, tokens, start, arguments.steps, trained)
            print(f"ready: {' '.join(map(str, row.cell))}", file=sys.stderr, flush=True)
    for name, count in product(ENGINES, folders):
        todo = [row for row in rows if row.engine == name and row.thread_vectors == count and not row.refused]
        if not todo:
            continue
        engine, model = make_engine(name, folders[count]), load_model(folders[count])
        for row in todo:
            check(row, policies[row.cell], engine, model, tokens, arguments.count)
            print(line_of(row), flush=True)
        engine.close()


def make_engine(name: str, folder: Path) -> Any:
    if name == "torch":
        from rollout.engines.torch_engine import TorchEngine

        return TorchEngine(folder, max_context=MAX_CONTEXT)
    from rollout.engines.vllm_inprocess import VllmEngine

    return VllmEngine(folder, max_context=MAX_CONTEXT)


HEADER = (
    f"{'dialect':<13}{'join':<11}{'engine':<7}{'dlogp':>8}{'grad':>8}{'forced':>7}{'replay':>7}{'trip':>5}{'forks':>6}"
)


def line_of(row: Row) -> str:
    """One row of the table, at most 80 columns; a refusal on lines of its own."""
    join = "vectors" if row.thread_vectors else row.join if row.strategy == "fork_join" else row.strategy
    names = f"{row.dialect:<13}{join:<12}{row.engine:<6}"
    if row.refused:
        return "\n".join(
            [f"{names} refused", *textwrap.wrap(row.refused, 76, initial_indent="  ", subsequent_indent="  ")]
        )
    figures = f"{row.dlogp:>8.0e}{row.grad:>8.0e}{row.forced:>7.0f}"
    end = "pass" if row.passed else f"FAIL: {row.why}"
    return f"{names}{figures}{_yes(row.replay):>7}{_yes(row.trip):>5}{row.forks:>6.2f} {end}"


def _yes(value: bool | None) -> str:
    return "yes" if value else "NO"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dialect", nargs="+", choices=sorted(set(DIALECTS) - {"sequential"}), help="default: all")
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--count", type=int, default=24, help="trajectories a cell")
    parser.add_argument("--steps", type=int, default=200, help="warm start")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    names = arguments.dialect or [name for name in DIALECTS if name != "sequential"]
    rows = [row for row in cells(names) if row.engine in arguments.engine]
    torch.manual_seed(arguments.seed)
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        print(HEADER)
        run(rows, arguments, Path(folder))
    for row in rows:
        if row.refused:
            print(line_of(row))
    for row in {(row.dialect, row.join): row for row in rows if row.published}.values():
        for preset, gap in row.published.items():
            print(f"as published: {preset:<19} trained on what {row.join} samples: {gap} nats a token")
    failed = [row for row in rows if not (row.passed or row.refused)]
    print(
        f"{sum(row.passed for row in rows)} pass, {sum(bool(row.refused) for row in rows)} refused, {len(failed)} fail"
    )
    cells_json = [{"pass": row.passed, **{k: v for k, v in asdict(row).items() if k != "passed"}} for row in rows]
    print(json.dumps({"seed": arguments.seed, "torch": torch.__version__, "rows": cells_json}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
