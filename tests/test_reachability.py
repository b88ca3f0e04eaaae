"""Which sampled tokens move when one token changes: exactly those whose predictors may know it, through all layers."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from stitched_trees import KINDS, LETTERS, Meaning, Token, calls_of, group, random_trajectory
from test_published import FORMS, response
from torch import Tensor
from trainers import tiny_model

from apr_train import dag_packing
from apr_train.dag_packing import pack_views
from apr_train.fidelity import published_logps
from apr_train.tree_attention import plan_attention
from rollout.trajectory import Attention, Call, Segment, Trajectory

OTHER = 20
"""An id that no generated trajectory holds."""
MOVED = 2e-5
"""The rounding of a float32 log-prob in another order of sums is up to 1.4e-6 here, the least real change 2e-4."""

Logps = Callable[[list[Trajectory]], list[Tensor]]


def lively_model() -> Any:
    """Large weights, so that a change three steps away still shows."""
    model = tiny_model("tree")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.mul_(3)
            elif "embed" in name:
                weight.mul_(5)
    return model


def by_packing(model: Any) -> Logps:
    """The whole path of training: pack, plan, one forward."""

    def logps(trajectories: list[Trajectory]) -> list[Tensor]:
        packed = pack_views(calls_of(trajectories))
        plan = plan_attention(packed, small_area=200)
        with torch.no_grad():
            logits = model(input_ids=packed.input_ids[None], position_ids=packed.position_ids[None], tree=plan).logits
        table = logits[0].log_softmax(-1)
        return [table[at].gather(1, packed.shift_labels[at][:, None])[:, 0] for at in packed.where]

    return logps


def changed(trajectory: Trajectory, token: Token) -> Trajectory:
    segment, offset = token
    ids = list(trajectory.segments[segment].ids)
    ids[offset] = OTHER
    segments = list(trajectory.segments)
    segments[segment] = replace(segments[segment], ids=tuple(ids))
    return replace(trajectory, segments=tuple(segments))


def moved(trajectories: list[Trajectory], which: int, token: Token, before: list[Tensor], logps: Logps) -> set[Any]:
    """(trajectory, sampled token) of each log-prob that moves when `token` of trajectory `which` changes; not its own,
    which moves because another token is asked for."""
    after = logps([changed(t, token) if i == which else t for i, t in enumerate(trajectories)])
    found: set[Any] = set()
    pairs = iter(zip(before, after, strict=True))
    for number, trajectory in enumerate(trajectories):
        for call in trajectory.calls:
            old, new = next(pairs)
            far = ((old - new).abs() > MOVED).nonzero().flatten().tolist()
            found.update((number, (call.sampled, offset)) for offset in far)
    return found - {(which, token)}


def knowers(trajectory: Trajectory, token: Token) -> set[Token]:
    """Sampled tokens that may move with `token`, in a model of two layers; not itself."""
    meaning = Meaning(trajectory)
    calls = [call for call in trajectory.calls if trajectory.segments[call.sampled].ids]
    known = {(call.sampled, offset) for call in calls for offset in meaning.scene(call).knowers(token, layers=2)}
    return known - {token}


def cases() -> Iterator[tuple[str, list[Trajectory]]]:
    """Stitched and synchronous ones, nested and wide, alone and two of a group; small enough to change every token."""

    def first(options: dict[str, Any], kind: Attention, fits: Callable[[Trajectory], bool]) -> list[Trajectory]:
        found = (group(seed, kind, **options)[0] for seed in range(200))
        return [next(t for t in found if fits(t) and 30 < len(Meaning(t).tokens()) < 90)]

    def depth(t: Trajectory) -> int:
        return max(len(s.thread) // 2 for s in t.segments)

    def width(t: Trajectory) -> int:
        return max((s.thread[-1] for s in t.segments if s.thread), default=0)

    yield "nested", first({"forks": 0.8, "width": 2}, "stitched", lambda t: depth(t) == 3)
    yield "wide", first({"depth": 1, "width": 9}, "stitched", lambda t: width(t) > 6)
    yield "synchronous", first({"forks": 1.0}, "synchronous", lambda t: width(t) == 3)
    yield "wide synchronous", first({"forks": 1.0, "width": 8, "empty": 0.0}, "synchronous", lambda t: width(t) > 5)
    rng = random.Random(4)
    yield "group", [random_trajectory(rng, (9, 10), LETTERS, kind, depth=1, forks=1.0) for kind in (*KINDS, "stitched")]


CASES = dict(cases())


@pytest.mark.parametrize("name", CASES)
def test_a_change_moves_what_may_know_of_it_and_nothing_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token in turn: prompt, separators, headers, closes, joins, threads. A leak moves too much, a gap too
    little."""
    monkeypatch.setattr(dag_packing, "TILE", 4)
    trajectories, logps = CASES[name], by_packing(lively_model())
    before = logps(trajectories)
    for which, trajectory in enumerate(trajectories):
        for token in Meaning(trajectory).tokens():
            expected = {(which, target) for target in knowers(trajectory, token)}
            assert moved(trajectories, which, token, before, logps) == expected, (which, token)


def between(
    trajectory: Trajectory, logps: Callable[[Trajectory], list[Tensor]], origin: str = "sampled"
) -> set[tuple[int, int]]:
    """(k, m): a change in thread k of block 0 moves what thread m samples. What changes is the first token it sampled,
    or the last of its header, so that its tags stay where a parser looks for them."""
    own = {s.thread[1]: i for i, s in enumerate(trajectory.segments) if s.thread and s.origin == origin}
    before, found = logps(trajectory), set[tuple[int, int]]()
    for k, segment in own.items():
        last = len(trajectory.segments[segment].ids) - 1
        after = logps(changed(trajectory, (segment, 0 if origin == "sampled" else last)))
        for call, old, new in zip(trajectory.calls, before, after, strict=True):
            thread = trajectory.segments[call.sampled].thread
            if thread and thread[1] != k and bool(((old - new).abs() > MOVED).any()):
                found.add((k, thread[1]))
    return found


@pytest.mark.parametrize("origin", ["sampled", "forced"])
@pytest.mark.parametrize("dialect", FORMS)
def test_no_sibling_learns_of_another_however_the_dialect_separates_them(dialect: str, origin: str) -> None:
    _, trajectory = response(dialect, "12", "3", "31")
    assert between(trajectory, lambda t: by_packing(lively_model())([t]), origin) == set()


@pytest.mark.parametrize(
    ("dialect", "preset", "leaks"),
    [
        ("multiverse", "multiverse", True),
        ("npr", "npr", True),
        ("parallel_r1", "parallel_r1_unseen", False),
        ("parallel_r1", "parallel_r1_seen", True),
    ],
)
def test_published_masks_leak_to_later_siblings_exactly_where_the_table_says(
    dialect: str, preset: str, leaks: bool
) -> None:
    tokens, trajectory = response(dialect, "12", "3", "31")
    model = lively_model()
    model.resize_token_embeddings(len(tokens.tokenizer))

    def logps(changed_one: Trajectory) -> list[Tensor]:
        with torch.no_grad():
            return published_logps(model, changed_one, preset, tokens)

    later = {(1, 2), (1, 3), (2, 3)}
    assert between(trajectory, logps) == (later if leaks else set())


def test_the_first_token_of_a_synchronous_thread_knows_no_sibling_and_the_next_ones_all_earlier_steps() -> None:
    """Two threads of three tokens, headers included, worked out by hand."""
    segments = (
        Segment("prompt", (9, 10)),
        *(Segment("forced", (5 + k,), None, (0,), (0, k)) for k in (1, 2)),
        *(Segment("sampled", (5, 6, 7), (-1.0,) * 3, (k,), (0, k)) for k in (1, 2)),
    )
    calls = (Call((0, 1), 3, "join"), Call((0, 2), 4, "join"))
    one = Trajectory("p", "test", segments, calls, "answered", attention="synchronous", stride=5)
    logps = by_packing(lively_model())
    before = logps([one])

    def learns(token: Token) -> set[Token]:
        return {target for _, target in moved([one], 0, token, before, logps)}

    assert learns((2, 0)) == {(3, 1), (3, 2), (4, 0), (4, 1), (4, 2)}  # the sibling's header: not the first token
    assert learns((4, 0)) == {(3, 2), (4, 1), (4, 2)}  # step 0 reaches the sibling's step 1, which predicts its step 2
    assert learns((4, 1)) == {(4, 2)}
    assert learns((4, 2)) == set()
