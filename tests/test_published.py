"""What the public trainers' masks and positions do to a stitched response, worked out by hand."""

import doctest
import random
from typing import Any

import pytest
import torch
from helpers import toy_tokens
from stitched_trees import Meaning
from trainers import tiny_model

from apr_train import published
from apr_train.config import PUBLIC_MASKS
from apr_train.dag_packing import TrajectoryCall
from apr_train.fidelity import dense_view, gradient, packed_logps, published_logps
from apr_train.packing import PackingError
from apr_train.published import Dense, dense, hide_between_tags, pack_published, scored_calls
from rollout.tokens import Tokens
from rollout.trajectory import Call, Segment, Trajectory

FORMS = {
    "multiverse": ("<Parallel><Goal></Goal>", "\n<Path>\n{k}:", "</Path>", "<Conclusion>\n"),
    "npr": ("<guideline></guideline>", "\n<step>\n{k}:", "</step>", "<takeaway>\n"),
    "parallel_r1": ("<Parallel>", "<Path>", "</Path>", "</Parallel>\n<Summary>"),
}
"""What the root samples, each thread's forced header, how a thread ends, the forced join."""


def spelled(tokens: Tokens, text: str) -> tuple[int, ...]:
    """Ids of text whose tags are meant."""
    return tuple(tokens.tokenizer.encode(text, add_special_tokens=False))


def response(dialect: str, *threads: str, blocks: int = 1) -> tuple[Tokens, Trajectory]:
    """A prompt "ab", then blocks of these threads, then "c"."""
    tokens = toy_tokens(dialect)
    fork, header, close, join = FORMS[dialect]
    segments, calls, context = [Segment("prompt", spelled(tokens, "ab"))], list[Call](), [0]

    def add(origin: Any, text: str, *parents: int, thread: tuple[int, ...] = ()) -> int:
        ids = spelled(tokens, text)
        segments.append(Segment(origin, ids, (-1.0,) * len(ids) if origin == "sampled" else None, parents, thread))
        return len(segments) - 1

    for block in range(blocks):
        root = add("sampled", fork, context[-1])
        calls.append(Call(tuple(context), root, "fork"))
        context.append(root)
        headers = [add("forced", header.format(k=k), root, thread=(block, k)) for k in range(1, len(threads) + 1)]
        ends = []
        for k, (above, text) in enumerate(zip(headers, threads, strict=True), 1):
            ends.append(add("sampled", text + close, above, thread=(block, k)))
            calls.append(Call((*context, above), ends[-1], "join"))
        for above, end in zip(headers, ends, strict=True):
            context += [above, end]
        context.append(add("forced", join, *ends))
    calls.append(Call(tuple(context), add("sampled", "c", context[-1]), "final"))
    return tokens, Trajectory("p", dialect, tuple(segments), tuple(calls), "answered", attention="stitched")


def as_sampled(trajectory: Trajectory) -> Dense:
    """What the last call of a stitched response saw, token by token, and that it continued it."""
    return Dense(*dense_view(trajectory, len(trajectory.calls) - 1)[:3])


def where(tokens: Tokens, ids: torch.Tensor, tag: str) -> list[int]:
    return (ids == tokens.tag(tag)).nonzero().flatten().tolist()


def test_multiverse_trains_one_position_early_and_one_more_with_every_block() -> None:
    """The newline before <Path> counts in the sampler, and not in the trainer."""
    tokens, trajectory = response("multiverse", "12", "3", blocks=2)
    theirs, ours = dense(trajectory, "multiverse", tokens), as_sampled(trajectory)
    assert torch.equal(theirs.ids, ours.ids)
    # a b <Parallel> <Goal> </Goal> at 0 to 4, then \n <Path> \n 1: 1 2 </Path> at 5 to 11 in the sampler;
    # <Conclusion> \n <Parallel> <Goal> </Goal> at 12 to 16, and so on
    paths, conclusions = where(tokens, ours.ids, "<Path>"), where(tokens, ours.ids, "<Conclusion>")
    assert ours.positions[paths].tolist() == [6, 6, 18, 18]
    assert theirs.positions[paths].tolist() == [5, 5, 16, 16]
    assert ours.positions[conclusions].tolist() == [12, 24]
    assert theirs.positions[conclusions].tolist() == [11, 22]


@pytest.mark.parametrize("dialect", ["multiverse", "npr"])
def test_published_newlines_read_earlier_siblings_and_are_read_by_their_own(dialect: str) -> None:
    tokens, trajectory = response(dialect, "12", "3", "3")
    found = dense(trajectory, dialect, tokens)
    opening, closing = (where(tokens, found.ids, form.strip().split("\n")[0]) for form in FORMS[dialect][1:3])
    for k, (start, end) in enumerate(zip(opening, closing, strict=True)):
        for other in range(3):
            sees = found.mask[start : end + 1, opening[other] : closing[other] + 1]
            assert sees.any() == (other == k)
        newline = start - 1
        assert found.mask[newline, : newline + 1].all()
        assert found.mask[start : end + 1, newline].all()
    assert found.mask[closing[-1] + 1 :, : closing[-1] + 1].all()


def test_parallel_r1_unseen_trains_what_a_stitched_sampler_would_sample() -> None:
    """No newline stands between its paths: mask and positions are exact. What is wrong is that its sampler re-reads."""
    rng = random.Random(0)
    for _ in range(5):
        threads = ["".join(rng.choices("123", k=rng.randint(0, 5))) for _ in range(rng.randint(1, 4))]
        tokens, trajectory = response("parallel_r1", *threads, blocks=2)
        theirs, ours = dense(trajectory, "parallel_r1_unseen", tokens), as_sampled(trajectory)
        for name in ("ids", "positions", "mask"):
            assert torch.equal(getattr(theirs, name), getattr(ours, name))


def test_parallel_r1_seen_is_flat_text() -> None:
    tokens, trajectory = response("parallel_r1", "12", "3")
    found = dense(trajectory, "parallel_r1_seen", tokens)
    assert found.positions.tolist() == list(range(len(found.ids)))
    assert torch.equal(found.mask, torch.ones_like(found.mask).tril())


def test_nested_threads_are_hidden_and_count_into_their_outer_thread() -> None:
    # fork 9, thread 1 .. 2, join 3: two threads, the first with two of its own (4 and 5 long) before it closes
    ids = [0, 9, 1, 9, 1, 5, 5, 2, 1, 5, 5, 5, 2, 3, 2, 1, 6, 2, 3, 0]
    found = hide_between_tags(ids, 9, 1, 2, 3)
    assert found.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7, 8, 9, 10, 2, 3, 4, 11, 12]
    assert not found.mask[8:13, 4:8].any()
    assert not found.mask[15:18, 2:15].any()
    assert found.mask[13, :13].all()
    assert found.mask[18, :18].all()


@pytest.mark.parametrize("ids", [[9], [9, 1], [2], [3], [9, 1, 1], [9, 2], [9, 1, 3], [1, 2], [9, 1, 2, 3, 3]])
def test_what_the_published_parsers_cannot_read_is_refused(ids: list[int]) -> None:
    with pytest.raises(PackingError, match="parsed by its tags"):
        hide_between_tags(ids, 9, 1, 2, 3)


@pytest.mark.parametrize(
    ("dialect", "preset"),
    [(d, p) for d in FORMS for p in PUBLIC_MASKS if p.startswith(d)] + [("npr", "parallel_r1_seen")],
)
def test_the_packed_row_is_the_published_mask_in_log_probs_and_gradients(dialect: str, preset: str) -> None:
    """Two responses in one row against one dense forward each."""
    tokens, first = response(dialect, "12", "3", "31", blocks=2)
    _, second = response(dialect, "12", "2")
    model = tiny_model("tree")
    model.resize_token_embeddings(len(tokens.tokenizer))
    calls = [TrajectoryCall(t, c) for t in (first, second) for c in range(len(t.calls))]
    mixed = list(range(len(calls)))
    random.Random(0).shuffle(mixed)  # rows come in any order
    packed = pack_published([calls[at] for at in mixed], preset, tokens)
    assert packed.unique_tokens == sum(len(dense(t, preset, tokens).ids) for t in (first, second))
    logps = packed_logps(model, packed)
    weights = torch.randn(len(packed.where), generator=torch.Generator().manual_seed(0)).tolist()
    ours = [logps[packed.where[mixed.index(at)]] for at in range(len(calls))]
    expected: list[torch.Tensor] = []
    for trajectory in (first, second):
        row = dense(trajectory, preset, tokens)
        logits = model(
            input_ids=row.ids[None],
            position_ids=row.positions[None],
            attention_mask=row.mask[None, None],
            use_cache=False,
        ).logits[0]
        predicted = logits[:-1].log_softmax(-1).gather(1, row.ids[1:, None])[:, 0]
        order = published.transcript(trajectory)
        for call in trajectory.calls:
            ahead = sum(len(trajectory.segments[s].ids) for s in order[: order.index(call.sampled)])
            expected.append(predicted[ahead - 1 : ahead - 1 + len(trajectory.segments[call.sampled].ids)])
    torch.testing.assert_close(torch.cat(ours), torch.cat(expected), atol=1e-5, rtol=1e-5)
    found = gradient(model, torch.stack([w * each.sum() for w, each in zip(weights, ours, strict=True)]).sum())
    wanted = gradient(model, torch.stack([w * each.sum() for w, each in zip(weights, expected, strict=True)]).sum())
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    trained = torch.cat(packed.where)
    assert int((packed.shift_labels >= 0).sum()) == len(trained) == len(set(trained.tolist()))


@pytest.mark.parametrize("dialect", FORMS)
def test_every_public_mask_but_one_trains_another_policy_than_was_sampled(dialect: str) -> None:
    tokens, trajectory = response(dialect, "12", "3", "3")
    model = tiny_model("tree")
    model.resize_token_embeddings(len(tokens.tokenizer))
    sampled = torch.cat(Meaning(trajectory).logps(model)).detach()
    for preset in {"parallel_r1": ("parallel_r1_seen",)}.get(dialect, (dialect, "parallel_r1_seen")):
        with torch.no_grad():
            found = published_logps(model, trajectory, preset, tokens)
        assert [len(logps) for logps in found] == [len(trajectory.segments[c.sampled].ids) for c in trajectory.calls]
        assert float((torch.cat(found) - sampled).abs().mean()) > 1e-4


def test_what_a_public_trainer_cannot_read_it_does_not_score() -> None:
    """An open block is refused by the parsers of tags; flat text needs none, but has no thread that was not joined."""
    tokens, whole = response("npr", "12", "3")
    assert scored_calls(whole, "npr", tokens) == [True] * 4
    cut = Trajectory("p", "npr", whole.segments, whole.calls[:3], "truncated", attention="stitched")
    assert scored_calls(cut, "npr", tokens) == [False] * 3
    assert scored_calls(cut, "parallel_r1_seen", tokens) == [True, False, False]
    assert [len(each) for each in published_logps(tiny_model("tree"), cut, "npr", tokens)] == [0, 0, 0]


def test_every_preset_has_a_row_in_the_table_that_explains_them() -> None:
    rows = [line.split("|")[1] for line in str(published.__doc__).splitlines() if line.startswith("| ")][1:]
    assert sorted(name.strip() for row in rows for name in row.split(",")) == sorted(PUBLIC_MASKS)
    assert doctest.testmod(published).failed == 0
