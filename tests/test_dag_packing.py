"""Packed stitched and synchronous calls against one dense forward per call; what a packed row must always hold."""

import doctest
import random
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from stitched_trees import KINDS, LETTERS, Meaning, Token, calls_of, error, group, one_call, random_trajectory
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention
from trainers import separate_logps, tiny_model
from trl.trainer.utils import add_fused_lm_head

from apr_train import chains, dag_packing, tree_attention, visibility
from apr_train.dag_packing import PackedCalls, TrajectoryCall, pack_calls, pack_views
from apr_train.packing import IGNORE, PackingError, pack
from apr_train.tree_attention import plan_attention
from rollout.trajectory import Attention, Call, Segment, Trajectory

AREAS = {"flash_calls": 0, "mixed": 300, "batches": 1 << 60}
SEEDS = st.integers(0, 2**32)
PHASES = (Phase.explicit, Phase.generate)
"""A smaller seed makes no smaller trajectory: nothing to shrink."""


def packed_logps(model: Any, packed: PackedCalls, small_area: int = 300) -> list[Tensor]:
    """Of each call, through TRL's fused head; every label but IGNORE is scored, as in the trainer."""
    if not hasattr(model, "fused"):
        add_fused_lm_head(model)
        model.fused = True
    inputs = {
        "input_ids": packed.input_ids,
        "position_ids": packed.position_ids,
        "shift_labels": packed.shift_labels,
    }
    plan = plan_attention(packed, small_area=small_area)
    logps = model(**{k: v[None] for k, v in inputs.items()}, tree=plan, fused_lm_head=True).log_probs[0]
    return [logps[places] for places in packed.where]


def gradient(model: Any, logps: list[Tensor]) -> Tensor:
    """Of a random mix of all log-probs, in all parameters: what is off anywhere moves it."""
    flat = torch.cat(logps)
    model.zero_grad()
    flat.dot(torch.randn(len(flat), generator=torch.Generator().manual_seed(1))).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def compare(trajectories: list[Trajectory], packed: PackedCalls, small_area: int = 300) -> tuple[float, float]:
    """Largest difference of a log-prob, relative one of the gradient, against one dense forward per call."""
    reference, ours = tiny_model("sdpa"), tiny_model("tree")
    expected = [logps for each in trajectories for logps in Meaning(each).logps(reference)]
    actual = packed_logps(ours, packed, small_area)
    gap = (torch.cat(actual) - torch.cat(expected)).abs().max()
    return float(gap.detach()), error(gradient(ours, actual), gradient(reference, expected))


# ---- packed = separate


@pytest.mark.parametrize("area", AREAS)
@pytest.mark.parametrize("kinds", [KINDS[:1] * 3, KINDS[1:] * 3, KINDS * 2], ids=["stitched", "synchronous", "mixed"])
def test_packed_logps_and_gradients_equal_one_dense_forward_per_call(kinds: tuple[Attention, ...], area: str) -> None:
    for seed in range(4):
        trajectories = group(seed, *kinds)
        gap, off = compare(trajectories, pack_views(calls_of(trajectories)), AREAS[area])
        assert gap < 1e-5
        assert off < 1e-5


def test_blocks_nested_three_deep_and_wide_ones_are_exact() -> None:
    deep = next(t for t in (group(seed, "stitched", forks=0.9)[0] for seed in range(99)) if depth(t) == 3)
    wide = next(t for t in (group(seed, "stitched", width=16, depth=1)[0] for seed in range(99)) if widest(t) > 12)
    for trajectory in (deep, wide):
        assert max(compare([trajectory], pack_views(calls_of([trajectory])))) < 1e-5


def depth(trajectory: Trajectory) -> int:
    return max(len(segment.thread) // 2 for segment in trajectory.segments)


def widest(trajectory: Trajectory) -> int:
    return max((segment.thread[-1] for segment in trajectory.segments if segment.thread), default=0)


def test_a_synchronous_block_cut_into_tiles_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    trajectories = group(3, "synchronous", "synchronous", width=6, empty=0.1, forks=1.0)
    tiles: list[int] = []
    for tile in (1, 3, 8, 256):
        monkeypatch.setattr(dag_packing, "TILE", tile)
        packed = pack_views(calls_of(trajectories))
        tiles.append(sum(chain.steps is not None for chain in packed.chains))
        assert max(compare(trajectories, packed)) < 1e-5
    assert tiles[0] > tiles[1] > tiles[2] > tiles[3] > 0


def test_a_second_synchronous_block_reads_the_first_as_flat_ids() -> None:
    two = next(t for t in (group(s, "synchronous", forks=1.0, empty=0.0)[0] for s in range(99)) if blocks(t) == 2)
    assert max(compare([two], pack_views(calls_of([two])))) < 1e-5


def blocks(trajectory: Trajectory) -> int:
    return len({segment.thread[:-1] for segment in trajectory.segments if segment.thread})


def twins(**changes: Any) -> Trajectory:
    """Two threads of the same ids, headers included, then a join that sees both."""
    segments = (
        Segment("prompt", (5, 6)),
        *(Segment("forced", (7,), None, (0,), (0, k)) for k in (1, 2)),
        *(Segment("sampled", (8, 8), (-1.0, -1.0), (k,), (0, k)) for k in (1, 2)),
        Segment("forced", (6,), None, (3, 4)),
        Segment("sampled", (5, 7), (-1.0, -1.0), (5,)),
    )
    calls = (Call((0, 1), 3, "join"), Call((0, 2), 4, "join"), Call((0, 1, 3, 2, 4, 5), 6, "final"))
    return Trajectory("p", "test", segments, calls, "answered", **{"attention": "stitched"} | changes)


def test_two_equal_threads_weigh_twice_in_what_follows_them() -> None:
    packed = pack_views(calls_of([twins()]))
    assert packed.input_ids.tolist().count(8) == 4
    assert max(compare([twins()], packed)) < 1e-5


def test_equal_threads_of_two_trajectories_share_their_place() -> None:
    one, two = pack_views(calls_of([twins()])), pack_views(calls_of([twins(), twins()]))
    assert two.unique_tokens == one.unique_tokens
    assert max(compare([twins(), twins()], two)) < 1e-5


def test_positions_decide_what_is_shared() -> None:
    """Equal ids that see equal ids, but start elsewhere: sharing them would move one of the two."""
    both = [twins(attention="synchronous", stride=stride) for stride in (0, 3)]
    assert max(compare(both, pack_views(calls_of(both)))) < 1e-5


def test_the_last_token_of_a_shared_prompt_learns_each_first_token() -> None:
    trajectories = [
        Trajectory(
            *("p", "test", (Segment("prompt", (5, 6)), Segment("sampled", ids, (-1.0,) * 2, (0,)))),
            *((Call((0,), 1, "final"),), "answered"),
            attention="stitched",
        )
        for ids in ((7, 8), (8, 7), (7, 5), (9, 9))
    ]
    packed = pack_views(calls_of(trajectories))
    assert packed.input_ids.tolist() == [5, 6, 7, 8, 7, 9, 6, 6]
    assert packed.shift_labels.tolist() == [IGNORE, 7, 8, 7, 5, 9, 8, 9]
    assert packed.position_ids.tolist() == [0, 1, 2, 2, 2, 2, 1, 1]
    assert max(compare(trajectories, packed)) < 1e-5


def test_causal_rows_and_views_share_one_row_and_disturb_nothing() -> None:
    trajectories = group(5, "stitched", "synchronous")
    rows: list[list[int]] = [[5, 6, 7, 8, 9], [5, 6, 7, 5], [9]]
    views: list[TrajectoryCall | None] = [*calls_of(trajectories)]
    order = [None, *views[:2], None, *views[2:], None]
    ids = iter(rows)
    flat = [next(ids) if call is None else [0] for call in order]
    contexts = [2 if len(row) > 2 else 1 for row in flat]
    packed = pack_calls(flat, contexts, order)
    reference, ours = tiny_model("sdpa"), tiny_model("tree")
    dense = iter([logps for each in trajectories for logps in Meaning(each).logps(reference)])
    expected = [
        separate_logps(reference, row[:context], tuple(row[context:])) if call is None else next(dense)
        for row, context, call in zip(flat, contexts, order, strict=True)
    ]
    actual = packed_logps(ours, packed)
    assert [len(a) for a in actual] == [len(e) for e in expected]
    assert float((torch.cat(actual) - torch.cat(expected)).detach().abs().max()) < 1e-5
    assert error(gradient(ours, actual), gradient(reference, expected)) < 1e-5


def test_causal_rows_alone_are_packed_as_the_trie_they_were() -> None:
    rows, contexts = [[5, 6, 7, 8], [5, 6, 9], [5, 6]], [2, 2, 2]
    packed, trie = pack_calls(rows, contexts, [None] * 3), pack(rows, contexts)
    assert packed.trie is not None
    for name in ("input_ids", "position_ids", "shift_labels"):
        assert torch.equal(getattr(packed, name), getattr(trie, name))
    assert [places.tolist() for places in packed.where] == [[1, 2], [3], []]
    assert [part.key for part in plan_attention(packed, small_area=0).parts] == [
        part.key for part in plan_attention(trie, small_area=0).parts
    ]


# ---- properties


@settings(max_examples=30, phases=PHASES)
@given(SEEDS, st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
def test_labels_are_the_sampled_tokens_where_their_predictors_lie_and_nowhere_else(
    seed: int, kinds: list[Attention]
) -> None:
    trajectories = group(seed, *kinds)
    packed = pack_views(calls_of(trajectories))
    trained: set[int] = set()
    places = iter(packed.where)
    for trajectory in trajectories:
        meaning, segments = Meaning(trajectory), trajectory.segments
        for call in trajectory.calls:
            at = next(places).tolist()
            scene = meaning.scene(call)
            inputs = [scene.tokens[i] for i in scene.inputs]
            assert packed.shift_labels[at].tolist() == list(segments[call.sampled].ids)
            assert packed.input_ids[at].tolist() == [segments[s].ids[o] for s, o in inputs]
            assert packed.position_ids[at].tolist() == [scene.positions[i] for i in scene.inputs]
            trained.update(at)
    labelled = (packed.shift_labels != IGNORE).nonzero().flatten().tolist()
    assert labelled == sorted(trained)


@settings(max_examples=30, phases=PHASES)
@given(SEEDS)
def test_every_token_that_is_read_is_computed_once_and_copied_only_for_a_second_label(seed: int) -> None:
    (trajectory,) = group(seed, "stitched")
    packed, meaning = pack_views(calls_of([trajectory])), Meaning(trajectory)
    read, inputs = set[Token](), list[Token]()
    for call in trajectory.calls:
        if trajectory.segments[call.sampled].ids:
            scene = meaning.scene(call)
            inputs += [scene.tokens[i] for i in scene.inputs]
            read.update(scene.tokens[j] for i in scene.inputs for j in scene.sees[i])
    copies = len(inputs) - len(set(inputs))
    assert packed.unique_tokens == len(read) + copies


@settings(max_examples=30, phases=PHASES)
@given(SEEDS, st.sampled_from(KINDS))
def test_equal_trajectories_cost_as_much_as_one(seed: int, kind: Attention) -> None:
    (trajectory,) = group(seed, kind)
    packed = pack_views(calls_of([trajectory]))
    several = pack_views(calls_of([trajectory, replace(trajectory), replace(trajectory)]))
    assert (several.unique_tokens, several.raw_tokens) == (packed.unique_tokens, 3 * packed.raw_tokens)


@settings(max_examples=30, phases=PHASES)
@given(SEEDS, st.lists(st.sampled_from(KINDS), min_size=1, max_size=3))
def test_chains_and_parts_and_the_cuda_table_agree_on_who_sees_whom(seed: int, kinds: list[Attention]) -> None:
    packed = pack_views(calls_of(group(seed, *kinds)))
    expected = seen_by_chains(packed)
    assert expected.diagonal().all()
    found = torch.zeros_like(expected, dtype=torch.long)
    for part in plan_attention(packed, small_area=200).parts:
        bias = part.bias_B1QK
        query, key = (at if isinstance(at, Tensor) else flat(at)[None] for at in (part.query, part.key))
        mask = torch.ones(len(query), query.shape[1], key.shape[1], dtype=torch.bool)
        mask = mask.tril() if part.causal else mask if bias is None else (bias[:, 0] == 0).expand_as(mask)
        if part.real_BQ is not None:
            mask = mask & part.real_BQ[:, :, None]
        b, i, j = mask.nonzero(as_tuple=True)
        found.index_put_((query[b, i], key[b, j]), torch.tensor(1), accumulate=True)
    assert torch.equal(found, expected.long())
    table = chains.chain_table(packed.chains, packed.unique_tokens)
    own = (table.chain_N[:, None] == table.chain_N) & (table.step_N < table.step_N[:, None])
    looked_up = torch.from_numpy(own | table.seen_CA[table.chain_N][:, table.atom_N])
    assert torch.equal(looked_up | torch.eye(len(looked_up), dtype=torch.bool), expected)


def flat(spans: tuple[tuple[int, int], ...]) -> Tensor:
    return torch.cat([torch.arange(start, end) for start, end in spans])


def seen_by_chains(packed: PackedCalls) -> Tensor:
    """(N, N) bool; fails unless each position is in one chain."""
    mask = torch.zeros(packed.unique_tokens, packed.unique_tokens, dtype=torch.bool)
    covered = torch.zeros(packed.unique_tokens, dtype=torch.long)
    for chain in packed.chains:
        covered[chain.start : chain.end] += 1
        steps = torch.arange(chain.queries) if chain.steps is None else torch.tensor(chain.steps)
        own = (steps < steps[:, None]) | torch.eye(len(steps), dtype=torch.bool)
        mask[chain.start : chain.end, chain.start : chain.end] = own
        for start, end in chain.prefix:
            mask[chain.start : chain.end, start:end] = True
    assert (covered == 1).all()
    return mask


@settings(max_examples=8, phases=PHASES)
@given(SEEDS)
def test_the_flex_mask_for_cuda_attends_as_the_parts_do(seed: int) -> None:
    packed = pack_views(calls_of(group(seed, *KINDS)))
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, h, packed.unique_tokens, 16, generator=generator) for h in (4, 2, 2))
    mask = tree_attention._chain_mask(packed.chains, packed.unique_tokens, torch.device("cpu"))
    with torch.no_grad():
        out = flex_attention(q, k, v, block_mask=mask, scale=0.3, enable_gqa=True)
    ours, _ = tree_attention.tree_attention(torch.nn.Module(), q, k, v, None, scaling=0.3, tree=plan_attention(packed))
    assert isinstance(out, Tensor)
    torch.testing.assert_close(out.transpose(1, 2), ours)


@settings(max_examples=15, phases=PHASES)
@given(SEEDS, st.randoms(use_true_random=False))
def test_the_order_of_calls_changes_no_logp(seed: int, rng: random.Random) -> None:
    calls = calls_of(group(seed, *KINDS))
    order = rng.sample(range(len(calls)), len(calls))
    model = tiny_model("tree")
    with torch.no_grad():
        plain, shuffled = (packed_logps(model, pack_views(c)) for c in (calls, [calls[i] for i in order]))
    for at, i in enumerate(order):
        torch.testing.assert_close(shuffled[at], plain[i])


@settings(max_examples=15, phases=PHASES)
@given(SEEDS)
def test_trees_share_nothing_and_each_label_is_there_once_for_each_sampled_token(seed: int) -> None:
    (trajectory,) = group(seed, "stitched")
    calls = calls_of([trajectory, replace(trajectory)])
    packed = pack_views(calls, [0] * len(trajectory.calls) + [1] * len(trajectory.calls))
    assert packed.unique_tokens == 2 * pack_views(calls_of([trajectory])).unique_tokens
    sampled = sum(len(trajectory.segments[call.sampled].ids) for call in trajectory.calls)
    assert int((packed.shift_labels != IGNORE).sum()) == 2 * sampled


def test_a_long_group_is_packed_and_planned_in_seconds() -> None:
    rng = random.Random(0)
    grown = [random_trajectory(rng, (5, 6), LETTERS, depth=3, forks=1.0, empty=0.0) for _ in range(8)]
    long = [replace(t, segments=tuple(map(lengthened, t.segments))) for t in grown]
    calls = calls_of(long)
    started = time.process_time()
    packed = pack_views(calls)
    plan_attention(packed)
    assert packed.unique_tokens > 100_000
    assert time.process_time() - started < 5


def lengthened(segment: Segment) -> Segment:
    logprobs = None if segment.logprobs is None else segment.logprobs * 120
    return replace(segment, ids=segment.ids * 120, logprobs=logprobs)


# ---- refusals


def synchronous(segments: list[Segment], calls: list[Call]) -> Trajectory:
    return Trajectory("p", "test", tuple(segments), tuple(calls), "answered", attention="synchronous")


def block(*threads: tuple[int, ...], calls_each: int = 1, parents: tuple[int, ...] = (0, 0)) -> Trajectory:
    segments = [Segment("prompt", (5, 6)), Segment("forced", (7,), None, (0,))]
    calls: list[Call] = []
    for thread, parent in zip(threads, parents, strict=True):
        for _ in range(calls_each):
            segments.append(Segment("sampled", (8,), (-1.0,), (parent,), thread))
            calls.append(Call((0, 1)[: parent + 1], len(segments) - 1, "join"))
    return synchronous(segments, calls)


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        (one_call(attention="causal"), "causal calls"),
        (one_call(segments=(Segment("prompt", ()), Segment("sampled", (7,), (-1.0,), (0,)))), "no context"),
        (one_call(segments=(Segment("prompt", (2**31,)), Segment("sampled", (7,), (-1.0,), (0,)))), "token id"),
        (one_call(segments=(Segment("prompt", (5,)), Segment("sampled", (), (), (0,)))), "nothing to pack"),
        (one_call(segments=(Segment("prompt", (5,)), Segment("sampled", (7,), (-1.0,)))), "not all that its sampled"),
        (one_call(calls=(Call((0, 0), 1, "final"),)), "once each"),
        (block((0, 1), (0, 2, 0, 1)), "do not fork"),
        (block((0, 1), (0, 2), calls_each=2), "2 calls"),
        (block((0, 1), (0, 2), parents=(0, 1)), "fork apart"),
    ],
)
def test_what_cannot_be_packed_is_named(trajectory: Trajectory, message: str) -> None:
    with pytest.raises(PackingError, match=message):
        pack_views(calls_of([trajectory]))


@pytest.mark.parametrize("module", [dag_packing, chains, visibility])
def test_the_worked_examples_of_the_documentation_hold(module: Any) -> None:
    assert doctest.testmod(module).failed == 0
