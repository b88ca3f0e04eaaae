"""Published corpora: what a layout writes is what is read, and no text or row of any shape breaks an import."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from corpus_rows import (
    APR_TRACE,
    CHILD_0,
    CHILD_1,
    FINAL,
    MULTIVERSE,
    MULTIVERSE_THOUGHT,
    NPR,
    PARALLEL_R1,
    SNAPSHOT,
    THREADWEAVER,
    row_of,
    trace_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_train.corpora import LAYOUTS, import_rows
from apr_train.corpora.base import Worked
from apr_train.tasks.search import apr as solve
from rollout.demonstration import Block, Demonstration
from rollout.search_trace import TAGS, SearchRun

NAMES = "Parallel Outlines Outline Thread Conclusion Goal Path Summary guideline plan step takeaway think Think"
TEXT = st.text("ab1 :\n<>/", max_size=8).filter(lambda text: not any(f"{name}>" in text for name in NAMES.split()))
SOLID = TEXT.map(lambda text: f"x{text}x")
"""Begins and ends with what is no frame."""
BOX = TEXT.map(lambda text: f"x{text}\\boxed{{5}}")


def blocks(bodies: st.SearchStrategy[Any], *, outlines: bool = True, concludes: bool = True) -> st.SearchStrategy[Any]:
    threads = st.lists(st.tuples(TEXT if outlines else st.just(""), bodies), min_size=1, max_size=3).map(tuple)
    return st.builds(Block, threads, TEXT.filter(bool) if concludes else st.just(""))


def pieces(block: st.SearchStrategy[Any], *end: str, least: int = 0) -> st.SearchStrategy[Any]:
    """Text, block, text, block, and the end: never two texts side by side, which a file cannot tell apart."""
    pairs = st.lists(st.tuples(SOLID, block), min_size=least, max_size=2)
    return pairs.map(lambda found: (*(piece for pair in found for piece in pair), *end))


NEST = st.one_of(SOLID, pieces(blocks(SOLID), "x", least=1))
DEMOS = {
    "threadweaver": st.builds(Demonstration, pieces(blocks(TEXT) | blocks(TEXT, concludes=False), "x"), BOX),
    "multiverse": st.builds(Demonstration, pieces(blocks(NEST), "x"), BOX),
    "npr": st.builds(Demonstration, pieces(blocks(TEXT), least=1), BOX),
    "parallel_r1": st.builds(Demonstration, pieces(blocks(TEXT, outlines=False), "x\n"), st.just("Final Answer: 5")),
}


@pytest.mark.parametrize("layout", DEMOS)
@settings(max_examples=60)
@given(data=st.data())
def test_what_a_layout_writes_is_what_its_importer_reads(layout: str, data: st.DataObject) -> None:
    demo = data.draw(DEMOS[layout])
    assert LAYOUTS[layout].read(row_of(layout, demo)) == Worked("q?", "5", demo)


@settings(max_examples=40)
@given(
    problems=st.dictionaries(
        st.lists(st.integers(1, 30), min_size=3, max_size=4).map(tuple), st.integers(2, 60), min_size=1, max_size=3
    ),
    seed=st.integers(0, 10_000),
)
def test_searches_come_back_from_traces_and_from_shuffled_texts(problems: dict[Any, int], seed: int) -> None:
    rng = random.Random(seed)
    runs = {given: solve(target, given, rng, beam=3, child_beam=4) for given, target in problems.items()}
    traces = [trace_of(problems[given], given, run) for given, run in runs.items()]
    read = [LAYOUTS["apr"].read({"trace_dict": trace}) for trace in traces]
    assert [worked.demonstration for worked in read if isinstance(worked, Worked)] == list(runs.values())
    texts = [text for trace in traces for text in trace["main_calls"]]
    texts += [text for trace in traces for sub in trace["sub_calls"] for child in sub for text in child["main_calls"]]
    rng.shuffle(texts)
    corpus = import_rows([(f"a:{k}", {"text": text}) for k, text in enumerate(texts, 1)], "apr")
    found: set[SearchRun | Demonstration] = {worked.demonstration for _, worked in corpus.rows}
    assert found == set(runs.values())
    assert not corpus.report.rows


MAKE: dict[str, list[Callable[[str], Any]]] = {
    "threadweaver": [lambda text: {"qwen_text": text}],
    "multiverse": [
        lambda text: {"text": text},
        lambda text: {"question": text, "deepseek_thinking_trajectory_parallel": text, "deepseek_attempt": text},
    ],
    "parallel_r1": [lambda text: {"problem": text, "text": text}, lambda text: {"extra_info": text}],
    "npr": [lambda text: {"problem": "q?", "trajectory": text}, lambda text: {"problem": "q?", "trajectory": [text]}],
    "apr": [
        lambda text: {"text": text},
        lambda text: {"trace_dict": text},
        lambda text: {"trace_dict": {**APR_TRACE, "main_calls": [text, FINAL]}},
        lambda text: {"trace_dict": {**APR_TRACE, "main_calls": [SNAPSHOT, text]}},
        lambda text: {"trace_dict": {**APR_TRACE, "sub_calls": [[text, CHILD_1]]}},
    ],
}
VALID = {
    "threadweaver": [THREADWEAVER],
    "multiverse": [MULTIVERSE, MULTIVERSE_THOUGHT],
    "parallel_r1": [PARALLEL_R1],
    "npr": [NPR],
    "apr": [SNAPSHOT, FINAL, CHILD_0, CHILD_1],
}
SCRAPS = [
    *("<Parallel>", "</Thread>", "<think>", "</Think>", "<Path>", "</step>", "<|im_end|>", "<|im_start|>", "\\boxed{"),
    *("1:", "\n", "\ud800", "0,", "Moving to Node #", "[", "}", *TAGS),
]


def mutated(text: str, rng: random.Random, noise: str) -> str:
    """Something put in, left out, told twice or turned round."""
    low, high = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    match rng.randrange(4):
        case 0:
            return text[:low] + rng.choice([*SCRAPS, noise]) + text[low:]
        case 1:
            return text[:low] + text[min(high, low + 30) :]
        case 2:
            return text[:low] + text[low : low + 60] * 2 + text[low + 60 :]
        case _:
            return text[:low] + text[low:high][::-1] + text[high:]


@pytest.mark.parametrize("layout", MAKE)
@settings(max_examples=150)
@given(seed=st.integers(0, 10**9), noise=st.text(max_size=5))
def test_no_text_of_any_kind_is_an_error(layout: str, seed: int, noise: str) -> None:
    rng = random.Random(seed)
    texts: list[str] = []
    for text in VALID[layout]:
        for _ in range(rng.randint(0, 6)):
            text = mutated(text, rng, noise)
        texts.append(text)
    rows = [(f"r:{k}", make(text)) for k, (text, make) in enumerate((t, m) for t in texts for m in MAKE[layout])]
    report = import_rows(rows, layout).report
    assert report.read == len(rows)
    assert report.kept + sum(report.rows.values()) <= report.read


COLUMNS = ["text", "qwen_text", "problem", "trajectory", "trace_dict", "main_calls", "sub_calls", "extra_info"]
SCALARS = st.none() | st.integers() | st.text(max_size=4) | st.floats() | st.sampled_from([THREADWEAVER, NPR, FINAL])


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=80)
@given(
    row=st.recursive(
        SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(COLUMNS), inner), max_leaves=12
    )
)
def test_no_row_of_any_shape_is_an_error(layout: str, row: Any) -> None:
    assert import_rows([("r:1", row)], layout).report.read == 1
