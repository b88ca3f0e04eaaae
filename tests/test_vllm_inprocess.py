"""The in-process vLLM engine: exact log-probs after each weight load, no barrier, repeatable tokens, clear refusals."""

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import EOS, VOCABULARY, reference_logprobs, save, tiny_qwen3

from rollout.engine import Completion, EngineDied, EngineError, Race, Sampling
from rollout.engines.calls import Seeds, together
from rollout.engines.vllm_inprocess import EngineStats, VllmEngine

MAX_CONTEXT = 160


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    built = VllmEngine(
        save(tiny_qwen3(0), tmp_path_factory.mktemp("model")), max_context=MAX_CONTEXT, kv_cache_gib=0.25
    )
    yield built
    built.close()


def prompts(count: int, length: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(VOCABULARY) for _ in range(length)] for _ in range(count)]


def sample(engine: VllmEngine, asked: list[list[int]], sampling: Sampling) -> list[Completion]:
    return engine.run(engine.complete(prompt, sampling) for prompt in asked)


def worst_gap(seed: int, asked: list[list[int]], sampled: list[Completion], sampling: Sampling) -> float:
    model, gaps = tiny_qwen3(seed), list[float]()
    for prompt, completion in zip(asked, sampled, strict=True):
        expected = reference_logprobs(model, prompt, completion.ids, sampling.temperature, sampling.banned_ids)
        gaps += [abs(a - b) for a, b in zip(completion.logprobs, expected, strict=True)]
    return max(gaps)


# The tests that build their own engine come before those that share one: a process can have one at a time.


def test_a_folder_without_a_model_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is no model folder"):
        VllmEngine(tmp_path, max_context=64)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError, match="vLLM cannot serve") as caught:
        VllmEngine(tmp_path, max_context=64)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text('{"apr_thread_vectors": 4}')
    with pytest.raises(EngineError, match="which vLLM cannot add: use rollout=torch"):
        VllmEngine(tmp_path, max_context=64)


def test_an_engine_before_torch_distributed_would_take_the_trainers_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EngineError, match=r"initialise torch\.distributed before"):
        VllmEngine(save(tiny_qwen3(0), tmp_path), max_context=64)


def test_an_engine_follows_another_that_was_closed_or_failed(tmp_path: Path) -> None:
    save(tiny_qwen3(0), tmp_path)
    with pytest.raises(EngineError, match="vLLM cannot serve"):
        VllmEngine(tmp_path, max_context=512, kv_cache_gib=0.0001)
    assert not torch.distributed.is_initialized()  # else a trainer that starts now joins vLLM's world of one
    first = VllmEngine(tmp_path, max_context=64, kv_cache_gib=0.1)
    with pytest.raises(EngineError, match=r"close\(\) it first"):
        VllmEngine(tmp_path, max_context=64)
    first.close()
    assert not torch.distributed.is_initialized()
    second = VllmEngine(tmp_path, max_context=64, kv_cache_gib=0.1)
    assert len(sample(second, [[1, 2]], Sampling(3, ()))[0].ids) == 3
    second.close()


def test_an_engine_whose_step_fails_is_built_anew_and_samples_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = VllmEngine(save(tiny_qwen3(0), tmp_path), max_context=64, kv_cache_gib=0.1)
    start = weighed(engine, 0)
    expected = weighed(engine, 1)
    step, steps = engine._engine.step, list[int]()

    def failing() -> Any:
        steps.append(1)
        if len(steps) > 3:
            raise RuntimeError("CUDA error: an illegal memory access\nlong trace")
        return step()

    monkeypatch.setattr(engine._engine, "step", failing)
    with pytest.raises(EngineDied, match=r"vLLM failed while decoding: CUDA error: an illegal memory access$"):
        sample(engine, prompts(4, 8), Sampling(12, ()))
    with pytest.raises(EngineDied):
        sample(engine, prompts(1, 8), Sampling(12, ()))
    with pytest.raises(EngineDied):
        engine.load_weights(tiny_qwen3(1).named_parameters())
    monkeypatch.undo()
    engine.revive()
    assert weighed(engine, 1) == expected != start
    engine.close()


def weighed(engine: VllmEngine, seed: int) -> list[tuple[int, ...]]:
    """What the weights of `seed` sample."""
    engine.load_weights(tiny_qwen3(seed).named_parameters())
    calls = [engine.complete(prompt, Sampling(12, (), seed=k)) for k, prompt in enumerate(prompts(4, 8))]
    return [done.ids for done in engine.run(calls)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("banned", [(), (1, 2, 3, 40)])
def test_sampler_logprobs_equal_transformers(engine: VllmEngine, temperature: float, banned: tuple[int, ...]) -> None:
    engine.load_weights(tiny_qwen3(0).named_parameters())
    asked, sampling = prompts(6, 40), Sampling(32, (), temperature, banned_ids=banned)
    sampled = sample(engine, asked, sampling)
    assert worst_gap(0, asked, sampled, sampling) < 1e-4
    assert not {token for completion in sampled for token in completion.ids} & set(banned)


def test_loaded_weights_are_the_ones_that_sample(engine: VllmEngine) -> None:
    asked, sampling = prompts(4, 70), Sampling(16, ())  # long enough to be cached under the old weights
    for seed in (1, 2, 3):
        version = engine.policy_version
        engine.load_weights(tiny_qwen3(seed).named_parameters())
        assert engine.policy_version == version + 1
        for _ in range(2):  # the second time reads the prefix cache
            assert worst_gap(seed, asked, sample(engine, asked, sampling), sampling) < 1e-4


def test_prefix_cache_serves_a_forks_threads(engine: VllmEngine) -> None:
    (shared,) = prompts(1, 96, seed=9)
    sample(engine, [shared], Sampling(1, ()))
    engine.stats = EngineStats()
    sample(engine, [[*shared, 7], [*shared, 8]], Sampling(1, ()))
    assert (engine.stats.prompt_tokens, engine.stats.cached_tokens) == (194, 192)


def test_stop_id_is_included_and_only_the_callers_stop_ids_stop(engine: VllmEngine) -> None:
    everything = tuple(range(VOCABULARY))
    ended = sample(engine, prompts(1, 8), Sampling(20, everything))[0]
    assert (len(ended.ids), len(ended.logprobs), ended.finish) == (1, 1, "stop")
    only_eos = tuple(token for token in everything if token != EOS)
    went_on = sample(engine, prompts(1, 8), Sampling(20, (), banned_ids=only_eos))[0]
    assert (went_on.ids, went_on.finish) == ((EOS,) * 20, "length")
    assert went_on.logprobs == (0.0,) * 20


def test_a_thread_that_ends_does_not_wait_for_its_sibling(engine: VllmEngine) -> None:
    async def short_then_successor() -> None:
        await asyncio.gather(*(engine.complete(prompt, Sampling(4, ())) for prompt in prompts(2, 8)))  # a nested fork
        await engine.complete(prompts(1, 30)[0], Sampling(36, ()))

    async def long() -> None:
        await engine.complete(prompts(1, 9)[0], Sampling(40, ()))

    engine.stats = EngineStats()
    engine.run([short_then_successor(), long()])
    assert engine.stats.steps == 40  # 4 + 36 beside 40; with a barrier 40 + 36
    assert engine.stats.sampled_tokens == 4 + 4 + 36 + 40


def test_a_lost_race_ends_at_the_winners_length_with_what_the_whole_call_began_with(engine: VllmEngine) -> None:
    engine.load_weights(tiny_qwen3(0).named_parameters())
    asked = [([1, 2], Sampling(7, (), seed=1)), ([3, 4], Sampling(60, (), seed=2)), ([5, 6], Sampling(60, (), seed=3))]
    _, whole, other = engine.run(engine.complete(*each) for each in asked)  # the same company, to the last bit
    race, elsewhere = Race(), Race()

    async def winner() -> None:
        race.won(len((await engine.complete(asked[0][0], replace(asked[0][1], race=race))).ids))

    async def run() -> list[Completion]:
        others = [(*asked[1], race), (*asked[2], elsewhere)]
        calls = [engine.complete(prompt, replace(how, race=each)) for prompt, how, each in others]
        return (await together([winner(), *calls]))[1:]  # pyright: ignore[reportReturnType]

    for tokens in (8, 7):  # it learns of the winner one step later; then it knows beforehand
        engine.stats = EngineStats()
        cut, ran = asyncio.run(run())
        assert cut == Completion(whole.ids[:tokens], whole.logprobs[:tokens], "length")
        assert ran.ids == other.ids  # nobody won the race of this one
        assert (engine.stats.steps, engine.stats.sampled_tokens) == (60, 7 + tokens + 60)
        assert engine.stats.prompt_tokens == 6
    assert not engine._engine.has_unfinished_requests() and not engine._races


def test_same_seed_same_tokens_in_any_company(engine: VllmEngine) -> None:
    asked = prompts(3, 12)
    runs: list[list[Completion]] = []
    for seed in (1, 1, 2):
        engine.reseed(seed)
        runs.append(sample(engine, asked, Sampling(24, ())))
    ids = [[completion.ids for completion in run] for run in runs]
    assert ids[0] == ids[1] != ids[2]
    alone = sample(engine, asked[:1], Sampling(24, (), seed=11))[0]
    together_ = sample(engine, [asked[1], asked[0]], Sampling(24, (), seed=11))[1]
    assert alone.ids == together_.ids


def test_seeds_that_differ_in_high_bits_only_are_different_seeds() -> None:
    of = Seeds(0).of
    assert of(Sampling(1, (), seed=7)) == 7
    assert of(Sampling(1, (), seed=(1 << 40) + 7)) != 7
    assert of(Sampling(1, (), seed=-1)) >= 0  # -1 would mean "no seed" to vLLM


def test_more_prompt_tokens_than_one_step_takes(engine: VllmEngine) -> None:
    asked = prompts(250, 60)  # 15,000 tokens; seeded calls that prefill in chunks crash vLLM's CPU runner
    assert len(sample(engine, asked, Sampling(2, ()))) == 250


def test_one_failure_ends_its_siblings_and_the_engine_goes_on(engine: VllmEngine) -> None:
    async def fails() -> Completion:
        await engine.complete([1, 2], Sampling(3, ()))
        raise ValueError("reward")

    engine.stats = EngineStats()
    with pytest.raises(ValueError, match="reward"):
        engine.run([engine.complete([3], Sampling(100, ())), fails()])
    assert engine.stats.steps < 10
    assert not engine._engine.has_unfinished_requests()  # else the cancelled call decodes on in the next rollout
    assert len(sample(engine, [[1, 2, 3]], Sampling(5, ()))[0].ids) == 5


def test_results_come_in_the_order_asked() -> None:
    async def after(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    assert asyncio.run(together([after(5), after(1), after(3)])) == [5, 1, 3]


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "says"),
    [
        ([1] * 100, 61, "100 prompt tokens and max_tokens=61 do not fit model.max_context=160"),
        ([], 4, "nothing to sample"),
        ([1], 0, "nothing to sample"),
        ([1, VOCABULARY], 4, "outside the model's vocabulary"),
    ],
)
def test_a_call_that_cannot_be_served_is_refused(
    engine: VllmEngine, prompt: list[int], max_tokens: int, says: str
) -> None:
    with pytest.raises(EngineError, match=says):
        sample(engine, [prompt], Sampling(max_tokens, ()))


def test_the_whole_context_can_be_used(engine: VllmEngine) -> None:
    (completion,) = sample(engine, prompts(1, 100), Sampling(60, ()))
    assert (len(completion.ids), completion.finish) == (60, "length")


def test_weights_that_do_not_fit_are_refused(engine: VllmEngine) -> None:
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
    engine.load_weights(whole.items())


def test_weights_are_not_swapped_under_a_running_call(engine: VllmEngine) -> None:
    async def load() -> None:
        engine.load_weights(tiny_qwen3(0).named_parameters())

    with pytest.raises(EngineError, match="between rollouts"):
        engine.run([engine.complete([1], Sampling(50, ())), load()])


@pytest.mark.slow
def test_every_rank_samples_on_its_own_and_the_trainers_group_survives(tmp_path: Path) -> None:
    save(tiny_qwen3(0), tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).parent / "vllm_two_ranks.py"
    done = subprocess.run([*command, script, tmp_path], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("rank ok") == 2
