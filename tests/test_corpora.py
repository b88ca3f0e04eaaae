"""Published corpora: golden rows of every layout, and a name for every row that is dropped."""

import json
from typing import Any

import pytest
from corpus_rows import (
    APR_RUN,
    APR_TRACE,
    CHILD_0,
    CHILD_1,
    FINAL,
    HEAD,
    MULTIVERSE,
    MULTIVERSE_THOUGHT,
    NPR,
    PARALLEL_R1,
    PARALLEL_R1_PROMPT,
    SNAPSHOT,
    THREADS,
    THREADWEAVER,
    chat,
)

from apr_train.corpora import LAYOUTS, import_rows
from apr_train.corpora.base import Drop, Worked
from apr_train.corpora.blocks import MAX_DEPTH
from rewards.verify.countdown_search import countdown_search
from rollout.demonstration import Block, Demonstration
from rollout.search_trace import TAGS

TWO = (" It is 6,\n\nso 36.", " 81.")


def kept(layout: str, row: Any) -> Worked:
    worked = LAYOUTS[layout].read(row)
    assert isinstance(worked, Worked), worked
    return worked


def rows_of(texts: list[str]) -> list[tuple[str, object]]:
    return [(f"a:{k}", {"text": text}) for k, text in enumerate(texts, 1)]


# -- golden rows -------------------------------------------------------------------------------------------------------


def test_threadweaver_keeps_text_to_the_letter_and_drops_the_frames_that_our_client_writes() -> None:
    block = Block(((" dx", TWO[0]), (" dy", TWO[1])))
    assert kept("threadweaver", {"qwen_text": THREADWEAVER}) == Worked(
        "How far? \\boxed{}.",
        "117",
        Demonstration(("\nSplit. ", block, "\n\nSum 117.\n"), "\n\n\\boxed{117}"),
    )


def test_threadweaver_takes_the_older_conclusion_and_any_white_space_between_tags() -> None:
    text = THREADWEAVER
    older = text.replace("</Thread>\n</Parallel>", "</Thread>\n<Conclusion>\n36 and 81\n</Conclusion>\n</Parallel>")
    solution = kept("threadweaver", {"qwen_text": older}).demonstration
    assert isinstance(solution, Demonstration)
    assert solution.reasoning[1] == Block(((" dx", TWO[0]), (" dy", TWO[1])), "36 and 81")
    loose = text.replace("</Thread><Thread>", "</Thread>\n \t<Thread>").replace("\n<Outline>", "   <Outline>")
    assert kept("threadweaver", {"qwen_text": loose}) == kept("threadweaver", {"qwen_text": text})
    tight = text.replace("<Thread>\n", "<Thread>").replace("\n</Thread>", "</Thread>")
    assert kept("threadweaver", {"qwen_text": tight}) == kept("threadweaver", {"qwen_text": text})


def test_a_system_turn_and_a_text_without_any_block_are_no_reason_to_drop_a_row() -> None:
    row = {"qwen_text": chat("1+1?", "<think>\nTwo.\n</think>\n\\boxed{2}", system="Be brief.")}
    worked = kept("threadweaver", row)
    assert worked == Worked("1+1?", "2", Demonstration(("\nTwo.\n",), "\n\\boxed{2}"))
    assert worked.parts == 1


def test_multiverse_nests_and_its_suffix_is_no_part_of_the_problem() -> None:
    inner = Block(((" x", " X"), (" y", " Y")), "XY")
    outer = Block(((" even", " Two."), (" odd", (" Twice:\n", inner))), "Four.")
    pieces = ("\nLet's think in parallel.\n", outer, "\nDone.\n")
    expected = Worked("How many?", "4", Demonstration(pieces, "\n\nAnswer: \\boxed{4}"))
    assert kept("multiverse", {"text": MULTIVERSE}) == expected
    columns = {"deepseek_thinking_trajectory_parallel": MULTIVERSE_THOUGHT, "deepseek_attempt": "\\boxed{4}"}
    assert kept("multiverse", {"question": "How many?", **columns}) == expected
    sequential = "<Think>\nFour.\n</Think>\n\nAnswer: \\boxed{4}"
    row = {"text": chat("How many? Think step by step before answering.", sequential)}
    assert kept("multiverse", row).prompt == "How many?"


def test_parallel_r1_tags_in_the_prompt_are_text_and_the_answer_is_its_last_line() -> None:
    block = Block((("", "16-3=13"), ("", "16-3\nis 13")), "Both 13.")
    solution = Demonstration(("Let us see. ", block, "\nSo 13*2=26.\n"), "Final Answer: 26")
    assert kept("parallel_r1", {"problem": "eggs?", "text": PARALLEL_R1}) == Worked("eggs?", "26", solution)
    verl = {
        "prompt": [{"role": "user", "content": PARALLEL_R1_PROMPT}],
        "reward_model": {"ground_truth": "26.0"},
        "extra_info": {"question": PARALLEL_R1_PROMPT, "answer": PARALLEL_R1},
    }
    assert kept("parallel_r1", verl) == Worked(PARALLEL_R1_PROMPT, "26.0", solution)
    for early in ("16-3=13", "So 13*2=26."):  # in a path, and in the text after the block
        text = PARALLEL_R1.replace(early, "Final Answer: 13\nor not")
        assert kept("parallel_r1", {"problem": "eggs?", "text": text}).answer == "26"


def test_npr_has_blocks_in_a_row_and_its_answer_after_the_last_takeaway() -> None:
    first = Block(((" algebra", " A"), (" geometry", " B")), "Both.")
    second = Block(((" check", " C"),), "ok")
    expected = Worked("q?", "four", Demonstration((first, "\n\n", second), "\n\nSo \\boxed{4}"))
    row = {"problem": "q?", "prompt": "q? You must ...", "reference": "four", "trajectory": [NPR, "another"]}
    assert kept("npr", row) == expected
    assert expected.parts == 2
    assert kept("npr", {**row, "trajectory": f"<think>\n\n</think>\n\n{NPR}<|im_end|>"}) == expected
    assert kept("npr", {"text": chat("q?", NPR)}).answer == "4"


def test_apr_puts_two_children_and_two_snapshots_back_into_one_run() -> None:
    expected = Worked(HEAD, "62 from 31 2 1", APR_RUN)
    assert kept("apr", {"trace_dict": APR_TRACE}) == expected
    assert kept("apr", {"trace_dict": json.dumps(APR_TRACE)}) == expected
    assert APR_RUN.transcript() == FINAL.removeprefix(HEAD)
    assert countdown_search(FINAL, expected.answer) == "correct"
    corpus = import_rows(rows_of([f"<s> {text}</s>" for text in (CHILD_1, FINAL, SNAPSHOT, CHILD_0)]), "apr")
    assert corpus.rows == [("a:2", expected)]
    counts = {"read": 4, "kept": 1, "parallel": 1, "blocks": 1, "dropped": {}}
    assert corpus.report.as_dict() == {"source": "rows", "layout": "apr", **counts}


def test_apr_budgets_stay_in_the_prompt() -> None:
    snapshots = ["Sub Call Budget: 2 " + text for text in (SNAPSHOT, FINAL)]
    assert kept("apr", ap(main_calls=snapshots)).prompt == "Sub Call Budget: 2 " + HEAD


# -- rows that are dropped ---------------------------------------------------------------------------------------------


def tw(old: str, new: str) -> dict[str, str]:
    assert old in THREADWEAVER
    return {"qwen_text": THREADWEAVER.replace(old, new)}


def mv(old: str, new: str) -> dict[str, str]:
    assert old in MULTIVERSE
    return {"text": MULTIVERSE.replace(old, new)}


def pr(old: str, new: str) -> dict[str, str]:
    assert old in PARALLEL_R1
    return {"problem": "eggs?", "text": PARALLEL_R1.replace(old, new)}


def npr(old: str, new: str) -> dict[str, str]:
    assert old in NPR
    return {"problem": "q?", "trajectory": NPR.replace(old, new)}


def ap(**changes: Any) -> dict[str, Any]:
    return {"trace_dict": {**APR_TRACE, **changes}}


def nested(depth: int) -> str:
    numbers = [".".join("1" * min(k + 1, 8)) for k in range(depth)]
    opens = "".join(f"<Parallel><Goal><Outline>{n}: a</Outline></Goal><Path>{n}: b" for n in numbers)
    closes = "</Path><Conclusion>c</Conclusion></Parallel>" * depth
    return chat("q?", f"<Think>{opens}{closes}</Think>\\boxed{{1}}")


CHILDREN: list[Any] = APR_TRACE["sub_calls"][0]
UNKNOWN = SNAPSHOT.replace("level 1> Moving to Node #0,1", "level 1> Moving to Node #0,2")
SUFFIX_ALONE = chat(" Think step by step before answering.", "<Think></Think>\\boxed{1}")
DROPPED: list[tuple[str, Any, Drop]] = [
    ("threadweaver", {}, Drop.NO_TEXT),
    ("threadweaver", {"qwen_text": 5}, Drop.NO_TEXT),
    ("threadweaver", {"qwen_text": " \n"}, Drop.NO_TEXT),
    ("threadweaver", {"qwen_text": THREADWEAVER + "\ud800"}, Drop.NOT_UNICODE),
    ("threadweaver", {"qwen_text": "plain text"}, Drop.NO_CHAT),
    ("threadweaver", {"qwen_text": THREADWEAVER * 2}, Drop.NO_CHAT),
    ("threadweaver", {"qwen_text": "x" + THREADWEAVER}, Drop.NO_CHAT),
    ("threadweaver", {"qwen_text": THREADWEAVER + "more"}, Drop.NO_CHAT),
    ("threadweaver", {"qwen_text": THREADWEAVER.partition("<|im_start|>assistant")[0]}, Drop.NO_CHAT),
    ("threadweaver", {"qwen_text": chat(" ", "<think></think>\\boxed{1}")}, Drop.NO_PROMPT),
    ("threadweaver", {"qwen_text": THREADWEAVER.removesuffix("<|im_end|>\n")}, Drop.CUT_OFF),
    ("threadweaver", tw("</think>", ""), Drop.CUT_OFF),
    ("threadweaver", tw("<think>", ""), Drop.NO_THINK),
    ("threadweaver", tw("Split.", "Split.<think>"), Drop.NO_THINK),
    ("threadweaver", tw("</think>", "</think></think>"), Drop.NO_THINK),
    ("threadweaver", tw("\\boxed{117}", "117"), Drop.NO_ANSWER),
    ("threadweaver", tw("\\boxed{117}", "\\boxed{117"), Drop.NO_ANSWER),
    ("threadweaver", tw("\\boxed{117}", "\\boxed{117}<Thread>"), Drop.STRAY_TAG),
    ("threadweaver", tw("</Parallel>", ""), Drop.UNCLOSED),
    ("threadweaver", tw("</Thread>\n</Parallel>", ""), Drop.UNCLOSED),
    ("threadweaver", tw("Split.", "Split.</Thread>"), Drop.STRAY_TAG),
    ("threadweaver", tw("so 36.", "<Thread>36"), Drop.STRAY_TAG),
    ("threadweaver", tw("so 36.", "<Parallel>36"), Drop.STRAY_TAG),
    ("threadweaver", tw("so 36.", f"<Parallel>{THREADS}</Parallel>"), Drop.STRAY_TAG),
    ("threadweaver", tw("dx", "<Outline>dx"), Drop.STRAY_TAG),
    ("threadweaver", tw("</Thread><Thread>", "</Thread>x<Thread>"), Drop.STRAY_TEXT),
    ("threadweaver", tw("<Parallel>\n", "<Parallel>x"), Drop.STRAY_TEXT),
    ("threadweaver", tw(THREADS, ""), Drop.NO_THREADS),
    ("threadweaver", tw("<Outline>2: dy</Outline>", ""), Drop.NOT_AS_PLANNED),
    ("threadweaver", tw("2: 81.", "3: 81."), Drop.NUMBERS),
    ("threadweaver", tw("2: 81.", "81."), Drop.NUMBERS),
    ("threadweaver", tw("2: dy", "1: dy"), Drop.NUMBERS),
    ("multiverse", mv("<Conclusion>\nFour.\n</Conclusion>\n", ""), Drop.NO_CONCLUSION),
    ("multiverse", mv("<Conclusion>\nXY\n</Conclusion>\n", ""), Drop.NO_CONCLUSION),
    ("multiverse", mv("<Path>\n2.2:", "<Path>\n2.1:"), Drop.NUMBERS),
    ("multiverse", mv("2: odd", "1: odd"), Drop.NUMBERS),
    ("multiverse", {"text": MULTIVERSE.replace("2: odd", "1: odd").replace("2: Twice", "1: Twice")}, Drop.NUMBERS),
    ("multiverse", mv("<Outline>2.2: y</Outline>", ""), Drop.NOT_AS_PLANNED),
    ("multiverse", {"text": nested(MAX_DEPTH + 1)}, Drop.TOO_DEEP),
    ("multiverse", {"text": nested(3000)}, Drop.TOO_DEEP),
    ("multiverse", {"text": SUFFIX_ALONE}, Drop.NO_PROMPT),
    ("multiverse", {"deepseek_thinking_trajectory_parallel": "x"}, Drop.NO_TEXT),
    ("parallel_r1", {"problem": "eggs?"}, Drop.NO_TEXT),
    ("parallel_r1", pr("Final Answer: 26", "26"), Drop.NO_ANSWER),
    ("parallel_r1", pr("26", "many"), Drop.NO_ANSWER),
    ("parallel_r1", pr("<Summary>", ""), Drop.STRAY_TEXT),
    ("parallel_r1", pr("<Summary>\nBoth 13.\n</Summary>", "<Path>"), Drop.NO_CONCLUSION),
    ("parallel_r1", pr("</Parallel>\n<", "</Parallel> so <"), Drop.STRAY_TEXT),
    ("npr", {"problem": "q?", "trajectory": "Just \\boxed{4}"}, Drop.NO_BLOCK),
    ("npr", {"problem": "q?", "trajectory": []}, Drop.NO_TEXT),
    ("npr", npr("So \\boxed{4}", "So 4"), Drop.NO_ANSWER),
    ("npr", npr("<takeaway>\nBoth.\n</takeaway>\n\n", ""), Drop.NO_CONCLUSION),
    ("npr", npr("<step>1: C</step><takeaway>ok</takeaway>", "<step>1: C"), Drop.UNCLOSED),
    ("npr", npr("<step>\n2: B\n</step>\n", ""), Drop.NOT_AS_PLANNED),
    ("apr", {}, Drop.NO_TEXT),
    ("apr", {"trace_dict": "{"}, Drop.NO_TEXT),
    ("apr", {"trace_dict": {"main_calls": "x", "sub_calls": []}}, Drop.NO_TEXT),
    ("apr", {"text": CHILD_0}, Drop.ORPHAN),
    ("apr", ap(main_calls=[CHILD_0], sub_calls=[]), Drop.NO_ROOT),
    ("apr", ap(main_calls=["Moving to Node #,,\nCurrent State: x\n"], sub_calls=[]), Drop.NO_ROOT),
    ("apr", ap(main_calls=[FINAL], sub_calls=[]), Drop.SNAPSHOTS),
    ("apr", ap(main_calls=[SNAPSHOT, FINAL.replace("No Solution in", "Goal Reached in")]), Drop.SNAPSHOTS),
    ("apr", ap(main_calls=[SNAPSHOT + "x", FINAL]), Drop.SNAPSHOTS),
    ("apr", ap(main_calls=[UNKNOWN, FINAL]), Drop.SPAWN),
    ("apr", ap(sub_calls=[CHILDREN[:1]]), Drop.CHILDREN),
    ("apr", ap(sub_calls=[CHILDREN[::-1]]), Drop.CHILDREN),
    ("apr", ap(sub_calls=[CHILDREN, CHILDREN]), Drop.CHILDREN),
    ("apr", ap(sub_calls=[[5, 6]]), Drop.CHILDREN),
    ("apr", ap(sub_calls=[[{"main_calls": [CHILD_0], "sub_calls": [CHILDREN]}, CHILDREN[1]]]), Drop.TOO_DEEP),
]


@pytest.mark.parametrize(("layout", "row", "reason"), DROPPED)
def test_a_row_that_cannot_be_used_is_dropped_under_its_name(layout: str, row: Any, reason: Drop) -> None:
    assert LAYOUTS[layout].read(row) == reason


def test_every_reason_has_a_row_that_it_drops() -> None:
    told_by_the_loop = {Drop.NOT_A_ROW, Drop.REPEATED}
    assert {reason for *_, reason in DROPPED} | told_by_the_loop == set(Drop)


def test_a_report_counts_every_row_once_and_names_the_first_of_each_reason() -> None:
    good, bad = {"qwen_text": THREADWEAVER}, tw("2: 81.", "81.")
    rows = [(f"t:{k}", row) for k, row in enumerate([bad, good, None, [1], good, bad, {}], 1)]
    assert import_rows(rows, "threadweaver", "t").report.as_dict() == {
        **{"source": "t", "layout": "threadweaver", "read": 7, "kept": 1, "parallel": 1, "blocks": 1},
        "dropped": {
            Drop.NOT_A_ROW: {"rows": 2, "first": "t:3"},
            Drop.NUMBERS: {"rows": 2, "first": "t:1"},
            Drop.NO_TEXT: {"rows": 1, "first": "t:7"},
            Drop.REPEATED: {"rows": 1, "first": "t:5"},
        },
    }


def test_apr_children_go_to_the_run_that_tells_of_what_they_found() -> None:
    lost = CHILD_1.partition("Exploring")[0] + "No solution found.\n"  # the same prompt, under a narrower beam
    told = "<Sub Searches>\n<No Solution in Sub Search 0 at level 1 at Node #0,0>\n"
    told += "<No Solution in Sub Search 1 at level 1 at Node #0,1>\n<End Sub Searches>\nNo solution found.\n"
    failed = SNAPSHOT.partition(TAGS[0])[0] + told
    texts = [SNAPSHOT, CHILD_0, lost, CHILD_0, CHILD_1, FINAL, SNAPSHOT, failed]
    corpus = import_rows(rows_of(texts), "apr")
    assert [where for where, _ in corpus.rows] == ["a:6", "a:8"]
    assert not corpus.report.rows


def test_apr_texts_of_no_run_are_counted_and_no_run_takes_the_children_of_another() -> None:
    lost = import_rows(rows_of([FINAL, SNAPSHOT, CHILD_0, CHILD_0]), "apr").report
    assert (lost.kept, lost.rows) == (0, {Drop.CHILDREN: 1, Drop.ORPHAN: 1})
    other = FINAL.removesuffix("\n") + " \n"  # another run of the same problem, whose children are not there
    twice = import_rows(rows_of([FINAL, other, SNAPSHOT, CHILD_0, CHILD_1]), "apr").report
    assert (twice.kept, twice.rows) == (1, {Drop.CHILDREN: 1})
