"""The packed trie against a brute-force trie of prefixes, rows worked out by hand, refusals, time and memory."""

import doctest
import random
import time
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr_train import packing
from apr_train.packing import IGNORE, PackedTrie, PackingError, pack
from apr_train.tree_attention import plan_attention

Prefix = tuple[tuple[int, int], ...]

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=8)
"""Three token ids only: rows share prefixes, contain each other and repeat."""


def prefixes(row: list[int]) -> list[Prefix]:
    """For each input position of a row, the (token, next token) pairs up to it: what the position stands for."""
    pairs = list(pairwise(row))
    return [tuple(pairs[: i + 1]) for i in range(len(pairs))]


def meaning(rows: list[list[int]], trie: PackedTrie) -> dict[int, Prefix]:
    """Packed position -> its prefix, by way of `where`; fails when one position would stand for two."""
    meant: dict[int, Prefix] = {}
    for row, index in zip(rows, trie.where, strict=True):
        for position, prefix in zip(index.tolist(), prefixes(row), strict=True):
            assert meant.setdefault(position, prefix) == prefix
    return meant


def exits(trie: PackedTrie) -> list[int]:
    s = trie.segments
    return np.repeat(s.exit_S, s.end_S - s.start_S).tolist()


@given(ROWS.filter(lambda rows: max(map(len, rows)) > 1))
def test_each_distinct_prefix_is_stored_once_with_its_token_label_and_depth(rows: list[list[int]]) -> None:
    trie = pack(rows)
    meant = meaning(rows, trie)
    distinct = {prefix for row in rows for prefix in prefixes(row)}
    assert sorted(meant) == list(range(trie.unique_tokens))
    assert sorted(meant.values()) == sorted(distinct)
    assert trie.raw_tokens == sum(len(row) - 1 for row in rows)
    order = [meant[i] for i in range(trie.unique_tokens)]
    assert trie.input_ids.tolist() == [prefix[-1][0] for prefix in order]
    assert trie.shift_labels.tolist() == [prefix[-1][1] for prefix in order]
    assert trie.position_ids.tolist() == [len(prefix) - 1 for prefix in order]


@given(ROWS.filter(lambda rows: max(map(len, rows)) > 1))
def test_segment_exits_say_exactly_who_is_an_ancestor(rows: list[list[int]]) -> None:
    trie = pack(rows)
    meant, exit_N = meaning(rows, trie), exits(trie)
    for i, below in meant.items():
        for j, above in meant.items():
            assert (j <= i < exit_N[j]) == (below[: len(above)] == above)


@given(ROWS.filter(lambda rows: max(map(len, rows)) > 1))
def test_the_longest_row_of_each_tree_is_contiguous(rows: list[list[int]]) -> None:
    trie = pack(rows)
    longest: dict[Prefix, int] = {}
    for row in rows:
        if len(row) > 1:
            root = prefixes(row)[0]
            longest[root] = max(longest.get(root, 0), len(row) - 1)
    runs = [index for row, index in zip(rows, trie.where, strict=True) if len(row) > 1]
    for root, length in longest.items():
        same = [i for i in runs if len(i) == length and meaning(rows, trie)[int(i[0])] == root]
        assert any((index.diff() == 1).all() for index in same)


@given(ROWS.filter(lambda rows: max(map(len, rows)) > 1), st.data())
def test_a_position_has_a_label_exactly_when_some_row_trains_it(rows: list[list[int]], data: st.DataObject) -> None:
    contexts = [data.draw(st.integers(1, len(row))) for row in rows]
    trie = pack(rows, contexts)
    trained = {prefix for row, context in zip(rows, contexts, strict=True) for prefix in prefixes(row)[context - 1 :]}
    meant = meaning(rows, trie)
    expected = [prefix[-1][1] if prefix in trained else IGNORE for _, prefix in sorted(meant.items())]
    assert trie.shift_labels.tolist() == expected


def test_fork_join_trajectory_packs_as_worked_out_by_hand() -> None:
    # Root 1 2 forks; thread one is 7 3, thread two 8 4; the join re-reads both and answers 9.
    rows = [[1, 2], [1, 2, 7, 3], [1, 2, 8, 4], [1, 2, 7, 3, 8, 4, 9]]
    trie = pack(rows, [1, 3, 3, 6])
    assert trie.input_ids.tolist() == [1, 2, 7, 3, 8, 4, 2, 8]
    assert trie.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 1, 2]
    assert trie.shift_labels.tolist() == [2, IGNORE, 3, IGNORE, IGNORE, 9, IGNORE, 4]
    assert [index.tolist() for index in trie.where] == [[0], [0, 1, 2], [0, 6, 7], [0, 1, 2, 3, 4, 5]]
    assert (trie.raw_tokens, trie.unique_tokens) == (13, 8)


def test_equal_rows_share_all_positions_and_a_prefix_row_adds_none() -> None:
    trie = pack([[4, 5, 6], [4, 5, 6], [4, 5]])
    assert trie.unique_tokens == 2
    assert [index.tolist() for index in trie.where] == [[0, 1], [0, 1], [0]]


def test_rows_of_other_prompts_form_trees_of_their_own() -> None:
    trie = pack([[1, 2, 3], [9, 2, 3]])
    assert trie.segments.parent_S.tolist() == [-1, -1]
    assert trie.position_ids.tolist() == [0, 1, 0, 1]


def test_a_row_of_one_token_takes_no_place() -> None:
    trie = pack([[7], [7, 8]])
    assert [index.tolist() for index in trie.where] == [[], [0]]


@pytest.mark.parametrize(
    ("rows", "contexts", "message"),
    [
        ([], None, "nothing to pack"),
        ([[3], [4]], None, "nothing to pack"),
        ([[1, 2], []], None, "row 1 is empty"),
        ([[1, -2]], None, "row 0 holds a token id"),
        ([[1, 2**31]], None, "row 0 holds a token id"),
        ([[1, 2]], [0], "context length 0"),
        ([[1, 2]], [3], "context length 3"),
        ([[1, 2]], [1, 1], "1 rows but 2 context lengths"),
    ],
)
def test_rows_that_cannot_be_packed_are_named(rows: list[list[int]], contexts: list[int] | None, message: str) -> None:
    with pytest.raises(PackingError, match=message):
        pack(rows, contexts)


def test_the_largest_token_ids_survive_the_pair_key() -> None:
    trie = pack([[2**31 - 1, 2**31 - 1, 0]])
    assert trie.input_ids.tolist() == [2**31 - 1, 2**31 - 1]
    assert trie.shift_labels.tolist() == [2**31 - 1, 0]


def long_trajectory() -> list[list[int]]:
    """The calls of one trajectory of about 32k tokens: 5 blocks of 2 or 3 threads, each join re-reads them."""
    rng = random.Random(0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(150_000) for _ in range(count)]

    root, rows = tokens(600), []
    for width in (2, 3, 2, 3, 2):
        root = root + tokens(1800)
        rows.append(root)
        threads = [tokens(1850) for _ in range(width)]
        rows += [root + thread for thread in threads]
        root = root + [token for thread in threads for token in thread]
    return [*rows, root + tokens(500)]


def test_trie_and_plan_of_a_32k_trajectory_take_under_a_second_and_200_megabytes() -> None:
    rows = long_trajectory()
    assert max(map(len, rows)) > 32_000
    started = time.process_time()
    plan_attention(pack(rows))
    seconds = time.process_time() - started
    tracemalloc.start()
    plan_attention(pack(rows))
    megabytes = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    assert seconds < 1
    assert megabytes < 200


def test_the_worked_examples_of_the_documentation_hold() -> None:
    assert doctest.testmod(packing).failed == 0
