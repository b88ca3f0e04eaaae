"""Threads sampled in lockstep: who sees what, from which position, by dense masks and by a reader's own arithmetic."""

import asyncio
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import toy_tokens
from tiny_models import VOCABULARY, tiny_qwen3
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from apr_train.fidelity import compare
from rollout.demonstration import Block, Demonstration
from rollout.dialects import make_dialect
from rollout.dialects.base import DialectError
from rollout.engine import Completion, EngineError, Prompt, Sampling, Together
from rollout.engines.calls import EngineStats
from rollout.engines.torch_engine import TorchEngine
from rollout.orchestrator import Budget, Strategy, run_trajectory
from rollout.tokens import Tokens
from rollout.trajectory import Trajectory
from rollout.view import View

VIEW = View.stitched([(7, 8, 9), (1, 2), (3,), (4, 5)], [(), (0,), (0,), (1, 2)])
Ids = tuple[int, ...]
HEADERS: list[Ids] = [(10, 11), (12,), (13, 14, 15), (16, 17)]
LENGTHS = [25, 40, 9, 31]


@pytest.fixture(scope="module")
def shared() -> TorchEngine:
    return TorchEngine(tiny_qwen3(0), max_context=300, device="cpu")


@pytest.fixture
def engine(shared: TorchEngine) -> TorchEngine:
    """Holds nothing and has counted nothing."""
    shared.load_weights(tiny_qwen3(0).named_parameters())
    shared.stats = EngineStats()
    shared.reseed(0)
    return shared


def samplings(**more: Any) -> list[Sampling]:
    return [Sampling(length, (), seed=5 + n, **more) for n, length in enumerate(LENGTHS)]


def sample(engine: TorchEngine, prompt: Prompt, mode: Any, asked: list[Sampling] | None = None) -> list[Completion]:
    asked = samplings() if asked is None else asked
    (done,) = engine.run([engine.complete_together(prompt, HEADERS, asked, stride=50, mode=mode)])
    return done


@torch.no_grad()
def group_think_logprobs(
    view: View, done: list[Completion], stride: int, headers: list[Ids] = HEADERS, model: Any = None
) -> list[list[float]]:
    """One dense forward: a token is (thread or None, index in its header or None, step or None), seen pair by pair."""
    tokens: list[tuple[int | None, int, int]] = []  # thread, index in view or block, step (-1 before the first)
    ids, positions = (
        list(view.ids),
        [start + t for start, p in zip(view.starts, view.pieces, strict=True) for t in range(len(p))],
    )
    piece = [p for p, each in enumerate(view.pieces) for _ in each]
    tokens += [(None, t, -1) for t in range(len(ids))]
    for n, (header, completion) in enumerate(zip(headers, done, strict=True)):
        for index, token in enumerate([*header, *completion.ids]):
            ids.append(token)
            positions.append(view.end + n * stride + index)
            tokens.append((n, index, index - len(header) if index >= len(header) else -1))

    def sees(q: tuple[int | None, int, int], k: tuple[int | None, int, int]) -> bool:
        if k[0] is None:
            own = q[0] is None
            return not own or (k[1] <= q[1] if piece[k[1]] == piece[q[1]] else piece[k[1]] in view.sees[piece[q[1]]])
        if q[0] is None:
            return False
        if q[0] == k[0]:
            return k[1] <= q[1]
        return q[2] >= 0 and k[2] < q[2]

    mask = torch.tensor([[sees(q, k) for k in tokens] for q in tokens])
    model = model or tiny_qwen3(0)
    logits = model(torch.tensor([ids]), position_ids=torch.tensor([positions]), attention_mask=mask[None, None]).logits
    logprobs, at, found = logits[0].log_softmax(-1), len(view.ids), list[list[float]]()
    for header, completion in zip(headers, done, strict=True):
        at += len(header)
        found.append([float(logprobs[at - 1 + k, token]) for k, token in enumerate(completion.ids)])
        at += len(completion.ids)
    return found


class Reader:
    """A Qwen3 that reads one token at a time, from keys that are kept without any rotation."""

    def __init__(self, model: Any = None) -> None:
        self.model = model or tiny_qwen3(0)

    def turned(self, x: Tensor, position: int) -> Tensor:
        cos, sin = self.model.model.rotary_emb(x, torch.tensor([[position]]))
        half = x.shape[-1] // 2
        return x * cos[0, 0] + torch.cat((-x[..., half:], x[..., :half]), -1) * sin[0, 0]

    @torch.no_grad()
    def read(self, token: int, position: int, seen: list[tuple[list[Any], int]]) -> tuple[list[Any], Tensor]:
        """Seen: what earlier tokens left behind, and at which position this reader finds each. Returns what this one
        leaves, and its log-probs."""
        x, left = self.model.model.embed_tokens.weight[token], list[Any]()
        for depth, layer in enumerate(self.model.model.layers):
            attention, h = layer.self_attn, layer.input_layernorm(x)
            q = attention.q_norm(attention.q_proj(h).view(4, 32))
            left.append((attention.k_norm(attention.k_proj(h).view(2, 32)), attention.v_proj(h).view(2, 32)))
            found = [(kept[depth], at) for kept, at in seen] + [(left[-1], position)]
            keys = torch.stack([self.turned(k, at) for (k, _), at in found]).repeat_interleave(2, 1)
            values = torch.stack([v for (_, v), _ in found]).repeat_interleave(2, 1)
            weights = (torch.einsum("hd,thd->ht", self.turned(q, position), keys) * 32**-0.5).softmax(-1)
            x = x + attention.o_proj(torch.einsum("ht,thd->hd", weights, values).flatten())
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return left, self.model.lm_head(self.model.model.norm(x)).log_softmax(-1)


def hogwild_logprobs(
    ids: list[int], headers: list[Ids], done: list[Completion], model: Any = None
) -> list[list[float]]:
    reader, prompt = Reader(model), list[tuple[list[Any], int]]()
    for position, token in enumerate(ids):
        prompt.append((reader.read(token, position, prompt)[0], position))
    end = len(ids)
    blocks: list[list[Any]] = []
    found: list[list[float]] = []
    for header, completion in zip(headers, done, strict=True):
        own: list[Any] = []
        for token in header:
            left, logprobs = reader.read(
                token, end + len(own), [*prompt, *((kept, end + i) for i, kept in enumerate(own))]
            )
            own.append(left)
        blocks.append(own)
        found.append([float(logprobs[completion.ids[0]])])
    for step in range(max(len(completion.ids) for completion in done)):
        new: list[tuple[int, Any]] = []
        for n, completion in enumerate(done):
            if step >= len(completion.ids):
                continue
            order = [kept for m, block in enumerate(blocks) if m != n for kept in block] + blocks[n]
            seen = [*prompt, *((kept, end + i) for i, kept in enumerate(order))]
            left, logprobs = reader.read(completion.ids[step], end + len(order), seen)
            new.append((n, left))
            if step + 1 < len(completion.ids):
                found[n].append(float(logprobs[completion.ids[step + 1]]))
        for n, left in new:
            blocks[n].append(left)
    return found


def assert_close(done: list[Completion], expected: list[list[float]]) -> None:
    for completion, own in zip(done, expected, strict=True):
        assert completion.logprobs == pytest.approx(own, abs=2e-5)


def test_it_is_an_engine_whose_threads_see_each_other(engine: TorchEngine) -> None:
    assert isinstance(engine, Together)


@pytest.mark.parametrize("view", [VIEW, View.causal([(7, 8, 9, 1)])])
def test_group_think_sees_a_siblings_present_or_not_its_past(engine: TorchEngine, view: View) -> None:
    for _ in range(2):  # the second time the view and the headers are held
        done = sample(engine, view, "group_think")
        assert [len(completion.ids) for completion in done] == LENGTHS
        assert_close(done, group_think_logprobs(view, done, 50))
    assert engine.stats.steps == 2 * max(LENGTHS)
    assert engine.stats.prefilled_tokens == len(view.ids) + sum(map(len, HEADERS)) + len(HEADERS)


def test_hogwild_finds_a_siblings_keys_where_they_were_computed(engine: TorchEngine) -> None:
    ids = [7, 8, 9, 1, 2, 3]
    asked = [Sampling(length, (), seed=length) for length in (12, 20, 5, 9)]
    done = sample(engine, ids, "hogwild", asked)
    assert_close(done, hogwild_logprobs(ids, HEADERS, done))
    again = sample(engine, ids, "hogwild", asked)  # the prompt and the headers are held
    assert [each.ids for each in again] == [each.ids for each in done]
    assert_close(again, [list(each.logprobs) for each in done])


@pytest.mark.parametrize("mode", ["group_think", "hogwild"])
def test_a_thread_that_stopped_stays_visible_with_its_stop_id(engine: TorchEngine, mode: str) -> None:
    asked = [Sampling(60, (stop,), seed=n) for n, stop in enumerate((3, 20, 33, 4))]
    done = sample(engine, [7, 8, 9], mode, asked)
    assert len({len(completion.ids) for completion in done if completion.finish == "stop"}) > 1
    view = View.causal([(7, 8, 9)])
    assert_close(
        done,
        group_think_logprobs(view, done, 50) if mode == "group_think" else hogwild_logprobs([7, 8, 9], HEADERS, done),
    )


@pytest.mark.parametrize("mode", ["group_think", "hogwild"])
def test_other_calls_in_flight_change_nothing(engine: TorchEngine, mode: Any) -> None:
    alone = sample(engine, VIEW, mode)
    others = [engine.complete([1, 2, 3 + k], Sampling(10 + 9 * k, (), seed=k)) for k in range(5)]
    sessions = [engine.complete_together(VIEW, HEADERS, samplings(), stride=50, mode=mode) for _ in range(2)]
    *singles, first, second = engine.run([*others, *sessions])
    assert [c.ids for c in first] == [c.ids for c in second] == [c.ids for c in alone]
    assert [len(single.ids) for single in singles] == [10, 19, 28, 37, 46]
    for k, single in enumerate(singles):
        (again,) = engine.run([engine.complete([1, 2, 3 + k], Sampling(10 + 9 * k, (), seed=k))])
        assert again.ids == single.ids


def test_one_thread_together_is_a_plain_call(engine: TorchEngine) -> None:
    sampling = Sampling(30, (), seed=3)
    (plain,) = engine.run([engine.complete([1, 2, 3, 10, 11], sampling)])
    for mode in ("group_think", "hogwild"):
        (done,) = engine.run([engine.complete_together([1, 2, 3], [(10, 11)], [sampling], stride=9, mode=mode)])
        assert done[0].ids == plain.ids


def test_a_session_that_is_cancelled_frees_its_row(engine: TorchEngine) -> None:
    async def fails() -> list[Completion]:
        await engine.complete([1, 2], Sampling(3, ()))
        raise ValueError("reward")

    with pytest.raises(ValueError, match="reward"):
        engine.run([engine.complete_together(VIEW, HEADERS, samplings(), stride=0, mode="hogwild"), fails()])
    assert (engine._in_flight, engine._reserved, len(engine._sessions), len(engine._waiting)) == (0, 0, 0, 0)
    assert len(sample(engine, VIEW, "group_think")) == 4


def test_sessions_wait_for_room() -> None:
    few = TorchEngine(tiny_qwen3(0), max_context=300, max_in_flight=6, device="cpu")
    asked = [few.complete_together([1, 2], HEADERS, samplings(), stride=50, mode="group_think") for _ in range(2)]
    first, second = few.run(asked)
    assert [c.ids for c in first] == [c.ids for c in second]
    assert few.stats.steps == 2 * max(LENGTHS)


def test_together_what_cannot_be_served_is_refused(engine: TorchEngine) -> None:
    def refused(says: str, headers: list[tuple[int, ...]], asked: list[Sampling], stride: int, mode: Any) -> None:
        with pytest.raises(EngineError, match=says):
            engine.run([engine.complete_together([1, 2], headers, asked, stride=stride, mode=mode)])

    one, long = Sampling(5, ()), Sampling(100, ())
    refused("needs a header", [(1,), ()], [one, one], 0, "group_think")
    refused("needs a header", [], [], 0, "group_think")
    refused("outside the model's vocabulary", [(1,), (VOCABULARY,)], [one, one], 0, "hogwild")
    refused("reach position 305, which does not fit", [(1,), (2,), (3,)], [long, long, long], 200, "hogwild")
    refused("reach position 308, which does not fit", [(1,), (2,)], [one, one], 300, "group_think")
    refused("max_in_flight=256", [(1,)] * 257, [one] * 257, 0, "group_think")
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=300, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    learned = TorchEngine(GPT2LMHeadModel(config).eval(), max_context=300, device="cpu")
    with pytest.raises(EngineError, match="no plain rotary positions"):
        learned.run([learned.complete_together([1], [(2,)], [one], stride=0, mode="hogwild")])


def test_random_sessions_agree_with_their_oracles(engine: TorchEngine) -> None:
    draw = random.Random(1)
    for _ in range(3):
        lengths = [draw.randrange(1, 12) for _ in HEADERS]
        asked = [Sampling(length, (), seed=draw.randrange(99)) for length in lengths]
        ids = [draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 9))]
        done = sample(engine, ids, "hogwild", asked)
        assert_close(done, hogwild_logprobs(ids, HEADERS, done))
        done = sample(engine, ids, "group_think", asked)
        assert_close(done, group_think_logprobs(View.causal([tuple(ids)]), done, 50))


def test_a_session_without_an_event_loop_of_its_own_runs_in_any() -> None:
    engine = TorchEngine(tiny_qwen3(0), max_context=300, device="cpu")
    done = asyncio.run(engine.complete_together([1, 2], HEADERS, samplings(), stride=50, mode="group_think"))
    assert [len(completion.ids) for completion in done] == LENGTHS


# Several blocks


class Rooted:
    """An engine whose root writes what it is told, with the log-probs that the model gives it; threads are sampled."""

    def __init__(self, model: Any, tokens: Tokens, turns: list[str], max_context: int = 400) -> None:
        self.model, self.engine, self.max_context = model, TorchEngine(model, max_context=max_context), max_context
        self.turns = [tuple(tokens.tokenizer.encode(turn, add_special_tokens=False)) for turn in turns]

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: Ids = ()) -> Completion:
        assert not thread and isinstance(prompt, View)
        ids = self.turns.pop(0)
        with torch.no_grad():
            logits = self.model(torch.tensor([[*prompt.ids, *ids]])).logits[0, len(prompt.ids) - 1 :]
        logprobs = logits.log_softmax(-1)
        return Completion(ids, tuple(float(own[token]) for own, token in zip(logprobs, ids, strict=False)), "stop")

    async def complete_together(self, *asked: Any, **more: Any) -> list[Completion]:
        return await self.engine.complete_together(*asked, **more)


def fork(*tasks: str) -> str:
    items = "".join(f"<Outline>{k}:{task}</Outline>" for k, task in enumerate(tasks, 1))
    return f"<Parallel><Outlines>{items}</Outlines>"


def blocks_of(
    strategy: Strategy, turns: list[str] | Demonstration, name: str = "threadweaver", **engine: Any
) -> tuple[Any, Trajectory]:
    tokens = toy_tokens(name)
    dialect = make_dialect(name, tokens, "transcript")
    if isinstance(turns, Demonstration):
        turns = [tokens.decode(ids) for ids in dialect.write(turns)[()]]
    model = tiny_qwen3(0, len(tokens.tokenizer))
    rooted = Rooted(model, tokens, turns, **engine)
    budget = Budget(300, 8, threads=8, blocks=4, thread=14)
    run = run_trajectory(rooted, dialect, "p", tokens.prompt("a="), budget, seed=3, strategy=strategy)
    return model, asyncio.run(run)


TWICE = Demonstration(
    (Block((("a", "1"), ("b", "2"), ("c", "3"))), "12", Block((("d", "1"), ("e", "2")))), "1"
)  # fmt: skip


@pytest.mark.parametrize("mode", ["group_think", "hogwild"])
@pytest.mark.parametrize(
    ("name", "stride"),
    [("threadweaver", 0), ("threadweaver", 7), ("threadweaver", 40), ("npr", 40), ("parallel_r1", 40)],
)
def test_a_second_block_starts_after_the_first_one_as_flat_text(mode: Any, name: str, stride: int) -> None:
    model, trajectory = blocks_of(Strategy(mode, stride), TWICE, name)
    assert trajectory.outcome == "answered"
    segments = trajectory.segments
    widths = {"parallel_r1": (2, 2)}.get(name, (3, 2))  # its blocks have two threads each
    for block, width in enumerate(widths):
        calls = [call for call in trajectory.calls if segments[call.sampled].thread[:1] == (block,)]
        headers = [segments[call.context[-1]].ids for call in calls]
        (before,) = {tuple(trajectory.ids(call.context[:-1])) for call in calls}
        told = [segments[call.sampled] for call in calls]
        done = [Completion(each.ids, each.logprobs or (), "length") for each in told]
        assert len(calls) == width
        if mode == "hogwild":
            assert_close(done, hogwild_logprobs(list(before), headers, done, model))
        else:
            assert_close(done, group_think_logprobs(View.causal([before]), done, stride, headers, model))
    if mode == "group_think":
        model.config._attn_implementation = "tree"
        dlogp, grad, forced = compare(model, [trajectory])
        assert dlogp < 1e-4 and grad < 1e-5 and forced == 0.0
        assert compare(model, [replace(trajectory, stride=stride + 1)])[0] > 1e-4


def test_blocks_share_one_stride_which_is_to_be_said() -> None:
    turns = [f"<think>{fork('a', 'b')}", fork("d", "e"), "</think>1<|eos|>"]
    with pytest.raises(DialectError, match=r"a second block without strategy\.stride"):
        blocks_of(Strategy("group_think"), turns)


def test_threads_that_do_not_fit_their_positions_are_no_block_and_no_crash() -> None:
    turns = [f"<think>{fork('a', 'b', 'c')}", "1<|eos|>"]
    _, narrow = blocks_of(Strategy("group_think", 200), list(turns))
    assert narrow.notes == {"fork/no room": 1} and narrow.outcome == "forced_answer"
    _, wide = blocks_of(Strategy("group_think", 200), [*turns[:1], "</think>1<|eos|>"], max_context=512)
    assert wide.outcome == "answered" and not wide.notes.get("fork/no room")
