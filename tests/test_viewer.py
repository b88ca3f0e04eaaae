"""What the viewer shows is what was recorded: text to the letter, lengths as measured, nothing that obeys a model."""

import base64
import html
import json
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from made_rollouts import HOSTILE, forked, hostile_text, random_dag
from stitched_trees import random_trajectory
from trees import grow, judged

from apr_train.stored import StoredError, line_of, read_groups, read_recorded, recorded
from rollout.critical_path import counted, critical_segments, finish_times, measure
from rollout.trajectory import Call, Segment, Trajectory
from rollout.viewer import Recorded, ViewerError, page
from rollout.viewer.columns import packed
from rollout.viewer.order import reading_order
from rollout.viewer.page import SCRIPTS, static
from rollout.viewer.pieces import Vocabulary, pieces, shown_lines

STATIC = ROOT / "rollout/viewer/static"
KINDS = {"u1": "<u1", "u2": "<u2", "u4": "<u4", "i2": "<i2", "f4": "<f4", "f8": "<f8"}


def unpacked(block: str) -> dict[str, Any]:
    """What the page's script makes of its data, worked out once more."""
    raw = zlib.decompress(base64.b64decode(block))
    length = int.from_bytes(raw[:4], "little")
    header = json.loads(raw[4 : 4 + length])
    for name, (kind, place, count) in header["columns"].items():
        assert (4 + length + place) % np.dtype(KINDS[kind]).itemsize == 0, f"{name}: a view of it would throw"
        header[name] = np.frombuffer(raw, KINDS[kind], count, 4 + length + place)
    return header


def data_of(text: str) -> dict[str, Any]:
    found = re.findall(r'id="data">([^<]*)</script>', text)
    assert len(found) == 1
    return unpacked(found[0])


def random_ones(seed: int, count: int = 20) -> list[Trajectory]:
    rng = random.Random(seed)
    trees = [random_trajectory(rng, (1, 2), range(5, 30)) for _ in range(count // 2)]
    return [*trees, *(random_dag(rng, rng.randint(2, 10)) for _ in range(count - len(trees)))]


def record(trajectory: Trajectory, **more: Any) -> Recorded:
    return Recorded(1, trajectory, "correct", **more)


# The critical path


def chains(trajectory: Trajectory, index: int) -> list[list[int]]:
    """Every chain of segments that ends with this one, by brute force."""
    parents = trajectory.segments[index].parents
    return [[*chain, index] for parent in parents for chain in chains(trajectory, parent)] or [[index]]


@given(st.integers(0, 10**6))
def test_the_critical_path_is_a_longest_chain_of_all_chains(seed: int) -> None:
    trajectory = random_dag(random.Random(seed), 8)
    everything = [chain for index in range(8) for chain in chains(trajectory, index)]
    lengths = [sum(counted(trajectory.segments[i]) for i in chain) for chain in everything]
    chain = critical_segments(trajectory)
    assert sum(counted(trajectory.segments[i]) for i in chain) == max(lengths) == measure(trajectory).l_critical
    assert chain in everything


def test_an_empty_trajectory_has_no_critical_path() -> None:
    empty = Trajectory("p", "test", (), (), "truncated")
    assert critical_segments(empty) == [] and page([record(empty)])


# Reading order


def test_a_block_is_read_where_it_was_forked_however_it_was_recorded() -> None:
    """A root that forks twice; the second block's threads were recorded before the first one's ended."""
    segments = (
        Segment("prompt", (1,)),
        Segment("sampled", (2,), (0.0,), (0,)),
        Segment("sampled", (3,), (0.0,), (1,)),
        Segment("sampled", (4,), (0.0,), (2,), (1, 1)),
        Segment("sampled", (5,), (0.0,), (1,), (0, 2)),
        Segment("sampled", (6,), (0.0,), (1,), (0, 1)),
        Segment("sampled", (7,), (0.0,), (6 - 1,), (0, 1, 0, 1)),
        Segment("sampled", (8,), (0.0,), (5, 4, 3)),
        Segment("sampled", (9,), (0.0,), (6,), (0, 1)),
    )
    assert reading_order(Trajectory("p", "test", segments, (), "answered")) == [0, 1, 5, 6, 8, 4, 2, 3, 7]


@given(st.integers(0, 10**6))
def test_every_segment_is_read_once_and_a_thread_in_its_own_order(seed: int) -> None:
    for trajectory in random_ones(seed, 4):
        order = reading_order(trajectory)
        assert sorted(order) == list(range(len(trajectory.segments)))
        for name in {segment.thread for segment in trajectory.segments}:
            own = [index for index in order if trajectory.segments[index].thread == name]
            assert own == sorted(own)


# Pieces of text


def bytes_decode(ids: Sequence[int]) -> str:
    """A byte tokenizer, as the byte-level ones of large models are for rare characters."""
    return bytes(ids).decode(errors="replace")


@given(st.text(max_size=30))
def test_pieces_are_the_text_to_the_letter_also_of_characters_in_several_tokens(text: str) -> None:
    ids = list(text.encode(errors="replace"))
    found = pieces(ids, bytes_decode, {})
    assert len(found) == len(ids)
    assert "".join(found) == bytes_decode(ids)


@given(st.lists(st.integers(0, 255), max_size=12))
def test_pieces_of_broken_bytes_are_still_what_the_decoder_says(ids: list[int]) -> None:
    assert "".join(pieces(ids, bytes_decode, {})) == bytes_decode(ids)


def test_a_character_is_shown_at_the_token_that_completes_it() -> None:
    assert pieces(list("aé€b".encode()), bytes_decode, {}) == ["a", "", "é", "", "", "€", "b"]


def test_a_decoder_that_looks_at_neighbours_gives_each_token_its_own_part() -> None:
    def joined(ids: Sequence[int]) -> str:  # a space between words and none before the first, as sentencepiece
        return " ".join(f"w{i}" for i in ids)

    assert pieces([7, 8, 7], joined, {}) == ["w7", " w8", " w7"]


def test_ids_that_the_tokenizer_lacks_are_named() -> None:
    for token in (-1, 100):
        with pytest.raises(ViewerError, match=f"no token {token}: give the run's own"):
            Vocabulary(str, 100).numbers([5, token])


def test_what_obeys_nothing_is_left_and_what_a_screen_would_obey_is_written_out() -> None:
    assert shown_lines("a\n\tä€😀") == "a\n\tä€😀"
    assert shown_lines("\x1b[2J\r\u202e\ud800\u2028") == "\\x1b[2J\\r\\u202e\\ud800\\u2028"


# The columns


@given(st.integers(0, 10**6))
def test_columns_hold_every_segment_parent_token_and_log_prob(seed: int) -> None:
    trajectories = random_ones(seed, 6)
    found = unpacked(packed([record(each) for each in trajectories], Vocabulary(None)))
    segments = [segment for each in trajectories for segment in each.segments]
    assert found["first_segment"].tolist()[-1] == len(segments)
    assert [found["names"][i] for i in found["thread"]] == [list(s.thread) for s in segments]
    assert [found["origins"][o & 3] for o in found["origin"]] == [s.origin for s in segments]
    finish = [when for each in trajectories for when in finish_times(each)]
    assert (found["start"] + [counted(s) for s in segments]).tolist() == finish
    for index, segment in enumerate(segments):
        own = slice(found["first_token"][index], found["first_token"][index + 1])
        assert [found["ids"][t] for t in found["token"][own]] == list(segment.ids)
        nats = found["logprob"][own].tolist()
        if segment.logprobs is None:
            assert set(nats) <= {-32768}
        else:
            assert nats == pytest.approx([1000 * value for value in segment.logprobs], abs=0.51)
        parents = found["parents"][found["first_parent"][index] : found["first_parent"][index + 1]]
        assert parents.tolist() == list(segment.parents)


def test_figures_are_those_of_measure_and_what_is_unknown_is_not_zero() -> None:
    trajectory = grow(20, [[30], [50]], 20)
    more = replace(trajectory, notes={"thread/forced close": 2})
    lines = [
        record(more, reward=1.1, terms={"outcome": 1.0, "speed": 0.1}),
        record(trajectory),
        record(more, terms={"x": 2}),
    ]
    found = unpacked(packed(lines, Vocabulary(None)))
    assert found["l_total"].tolist() == [120] * 3 and found["l_critical"].tolist() == [90] * 3
    assert found["threads"].tolist() == [2] * 3
    assert found["reward"][0] == pytest.approx(1.1) and np.isnan(found["reward"][1:]).all()
    assert found["terms"] == ["outcome", "speed", "x"]
    assert np.isnan(found["term0"][1:]).all() and found["term2"][2] == 2
    assert found["notes"] == {"0": [["thread/forced close", 2]], "2": [["thread/forced close", 2]]}
    assert "gap" not in found


def test_the_gap_is_the_trainers_log_prob_less_the_samplers() -> None:
    segments = (Segment("prompt", (1,)), Segment("sampled", (2, 3), (-1.0, -2.0), (0,)))
    trajectory = Trajectory("p", "test", segments, (Call((0,), 1, "final"),), "answered")
    found = unpacked(
        packed([record(trajectory, trainer_logprobs=[[-1.5, -2.0]]), record(trajectory)], Vocabulary(None))
    )
    assert found["gap"].tolist() == pytest.approx([np.nan, -0.5, 0.0, np.nan, np.nan, np.nan], nan_ok=True)
    for wrong in ([[-1.0]], [], [[-1.0, -2.0], None]):
        with pytest.raises(ViewerError, match="do not fit its calls"):
            packed([record(trajectory, trainer_logprobs=wrong)], Vocabulary(None))


def test_log_probs_beyond_all_bounds_are_cut_off_and_not_wrapped_around() -> None:
    segments = (Segment("prompt", (1,)), Segment("sampled", (2, 3, 4), (-1e9, float("-inf"), 40.0), (0,)))
    trajectory = Trajectory("p", "test", segments, (Call((0,), 1, "final"),), "answered")
    assert unpacked(packed([record(trajectory)], Vocabulary(None)))["logprob"][1:].tolist() == [-32767, -32767, 32767]


def test_a_number_that_the_page_cannot_hold_is_one_line() -> None:
    with pytest.raises(ViewerError, match="too large"):
        page([replace(record(grow(5)), step=10**400)])


# The page


def test_nothing_a_model_wrote_stands_in_the_page_as_it_is() -> None:
    """Its texts are in the compressed block only, whose letters cannot end a script."""
    trajectory = replace(forked(random.Random(1), HOSTILE[0], 3, 20), dialect=HOSTILE[1], notes={HOSTILE[2]: 1})
    lines = [record(trajectory, flaw=HOSTILE[1], terms={HOSTILE[0]: 1.0})]
    text = page(lines, hostile_text, title=HOSTILE[1])
    plain = page([record(grow(5))], title="t")
    block = re.compile(r'(id="data">)[^<]*(</script>)')
    assert re.fullmatch(r"[A-Za-z0-9+/=]+", re.findall(r'id="data">([^<]*)</script>', text)[0])
    emptied = [block.sub(r"\1\2", each) for each in (text, plain)]
    assert emptied[0].replace(html.escape(HOSTILE[1]), "t") == emptied[1]
    assert "{{" not in emptied[0]


def test_the_policy_names_the_script_and_the_style_by_what_they_are() -> None:
    import hashlib

    text = page([record(grow(5))])
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)[0]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for tag in ("script", "style"):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(inside) == 1
        own = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{own}'" in policy


def test_no_file_of_the_page_names_another_host_or_makes_markup_of_text() -> None:
    files = [file for file in STATIC.iterdir() if file.is_file()]
    assert {file.name for file in files} == {*SCRIPTS, "page.html", "view.css"}
    for file in files:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//\w+\.|@import|url\((?!#)", text), file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", text), (
            file.name
        )


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
def test_every_text_colour_is_readable_on_its_ground(scheme: int) -> None:
    """WCAG AA: a contrast of 4.5, in the light scheme and in the dark one."""
    schemes = re.findall(r":root \{(.*?)\}", static("view.css"), re.DOTALL)
    colours = dict(re.findall(r"--(\w+(?:-\w+)?): (#[0-9a-f]{6})", schemes[scheme]))
    inks = ("ink", "soft", "sampled", "prompt", "critical", "right", "wrong")
    grounds: dict[str, tuple[str, ...]] = dict.fromkeys(inks, ("ground",))
    grounds |= {"ink": ("ground", "raised", "chosen"), "soft": ("ground", "raised")}
    grounds |= dict.fromkeys(("right", "wrong"), ("ground", "raised", "chosen"))
    grounds |= {"forced": ("forced-ground",)}
    for ink, behind in grounds.items():
        for ground in behind:
            light, dark = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


# Recorded lines


def test_terms_are_recorded_and_read_and_lines_without_them_still_open(tmp_path: Path) -> None:
    scored = judged(grow(20, [[30], [50]], 20))
    old, new = (
        line_of(recorded(3, scored, 1.1, 0.1)),
        line_of(recorded(3, scored, 1.1, 0.1, {"outcome": 1.0, "speed": 0.1})),
    )
    assert "terms" not in json.loads(old)
    file = tmp_path / "rollouts.jsonl"
    unjudged = line_of(recorded(3, judged(grow(5), "timeout"), terms={"outcome": float("nan")}))
    file.write_text(old + new + unjudged)
    found = read_recorded([file])
    assert [each.terms for each in found] == [{}, {"outcome": 1.0, "speed": 0.1}, {}]
    assert [each.reward for each in found] == [1.1, 1.1, None]
    assert len(read_groups([file])) == 1
    assert page(found)


@pytest.mark.parametrize(
    "field",
    [
        {"terms": []},
        {"terms": {"a": "b"}},
        {"terms": {"a": None}},
        {"reward": "much"},
        {"advantage": [1]},
        {"flaw": 3},
        {"trainer_logprobs": [["x"]]},
        {"trainer_logprobs": 5},
        {"reward": True},
        {"threads": [1]},
        {"threads": {"0.1": True}},
        {"threads": {"0.1": 1.5}},
        {"threads": {"0.1": float("nan")}},
        {"threads": {"": 1.0}},
        {"threads": {"9" * 5000: 1.0}},
    ],
)
def test_a_field_of_the_wrong_type_is_named_with_its_line(tmp_path: Path, field: dict[str, Any]) -> None:
    line = json.loads(line_of(recorded(3, judged(grow(5)), 1.0, 0.0))) | field
    file = tmp_path / "rollouts.jsonl"
    file.write_text(json.dumps(line) + "\n")
    with pytest.raises(StoredError, match=r"rollouts\.jsonl:1 is no recorded rollout"):
        read_recorded([file])
