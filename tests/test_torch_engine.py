"""The torch engine: any view as by a dense forward, no token computed twice, vLLM's own tokens, clear refusals."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import EOS, VOCABULARY, reference_logprobs, save, tiny_qwen3
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from rollout.engine import Completion, EngineError, Prompt, Race, Sampling
from rollout.engines import torch_engine
from rollout.engines.calls import EngineStats
from rollout.engines.torch_cache import Store
from rollout.engines.torch_engine import TorchEngine
from rollout.engines.torch_sampling import exponential_noise, gumbel
from rollout.view import View

MAX_CONTEXT = 300


@pytest.fixture(scope="module")
def shared() -> TorchEngine:
    return TorchEngine(tiny_qwen3(0), max_context=MAX_CONTEXT, device="cpu")


@pytest.fixture
def engine(shared: TorchEngine) -> TorchEngine:
    """Holds nothing and has counted nothing."""
    shared.load_weights(tiny_qwen3(0).named_parameters())
    shared.stats = EngineStats()
    shared.reseed(0)
    return shared


def draw_ids(draw: random.Random, length: int) -> tuple[int, ...]:
    return tuple(draw.randrange(VOCABULARY) for _ in range(length))


def prompts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [list(draw_ids(draw, length)) for _ in range(count)]


def sample(engine: TorchEngine, asked: list[Prompt], sampling: Sampling) -> list[Completion]:
    return engine.run(engine.complete(prompt, sampling) for prompt in asked)


@torch.no_grad()
def dense_logprobs(model: torch.nn.Module, view: View, ids: tuple[int, ...], sampling: Sampling) -> list[float]:
    """By one sdpa forward over everything, from a mask that is written down pair by pair."""
    pieces = [*view.pieces, ids]
    sees = [*view.sees, tuple(range(len(view.pieces)))]
    tokens = [(p, t) for p, piece in enumerate(pieces) for t in range(len(piece))]
    mask = [[(q == p and s <= t) or q in sees[p] for q, s in tokens] for p, t in tokens]
    positions = [[*view.starts, view.end][p] + t for p, t in tokens]
    flat = torch.tensor([[*view.ids, *ids]])
    logits = model(flat, position_ids=torch.tensor([positions]), attention_mask=torch.tensor(mask)[None, None]).logits
    logits = logits[0, len(view.ids) - 1 : -1].clone()
    logits[:, list(sampling.banned_ids)] = float("-inf")
    if sampling.temperature:
        logits /= sampling.temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()


def gaps(model: torch.nn.Module, asked: list[View], sampled: list[Completion], sampling: Sampling) -> list[float]:
    found = list[float]()
    for view, completion in zip(asked, sampled, strict=True):
        expected = dense_logprobs(model, view, completion.ids, sampling)
        found += [abs(a - b) for a, b in zip(completion.logprobs, expected, strict=True)]
    return found


def worst_gap(model: torch.nn.Module, asked: list[View], sampled: list[Completion], sampling: Sampling) -> float:
    return max(gaps(model, asked, sampled, sampling))


def forked(draw: random.Random, threads: list[int]) -> View:
    """A prompt, a turn, threads of a header and a body each, and a join that sees all."""
    prompt, turn = draw_ids(draw, 9), draw_ids(draw, 5)
    bodies = [piece for length in threads for piece in (draw_ids(draw, 2), draw_ids(draw, length))]
    parents: list[tuple[int, ...]] = [(), (0,)]
    for thread in range(len(threads)):
        parents += [(1,), (2 * thread + 2,)]
    return View.stitched([prompt, turn, *bodies, draw_ids(draw, 3)], [*parents, tuple(range(3, len(parents), 2))])


def nested(draw: random.Random) -> View:
    """A block whose first thread forks again, then a second block."""
    pieces = [draw_ids(draw, length) for length in (7, 3, 2, 6, 1, 2, 9, 4, 5, 2)]
    return View.stitched(pieces, [(), (0,), (1,), (1,), (2, 3), (0,), (4, 5), (6,), (6,), (7, 8)])


def shapes() -> dict[str, View]:
    draw = random.Random(3)
    return {
        "causal": View.causal([draw_ids(draw, 40)]),
        "causal in pieces": View.causal([draw_ids(draw, 4), (), draw_ids(draw, 30), draw_ids(draw, 1)]),
        "one token": View.causal([(3,)]),
        "threads of unequal length": forked(draw, [4, 30, 11]),
        "many threads": forked(draw, [5] * 12),
        "empty threads": forked(draw, [0, 6, 0]),
        "nested": nested(draw),
        "last piece sees little": View(((1, 2, 3), (4, 5), (6, 7)), ((), (0,), ()), (0, 3, 20)),
    }


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("banned", [(), (1, 2, 3, 40)])
def test_sampled_under_another_mask_or_position(
    engine: TorchEngine, temperature: float, banned: tuple[int, ...]
) -> None:
    asked, sampling = list(shapes().values()), Sampling(40, (), temperature, banned_ids=banned)
    for _ in range(2):  # the second time everything is held
        sampled = sample(engine, [*asked], sampling)
        assert worst_gap(tiny_qwen3(0), asked, sampled, sampling) < 2e-5
        assert not {token for completion in sampled for token in completion.ids} & set(banned)
    tokens = sum(len(view.ids) for view in asked)
    assert engine.stats.prompt_tokens == 2 * tokens
    assert engine.stats.prefilled_tokens <= tokens + len(asked)


def test_rows_that_grow_move_and_end_keep_their_own_keys(engine: TorchEngine) -> None:
    draw = random.Random(5)
    asked = [View.causal([draw_ids(draw, draw.randrange(1, 120))]) for _ in range(60)]
    calls = [engine.complete(view, Sampling(draw.randrange(1, 170), draw.choice([(), (3, 4)]))) for view in asked]
    sampled = engine.run(calls)
    assert {completion.finish for completion in sampled} == {"stop", "length"}
    assert max(len(completion.ids) for completion in sampled) > 140
    assert worst_gap(tiny_qwen3(0), asked, sampled, Sampling(1, ())) < 2e-5


def test_a_long_prompt_prefilled_in_parts_is_one_prompt(engine: TorchEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_engine, "_PREFILL_AREA", 500)
    asked = [nested(random.Random(1)), View.causal([draw_ids(random.Random(2), 100)]), forked(random.Random(3), [9, 9])]
    sampled = sample(engine, [*asked], Sampling(5, ()))
    assert worst_gap(tiny_qwen3(0), asked, sampled, Sampling(5, ())) < 2e-5


def test_loaded_weights_are_the_ones_that_sample(engine: TorchEngine) -> None:
    asked, sampling = list(shapes().values()), Sampling(16, ())
    for seed in (1, 2):
        version = engine.policy_version
        engine.load_weights(tiny_qwen3(seed).named_parameters())
        assert engine.policy_version == version + 1
        for _ in range(2):
            assert worst_gap(tiny_qwen3(seed), asked, sample(engine, [*asked], sampling), sampling) < 2e-5


def test_what_was_evicted_is_computed_again() -> None:
    asked, sampling = list(shapes().values()), Sampling(16, ())
    small = TorchEngine(tiny_qwen3(0), max_context=MAX_CONTEXT, kv_cache_gib=3e-4, device="cpu")  # 314 tokens
    for _ in range(3):
        assert worst_gap(tiny_qwen3(0), asked, sample(small, [*asked], sampling), sampling) < 2e-5
    assert small._store.bytes <= small._limit
    assert small.stats.prefilled_tokens > sum(len(view.ids) for view in asked) + 3 * len(asked)
    assert len(small._store._at) == sum(len(run.states) for run in small._store._runs.values())


def test_the_same_tokens_elsewhere_have_other_keys(engine: TorchEngine) -> None:
    piece = (5, 6, 7)
    asked = [View(((1, 2), piece), ((), seen), (0, start)) for seen, start in [((0,), 5), ((0,), 9), ((), 5), ((), 0)]]
    asked += [View(((3, 4), piece), ((), (0,)), (0, 5)), View(((1, 2), piece), ((), (0,)), (1, 5))]
    for view in asked:
        sampled = sample(engine, [view], Sampling(9, ()))
        assert worst_gap(tiny_qwen3(0), [view], sampled, Sampling(9, ())) < 2e-5


def test_a_stitched_join_prefills_only_what_nobody_computed(engine: TorchEngine) -> None:
    prompt, headers, join = (7, 8, 9), [(1, 2), (3,), (4, 2, 1)], (11, 12)
    threads = [View.stitched([prompt, header], [(), (0,)]) for header in headers]
    sampled = [sample(engine, [view], Sampling(20 + k, ()))[0].ids for k, view in enumerate(threads)]
    assert engine.stats.prefilled_tokens == 3 + 2 + 1 + 3
    pieces = [prompt, *(piece for pair in zip(headers, sampled, strict=True) for piece in pair), join]
    asked = View.stitched(pieces, [(), (0,), (1,), (0,), (3,), (0,), (5,), (2, 4, 6)])
    engine.stats = EngineStats()
    (completion,) = sample(engine, [asked], Sampling(9, ()))
    assert engine.stats.prefilled_tokens == 3 + 2  # each thread's last token, and the join
    assert engine.stats.cached_tokens == len(asked.ids) - 5
    assert worst_gap(tiny_qwen3(0), [asked], [completion], Sampling(9, ())) < 2e-5


def test_a_transcript_join_reuses_the_first_thread_only(engine: TorchEngine) -> None:
    prompt, headers = (7, 8, 9), [(1, 2), (3, 4)]
    first, second = sample(engine, [View.causal([prompt, header]) for header in headers], Sampling(20, ()))
    engine.stats = EngineStats()
    pieces = [prompt, headers[0], first.ids, headers[1], second.ids, (11,)]
    flat = [token for piece in pieces for token in piece]
    (completion,) = sample(engine, [flat], Sampling(9, ()))  # however it is cut into pieces
    assert engine.stats.cached_tokens == 3 + 2 + 19
    assert worst_gap(tiny_qwen3(0), [View.causal([tuple(flat)])], [completion], Sampling(9, ())) < 2e-5


def test_a_prompt_asked_for_many_times_at_once_is_prefilled_once(engine: TorchEngine) -> None:
    (prompt,) = prompts(1, 30)
    sampled = sample(engine, [prompt] * 8 + [[*prompt, 1], [*prompt, 2]], Sampling(5, ()))
    assert engine.stats.prefilled_tokens == 30 + 7 + 2
    assert engine.stats.steps == 5
    assert len({completion.ids for completion in sampled}) == 10


def test_greedy_tokens_equal_generate(engine: TorchEngine) -> None:
    asked, model = prompts(8, 20), tiny_qwen3(0)
    options = {"do_sample": False, "max_new_tokens": 30, "min_new_tokens": 30, "eos_token_id": None}
    expected = model.generate(torch.tensor(asked), **options)[:, 20:].tolist()
    greedy = [engine.complete(prompt, Sampling(30, (), temperature=0.0)) for prompt in asked]
    hot = [engine.complete(prompt, Sampling(20, (), temperature=1.5)) for prompt in prompts(3, 10, seed=1)]
    done = [list(completion.ids) for completion in engine.run([*greedy[:4], *hot, *greedy[4:]])]
    assert [*done[:4], *done[7:]] == expected
    assert [list(c.ids) for c in sample(engine, [*asked], Sampling(30, (), temperature=0.0))] == expected
    assert sum(kept.kv.shape[3] for kept in engine._store._runs.values()) == len(engine._store._at)  # nothing twice


def test_tokens_follow_from_seed_and_index_alone(engine: TorchEngine) -> None:
    asked, sampling = prompts(6, 12), Sampling(24, (), temperature=0.8, seed=11)
    alone = sample(engine, asked[:1], sampling)[0]
    company = sample(engine, [*asked[1:], asked[0]], sampling)[-1]
    assert alone.ids == company.ids
    view = View.causal([tuple(asked[0])])
    logits = tiny_qwen3(0)(torch.tensor([[*asked[0], *alone.ids]])).logits[0, 11:-1] / 0.8
    for step, token in enumerate(alone.ids):
        assert int((logits[step].log_softmax(-1) + gumbel(11, step, VOCABULARY)).argmax()) == token
        assert int((logits[step].softmax(-1) / exponential_noise(11, 24, VOCABULARY)[step]).argmax()) == token
    assert worst_gap(tiny_qwen3(0), [view], [alone], sampling) < 2e-5


def test_calls_without_a_seed_repeat_after_reseed(engine: TorchEngine) -> None:
    runs: list[list[Completion]] = []
    for seed in (1, 1, 2):
        engine.reseed(seed)
        runs.append(sample(engine, prompts(3, 12), Sampling(24, ())))
    ids = [[completion.ids for completion in run] for run in runs]
    assert ids[0] == ids[1] != ids[2]


def test_stop_id_is_included_and_only_the_callers_stop_ids_stop(engine: TorchEngine) -> None:
    everything = tuple(range(VOCABULARY))
    ended = sample(engine, [*prompts(1, 8)], Sampling(20, everything))[0]
    assert (len(ended.ids), len(ended.logprobs), ended.finish) == (1, 1, "stop")
    only_eos = tuple(token for token in everything if token != EOS)
    went_on = sample(engine, [*prompts(1, 8)], Sampling(20, (), banned_ids=only_eos))[0]
    assert (went_on.ids, went_on.finish, went_on.logprobs) == ((EOS,) * 20, "length", (0.0,) * 20)


def test_a_thread_that_ends_does_not_wait_for_its_sibling(engine: TorchEngine) -> None:
    async def short_then_successor() -> None:
        await asyncio.gather(*(engine.complete(prompt, Sampling(4, ())) for prompt in prompts(2, 8)))  # a nested fork
        await engine.complete(prompts(1, 30)[0], Sampling(36, ()))

    async def long() -> None:
        await engine.complete(prompts(1, 9)[0], Sampling(40, ()))

    engine.run([short_then_successor(), long()])
    assert engine.stats.steps == 40  # 4 + 36 beside 40; with a barrier 40 + 36
    assert engine.stats.sampled_tokens == 4 + 4 + 36 + 40


def test_a_lost_race_ends_at_the_winners_length(engine: TorchEngine) -> None:
    race = Race()

    async def winner() -> None:
        race.won(len((await engine.complete([1, 2], Sampling(7, ()))).ids))

    loser = engine.complete([3, 4], Sampling(100, (), race=race))
    _, lost = engine.run([winner(), loser])
    assert lost is not None and (lost.finish, len(lost.ids)) == ("length", 8)  # it learns of it one step later


def test_one_failure_ends_its_siblings_and_frees_their_rows(engine: TorchEngine) -> None:
    async def fails() -> Completion:
        await engine.complete([1, 2], Sampling(3, ()))
        raise ValueError("reward")

    with pytest.raises(ValueError, match="reward"):
        engine.run([*(engine.complete([3 + n], Sampling(100, ())) for n in range(3)), fails()])
    assert engine.stats.steps < 10
    assert (engine._in_flight, engine._reserved, engine._rows.bytes, len(engine._waiting)) == (0, 0, 0, 0)
    assert len(sample(engine, [[1, 2, 3]], Sampling(5, ()))[0].ids) == 5


def test_a_model_that_fails_says_so_to_every_caller_and_can_go_on(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of memory\nand more")

    async def both() -> list[Completion | BaseException]:
        calls = [engine.complete([1], Sampling(5, ())), engine.complete([2], Sampling(5, ()))]
        return await asyncio.gather(*calls, return_exceptions=True)

    with monkeypatch.context() as patch:
        patch.setattr(torch_engine, "forward", broken)
        failed = asyncio.run(both())
    assert {str(error) for error in failed} == {"the model failed while decoding: out of memory"}
    assert len(sample(engine, [[1, 2, 3]], Sampling(5, ()))[0].ids) == 5


def test_calls_beyond_the_limit_wait_for_room() -> None:
    few = TorchEngine(tiny_qwen3(0), max_context=100, max_in_flight=3, device="cpu")
    asked = [View.causal([tuple(prompt)]) for prompt in prompts(10, 5)]
    sampled = sample(few, [*asked], Sampling(6, ()))
    assert few.stats.steps == 4 * 6
    assert worst_gap(tiny_qwen3(0), asked, sampled, Sampling(6, ())) < 2e-5
    small = TorchEngine(tiny_qwen3(0), max_context=100, kv_cache_gib=2.5e-4, device="cpu")  # rows of 4 x 64 tokens
    sample(small, [*asked], Sampling(6, ()))
    assert small.stats.steps == 3 * 6
    with pytest.raises(EngineError, match=r"needs 0\.000244 GiB .* raise kv_cache_gib from 0\.00024"):
        sample(TorchEngine(tiny_qwen3(0), max_context=300, kv_cache_gib=2.4e-4), [[1]], Sampling(250, ()))


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "says"),
    [
        ([1] * 200, 101, "200 prompt tokens and max_tokens=101 do not fit model.max_context=300"),
        (View(((1, 2),), ((),), (290,)), 9, "292 prompt tokens and max_tokens=9 do not fit"),
        ([], 4, "nothing to sample"),
        (View(((), ()), ((), (0,)), (5, 5)), 4, "nothing to sample"),
        ([1], 0, "nothing to sample"),
        ([1, VOCABULARY], 4, "outside the model's vocabulary"),
        ([-1], 4, "outside the model's vocabulary"),
    ],
)
def test_a_call_that_cannot_be_served_is_refused(
    engine: TorchEngine, prompt: Prompt, max_tokens: int, says: str
) -> None:
    with pytest.raises(EngineError, match=says):
        sample(engine, [prompt], Sampling(max_tokens, ()))


def test_weights_that_do_not_fit_are_refused(engine: TorchEngine) -> None:
    whole = dict(tiny_qwen3(0).named_parameters())
    norm = "model.layers.1.input_layernorm.weight"
    version = engine.policy_version
    for broken, says in [
        ({name: tensor for name, tensor in whole.items() if name != norm}, f"not sent, e.g. {norm}"),
        ({**whole, "model.layers.1.nothing.weight": torch.zeros(2)}, "nothing"),
        ({**whole, norm: torch.zeros(3)}, "refuses the trainer's weights"),
    ]:
        with pytest.raises(EngineError, match=says):
            engine.load_weights(broken.items())
    assert engine.policy_version == version
    engine.load_weights(tiny_qwen3(0).state_dict().items())  # with lm_head, which is tied
    assert engine.policy_version == version + 1


def test_weights_are_not_swapped_under_a_running_call(engine: TorchEngine) -> None:
    async def load() -> None:
        engine.load_weights(tiny_qwen3(0).named_parameters())

    with pytest.raises(EngineError, match="between rollouts"):
        engine.run([engine.complete([1], Sampling(50, ())), load()])


def test_a_trainers_model_is_left_as_it_was() -> None:
    model = tiny_qwen3(0)
    engine = TorchEngine(model, max_context=50, device="cpu")
    engine.load_weights(tiny_qwen3(1).named_parameters())
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model.lm_head.weight, tiny_qwen3(0).lm_head.weight)
    own = engine._model(torch.tensor([[1, 2, 3]]), attention_mask=torch.tensor([[0, 1, 1]])).logits
    expected = tiny_qwen3(1)(torch.tensor([[1, 2, 3]]), attention_mask=torch.tensor([[0, 1, 1]])).logits
    torch.testing.assert_close(own[:, 1:], expected[:, 1:])  # without the engine's state it attends as "sdpa" does


def test_llama_without_tied_weights_and_bfloat16(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    rope = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    config = LlamaConfig(
        vocab_size=VOCABULARY, intermediate_size=96, initializer_range=0.2, rope_parameters=rope, **sizes
    )
    LlamaForCausalLM(config).eval().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    asked, sampling = [nested(random.Random(1)), View.causal([(1, 2, 3)])], Sampling(70, ())
    sampled = sample(TorchEngine(tmp_path, max_context=200, device="cpu"), [*asked], sampling)
    assert worst_gap(model, asked, sampled, sampling) < 2e-5
    half = sample(TorchEngine(tmp_path, max_context=200, dtype="bfloat16", device="cpu"), [*asked], sampling)
    found = gaps(model, asked, half, sampling)
    assert sum(found) / len(found) < 0.1


def test_models_that_it_would_sample_wrongly_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is no model folder"):
        TorchEngine(tmp_path, max_context=64)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError, match="transformers cannot load"):
        TorchEngine(tmp_path, max_context=64)
    with pytest.raises(EngineError, match="the model holds 512 tokens"):
        TorchEngine(tiny_qwen3(0), max_context=513)
    with pytest.raises(EngineError, match="fp32 is no dtype"):
        TorchEngine(tiny_qwen3(0), max_context=64, dtype="fp32")
    config = MistralConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        sliding_window=8,
    )
    config.num_key_value_heads = 2
    with pytest.raises(EngineError, match="sliding window"):
        TorchEngine(MistralForCausalLM(config), max_context=64)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_same_seeds_sample_the_same_tokens_as_vllm(tmp_path: Path, temperature: float) -> None:
    from rollout.engines.vllm_inprocess import VllmEngine

    draw = random.Random(0)
    asked = [list(draw_ids(draw, draw.randrange(1, 80))) for _ in range(100)]
    calls = [Sampling(draw.randrange(1, 80), (EOS,), temperature, banned_ids=draw.choice([(), (3, 4)])) for _ in asked]
    calls[::10] = [replace(call, race=Race(best=10)) for call in calls[::10]]
    save(tiny_qwen3(0), tmp_path)
    ours = TorchEngine(tmp_path, max_context=160, seed=7, device="cpu")
    theirs = VllmEngine(tmp_path, max_context=160, seed=7, kv_cache_gib=0.25)
    try:
        runs = [
            engine.run([engine.complete(prompt, sampling) for prompt, sampling in zip(asked, calls, strict=True)])
            for engine in (ours, theirs)
        ]
    finally:
        theirs.close()
    for mine, other, prompt, sampling in zip(*runs, asked, calls, strict=True):
        assert (mine.ids, mine.finish) == (other.ids, other.finish)
        assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        expected = reference_logprobs(tiny_qwen3(0), prompt, mine.ids, temperature, sampling.banned_ids)
        assert mine.logprobs == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_cancelled_call_changes_nothing_for_the_others(engine: TorchEngine, gone: int) -> None:
    """Also in the very step in which it would have ended: its siblings still hear of theirs."""
    alone = [sample(engine, [[n + 1, 2]], Sampling(12, (), seed=n))[0] for n in range(3)]

    async def some(after: int) -> list[Completion | BaseException]:
        asked = [asyncio.ensure_future(engine.complete([n + 1, 2], Sampling(12, (), seed=n))) for n in range(3)]
        steps = engine.stats.steps
        while engine.stats.steps - steps < after:
            await asyncio.sleep(0)
        asked[gone].cancel()
        return await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 20)

    for after in (1, 6, 11, 12):
        done = asyncio.run(some(after))
        for n, each in enumerate(done):
            if n != gone:
                assert isinstance(each, Completion), (after, each)
                assert each.ids == alone[n].ids and each.logprobs == pytest.approx(alone[n].logprobs, abs=1e-4)
        assert (engine._in_flight, engine._reserved, len(engine._waiting)) == (0, 0, 0)


def test_weights_refused_halfway_are_never_sampled_from(engine: TorchEngine) -> None:
    parameters = [(name, tensor.clone()) for name, tensor in engine._model.named_parameters()]
    with pytest.raises(EngineError, match="not sent"):
        engine.load_weights((name, torch.zeros_like(tensor)) for name, tensor in parameters[:-1])
    with pytest.raises(EngineError, match="load a whole set"):
        sample(engine, [[1, 2]], Sampling(3, ()))
    engine.load_weights(parameters)
    assert len(sample(engine, [[1, 2]], Sampling(3, ()))[0].ids) == 3


def test_a_view_that_hides_what_another_shows_finds_keys_of_its_own() -> None:
    hiding = View(((1,), (2,), (3,)), ((), (0,), (1,)), (0, 1, 5))
    showing = View(((1, 2), (3,)), ((), (0,)), (0, 5))
    store = Store()
    assert store.states(hiding)[0][-1] != store.states(showing)[0][-1]
