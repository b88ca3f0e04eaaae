"""A learned vector per thread is sampled with, saved, sent and refused as it must be, by a decoder by hand."""

import json
import random
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from helpers import toy_tokens
from stitched_trees import calls_of, error
from test_check_dialects import model_for
from torch import Tensor
from trainers import tiny_model
from vectors import COUNT, VECTORS, by_hand, call_logps, path, with_vectors

from apr_train.compose import load
from apr_train.config import ModelConfig
from apr_train.fidelity import compare
from apr_train.model import ModelError, character_tokenizer, load_model, prepare_model_folder
from apr_train.packing import PackingError
from apr_train.published import pack_published
from apr_train.run import run
from apr_train.weight_sync import full_weights, save_model, saved_weights
from rollout.dialects import make_dialect
from rollout.dialects.base import DialectError
from rollout.engine import EngineError, Sampling, causal_ids
from rollout.engines import thread_vectors
from rollout.engines.torch_cache import Store
from rollout.engines.torch_engine import TorchEngine
from rollout.engines.vllm_http import server_command
from rollout.orchestrator import Budget, run_trajectory
from rollout.trajectory import Trajectory, TrajectoryError
from rollout.view import View
from scripts.check_dialects import Spy, replays


@pytest.fixture(scope="module")
def model() -> Any:
    return with_vectors(model_for(toy_tokens("parathinker")))


def shapes() -> list[View]:
    """Views whose pieces are of several threads: (prompt, headers and bodies, join), nested, equal texts."""
    draw = random.Random(1)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(draw.randrange(5, 90) for _ in range(length))

    prompt, twin, join = ids(5), ids(4), ids(2)
    stitched = [(), (0,), (0,), (0,), (1, 2, 3)]
    return [
        View.stitched([prompt], [()], (0, 0)),
        View.stitched([prompt, twin], [(), (0,)], (0, 1, 1)),
        View.stitched([prompt, twin], [(), (0,)], (0, 2, 2)),
        View.stitched([prompt, twin], [(), (0,)], (0, 2, 0)),
        View.stitched([prompt, twin], [(), (0,)]),
        View.stitched([prompt, (), twin], [(), (0,), (1,)], (0, 1, 1, 1)),
        View.stitched([prompt, twin, twin, ids(70), join], stitched, (0, 1, 2, 3, 0, 0)),
        View.stitched([prompt, twin, twin, twin, join], stitched, (0, 3, 2, 1, 0, 0)),
        View.stitched([prompt, twin, ids(3), ids(2)], [(), (0,), (1,), (2,)], (0, 1, 2, 1, 1)),
        View.stitched([twin], [()], (4, 4)),
    ]


def logps_of(model: Any, view: View, ids: tuple[int, ...]) -> Tensor:
    """log p of sampled ids after a view, by hand."""
    pieces, starts = [*view.pieces, ids], [*view.starts, view.end]
    sees = [*view.sees, tuple(range(len(view.pieces)))]
    tokens = [(p, t) for p, piece in enumerate(pieces) for t in range(len(piece))]
    seen = [{j for j, (q, s) in enumerate(tokens) if (q == p and s <= t) or q in sees[p]} for p, t in tokens]
    whose = [view.threads[p] if view.threads else 0 for p, _ in tokens]
    logits = by_hand(model, [*view.ids, *ids], [starts[p] + t for p, t in tokens], seen, whose)
    chosen = logits[len(view.ids) - 1 : -1].log_softmax(-1)
    return chosen.gather(1, torch.tensor(ids)[:, None])[:, 0].detach()


def test_a_sampled_token_carries_its_own_threads_vector_whoever_it_is_decoded_with(model: Any) -> None:
    engine = TorchEngine(model, max_context=400, device="cpu")
    for _ in range(2):  # the second time everything is held
        done = engine.run(
            [engine.complete(view, Sampling(5 + 30 * (n % 3), (), seed=n)) for n, view in enumerate(shapes())]
        )
        for view, completion in zip(shapes(), done, strict=True):
            gap = (logps_of(model, view, completion.ids) - torch.tensor(completion.logprobs)).abs().max()
            assert gap < 2e-5, view
    assert engine.stats.cached_tokens > sum(len(view.ids) for view in shapes()) - len(shapes())


def test_two_paths_of_equal_text_share_no_keys_beyond_what_both_read() -> None:
    store = Store()
    first, second, root = (
        store.states(View.stitched([(5, 6), (7, 8)], [(), (0,)], threads)) for threads in ((0, 1, 1), (0, 2, 2), ())
    )
    assert first[0][:2] == second[0][:2] == root[0][:2]
    assert len({*first[0][2:], *second[0][2:], *root[0][2:]}) == 6
    assert len({first[1], second[1], root[1]}) == 3
    back = store.states(View.stitched([(5, 6), (7, 8)], [(), (0,)], (0, 1, 0)))
    assert back[0] == first[0] and back[1] != first[1]
    cut = store.states(View.stitched([(5, 6), (7,), (8,)], [(), (0,), (1,)], (0, 1, 1, 1)))
    assert cut == first  # however it is cut into pieces
    assert root == store.states(View.causal([(5, 6), (7, 8)]))


def test_a_thread_reuses_what_it_sampled_and_a_join_what_all_did(model: Any) -> None:
    engine = TorchEngine(model, max_context=400, device="cpu")
    prompt, join = (5, 6, 7), (11, 12)
    views = [View.stitched([prompt, (9,)], [(), (0,)], (0, k, k)) for k in (1, 2)]
    done = engine.run([engine.complete(view, Sampling(20, (), seed=0)) for view in views])
    assert engine.stats.prefilled_tokens == 3 + 1 + 1
    pieces = [prompt, (9,), done[0].ids, (9,), done[1].ids, join]
    asked = View.stitched(pieces, [(), (0,), (1,), (0,), (3,), (2, 4)], (0, 1, 1, 2, 2, 0, 0))
    before = engine.stats.prefilled_tokens
    (last,) = engine.run([engine.complete(asked, Sampling(9, ()))])
    assert engine.stats.prefilled_tokens - before == 2 + 2  # each thread's last token, and the join
    assert (logps_of(model, asked, last.ids) - torch.tensor(last.logprobs)).abs().max() < 2e-5


@dataclass(frozen=True)
class Sampled:
    trajectories: list[Trajectory]
    spies: list[Spy]


def sampled(model: Any, name: str, **options: Any) -> Sampled:
    tokens = toy_tokens(name)
    dialect = make_dialect(name, tokens, "stitched", options)
    engine = TorchEngine(model, max_context=400, device="cpu")
    spies = [Spy(engine) for _ in range(3)]
    budget = Budget(160, 8, threads=8, blocks=2, thread=12)
    return Sampled(
        engine.run(
            run_trajectory(spy, dialect, "p", tokens.prompt("a="), budget, seed=n, strategy=VECTORS)
            for n, spy in enumerate(spies)
        ),
        spies,
    )


@pytest.mark.parametrize("cut", [False, True])
def test_what_is_trained_is_what_was_sampled(model: Any, cut: bool) -> None:
    found = sampled(model, "parathinker", first_finish=cut)
    dlogp, grad, forced = compare(model, found.trajectories)
    assert dlogp < 1e-4 and grad < 1e-5 and forced == 0.0
    assert all(replays(t, spy) for t, spy in zip(found.trajectories, found.spies, strict=True))
    for trajectory in found.trajectories:
        for call in trajectory.calls:
            segment = trajectory.segments[call.sampled]
            gap = (call_logps(model, trajectory, call) - torch.tensor(segment.logprobs)).abs().max()
            assert gap < 2e-5
    assert compare(model, [replace(t, thread_vectors=False) for t in found.trajectories])[0] > 1e-2


def test_a_path_and_its_header_have_its_number_and_all_else_none(model: Any) -> None:
    found = sampled(model, "parathinker", paths=2)
    assert [view.threads for view in found.spies[0].asked[0, 2]] == [(0, 0, 2, 2)]  # prompt, <think>, <think2>, sampled
    first = found.spies[0].asked[()][0]
    assert first.threads == (0, 0, 1, 1, 1, 2, 2, 2, 0, 0)  # prompt, <think>, twice header, sampled, close; <summary>
    trajectory = found.trajectories[0]
    assert trajectory.thread_vectors and Trajectory.from_json(trajectory.to_json()) == trajectory


# ---- folders and weights


def test_vectors_survive_saving_loading_and_the_way_to_the_sampler(tmp_path: Path, model: Any) -> None:
    tokens = toy_tokens("parathinker")
    save_model(model, tokens.tokenizer, tmp_path, is_main=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["apr_thread_vectors"], config["architectures"]) == (COUNT, ["Qwen3ForCausalLM"])
    loaded = thread_vectors.load(tmp_path, dtype=torch.float32, attn_implementation="tree")
    for ours, theirs in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert ours[0] == theirs[0] and torch.equal(ours[1], theirs[1])
    save_model(loaded, tokens.tokenizer, tmp_path / "again", is_main=True)
    fresh = tiny_vectors_folder(tmp_path / "fresh", len(tokens.tokenizer))
    view = shapes()[6]
    engine = TorchEngine(fresh, max_context=400, device="cpu")
    engine.load_weights(full_weights(model))
    (first,) = engine.run([engine.complete(view, Sampling(9, ()))])
    engine.load_weights(saved_weights(tmp_path / "again"))
    engine.reseed(0)
    (second,) = engine.run([engine.complete(view, Sampling(9, ()))])
    for done in (first, second):
        assert (logps_of(model, view, done.ids) - torch.tensor(done.logprobs)).abs().max() < 2e-5


def tiny_vectors_folder(folder: Path, vocabulary: int) -> Path:
    """The folder of another model of the same shape."""
    other = model_for(toy_tokens("parathinker"))
    assert other.config.vocab_size == vocabulary
    thread_vectors.install(other, COUNT)
    other.save_pretrained(folder)
    return folder


def test_a_folder_that_lost_its_vectors_is_not_sampled_with_fresh_ones(tmp_path: Path) -> None:
    model_for(toy_tokens("parathinker")).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"apr_thread_vectors": COUNT}))
    with pytest.raises(EngineError, match=r"hold no model\.layers\.0\.self_attn\.thread_vectors\.weight"):
        TorchEngine(tmp_path, max_context=64, device="cpu")


def test_a_config_that_lost_its_vectors_does_not_sample_the_model_without_them(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "apr_thread_vectors"}))
    with pytest.raises(EngineError, match=r"config\.json does not say apr_thread_vectors"):
        TorchEngine(tmp_path, max_context=64, device="cpu")


def test_a_copy_of_a_model_adds_its_own_vectors(model: Any) -> None:
    engine = TorchEngine(model, max_context=400, device="cpu")
    other = with_vectors(model_for(toy_tokens("parathinker")), size=2.0)
    engine.load_weights(other.named_parameters())
    view = shapes()[1]
    (done,) = engine.run([engine.complete(view, Sampling(9, ()))])
    assert (logps_of(other, view, done.ids) - torch.tensor(done.logprobs)).abs().max() < 2e-5


def test_the_start_folder_gets_vectors_once_and_keeps_those_it_has(tmp_path: Path) -> None:
    sizes = ModelConfig(hidden_size=32, head_dim=16, intermediate_size=48, max_context=64)
    plain, first, second = (tmp_path / name for name in ("plain", "first", "second"))
    prepare_model_folder(sizes, ["<a>"], plain, 0)
    prepare_model_folder(replace(sizes, path=str(plain), thread_vectors=3), ["<a>"], first, 0)
    prepare_model_folder(replace(sizes, path=str(first), thread_vectors=3), ["<a>"], second, 1)
    kept, copied, bare = (dict(saved_weights(each)) for each in (first, second, plain))
    assert kept.keys() == copied.keys() and all(torch.equal(kept[name], copied[name]) for name in kept)
    assert all(torch.equal(kept[name], bare[name]) for name in bare)
    assert len(kept) == len(bare) + 2
    for count in (0, 4):
        with pytest.raises(ModelError, match=r"has vectors for 3 threads: set model\.thread_vectors=3$"):
            load_model(replace(sizes, path=str(first), thread_vectors=count), character_tokenizer())


# ---- refusals


def test_stock_engines_refuse_what_they_would_serve_as_another_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"apr_thread_vectors": 4}')
    with pytest.raises(EngineError, match="which vLLM cannot add: use rollout=torch"):
        server_command(tmp_path, max_context=64, dtype="float32", port=8000)
    looks_flat = View.stitched([(5, 6), (7,)], [(), (0,)], (0, 1, 1))
    assert not looks_flat.is_causal
    with pytest.raises(EngineError, match="cannot add a vector per thread: use rollout=torch"):
        causal_ids(looks_flat, "vLLM")
    assert causal_ids(replace(looks_flat, threads=(0, 0, 0)), "vLLM") == [5, 6, 7]


def test_a_sampler_refuses_threads_that_it_has_no_vector_for(model: Any) -> None:
    engine = TorchEngine(model, max_context=400, device="cpu")
    beyond = View.stitched([(5, 6), (7,)], [(), (0,)], (0, COUNT + 1, COUNT + 1))
    with pytest.raises(EngineError, match=r"not for thread 7: raise model\.thread_vectors"):
        engine.run([engine.complete(beyond, Sampling(3, ()))])
    together = engine.complete_together(
        View.causal([(5, 6)]), [(7,), (8,)], [Sampling(3, ())] * 2, stride=3, mode="group_think"
    )
    assert len(engine.run([together])[0]) == 2  # all of them the root's
    with pytest.raises(EngineError, match="see each other"):
        engine.run([engine.complete_together(beyond, [(7,)], [Sampling(3, ())], stride=3, mode="group_think")])


def test_only_stitched_threads_have_vectors() -> None:
    tokens = toy_tokens("parathinker")
    dialect = make_dialect("parathinker", tokens, "transcript")
    engine = TorchEngine(with_vectors(model_for(tokens)), max_context=400, device="cpu")
    with pytest.raises(DialectError, match="stitched join only"):
        engine.run([run_trajectory(engine, dialect, "p", (5,), Budget(90, 8, 8, 2), strategy=VECTORS)])
    with pytest.raises(TrajectoryError, match="stitched trajectories only"):
        replace(path(1, (7,)), attention="causal")
    with pytest.raises(PackingError, match="no public trainer's mask"):
        pack_published(calls_of([path(1, (7,))]), "parallel_r1_seen", tokens)


def test_models_whose_keys_are_not_projected_alone_are_refused() -> None:
    model = with_vectors(tiny_model("sdpa"))
    with pytest.raises(EngineError, match="already"):
        thread_vectors.install(model, 3)
    odd = tiny_model("sdpa")
    del odd.model.layers[1].self_attn.k_proj
    with pytest.raises(EngineError, match="no plain decoder"):
        thread_vectors.install(odd, 3)


# ---- the whole run


def overrides(folder: Path, *more: str) -> list[str]:
    return [
        *("experiment=quickstart", "debug=default", f"output_dir={folder}", "dialect=parathinker"),
        *(
            "dialect.join=stitched",
            "dialect.options.paths=2",
            "model.thread_vectors=2",
            "rollout.max_response_tokens=400",
        ),
        *("data.options.steps_min=3", "data.options.steps_max=4", "eval.problems=2", "algorithm.prompts_per_step=2"),
        *more,
    ]


def saved_tables(folder: Path) -> Tensor:
    return torch.cat([tensor for name, tensor in saved_weights(folder) if "thread_vectors" in name])


def gap_of(folder: Path) -> float:
    return json.loads((folder / "summary.json").read_text())["gap_logprob_mean_abs"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(load(overrides(folder)))
    return folder


def test_every_stage_of_a_run_hands_its_vectors_to_the_next(whole: Path) -> None:
    start, sft, rl = (saved_tables(whole / stage) for stage in ("start", "sft", "rl"))
    assert start.shape == sft.shape == rl.shape == (2 * 2, 32)
    assert start.std().item() == pytest.approx(0.02, rel=0.2)
    assert (sft - start).abs().min() > 0
    assert (rl - sft).abs().max() < 0.01  # RL went on from there: its steps are small
    assert gap_of(whole) < 1e-5


@pytest.mark.slow
def test_vectors_that_two_ranks_shard_become_the_same(whole: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(ROOT / "scripts/train.py"), *overrides(tmp_path, "deepspeed=zero3")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert torch.equal(saved_tables(tmp_path / "start"), saved_tables(whole / "start"))
    assert error(saved_tables(tmp_path / "sft"), saved_tables(whole / "sft")) < 1e-3
    assert gap_of(tmp_path) < 1e-5
