"""Rows of published corpora as their documents show them, and writers of more in the same layouts."""

from typing import Any

from rollout.demonstration import Demonstration
from rollout.search_trace import FULL, TAGS, SearchRun, child_prompt, render_spawn, root_line, states

CALLING, END_CALLING = TAGS[:2]


def chat(question: str, response: str, system: str = "") -> str:
    """As Qwen's template renders it."""
    before = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{before}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>\n"


PLAN = "<Outlines>\n<Outline>1: dx</Outline>\n<Outline>2: dy</Outline>\n</Outlines>"
THREADS = "<Thread>\n1: It is 6,\n\nso 36.\n</Thread><Thread>\n2: 81.\n</Thread>"
THREADWEAVER = chat(
    "How far? \\boxed{}.",
    f"<think>\nSplit. <Parallel>\n{PLAN}\n{THREADS}\n</Parallel>\n\nSum 117.\n</think>\n\n\\boxed{{117}}",
)

INNER = (
    "<Parallel>\n<Goal>\n<Outline>2.1: x</Outline>\n<Outline>2.2: y</Outline>\n</Goal>\n"
    "<Path>\n2.1: X\n</Path>\n<Path>\n2.2: Y\n</Path>\n<Conclusion>\nXY\n</Conclusion>\n</Parallel>"
)
MULTIVERSE_THOUGHT = (
    "<Think>\nLet's think in parallel.\n<Parallel>\n<Goal>\n<Outline>1: even</Outline>\n<Outline>2: odd</Outline>\n"
    f"</Goal>\n<Path>\n1: Two.\n</Path>\n<Path>\n2: Twice:\n{INNER}\n</Path>\n<Conclusion>\nFour.\n</Conclusion>\n"
    "</Parallel>\nDone.\n</Think>"
)
MULTIVERSE = chat(
    "How many? Think step by step and in parallel before answering.",
    f"{MULTIVERSE_THOUGHT}\n\nAnswer: \\boxed{{4}}",
)

PARALLEL_R1 = (
    "Let us see. <Parallel><Path>\n16-3=13\n</Path><Path>\n16-3\nis 13\n</Path></Parallel>\n"
    "<Summary>\nBoth 13.\n</Summary>\nSo 13*2=26.\nFinal Answer: 26"
)
PARALLEL_R1_PROMPT = "Use <Parallel>, then <Path> ... </Path> twice, </Parallel> and <Summary>. Problem: eggs?"

NPR = (
    "<guideline>\n<plan>1: algebra</plan>\n<plan>2: geometry</plan>\n</guideline>\n"
    "<step>\n1: A\n</step>\n<step>\n2: B\n</step>\n<takeaway>\nBoth.\n</takeaway>\n\n"
    "<guideline><plan>1: check</plan></guideline><step>1: C</step><takeaway>ok</takeaway>\n\nSo \\boxed{4}"
)

HEAD = "Moving to Node #0\nCurrent State: 62:[31, 2, 1], Operations: []\n"
TRIED = (
    "Exploring Operation: 2-1=1, Resulting Numbers: [31, 1]\nGenerated Node #0,0: 62:[31, 1] Operation: 2-1=1\n"
    "Exploring Operation: 31*1=31, Resulting Numbers: [2, 31]\nGenerated Node #0,1: 62:[2, 31] Operation: 31*1=31\n"
)
SPAWN = (
    "<Calling Sub Searches>\n<Start Sub Search 0 at level 1> Moving to Node #0,0\n"
    "<Start Sub Search 1 at level 1> Moving to Node #0,1\n<End Calling Sub Searches>\n"
)
CHILD_0 = (
    "Moving to Node #0,0\nCurrent State: 62:[31, 1], Operations: ['2-1=1']\n"
    "Exploring Operation: 31+1=32, Resulting Numbers: [32]\n32,62 unequal: No Solution\nNo solution found.\n"
)
FOUND = "Exploring Operation: 2*31=62, Resulting Numbers: [62]\n62,62 equal: Goal Reached\n"
START_1 = "Moving to Node #0,1\nCurrent State: 62:[2, 31], Operations: ['31*1=31']\n"
CHILD_1 = START_1 + FOUND + START_1 + FOUND
JOIN = (
    "<Sub Searches>\n<No Solution in Sub Search 0 at level 1 at Node #0,0>\n"
    f"<Goal Reached in Sub Search 1 at level 1 at Node #0,1>\n{START_1}{FOUND}<End Sub Searches>\n"
)
END = (
    f"62,62 equal: Goal Reached\n{HEAD}Exploring Operation: 31*1=31, Resulting Numbers: [2, 31]\n"
    f"Generated Node #0,1: 62:[2, 31] Operation: 31*1=31\n{START_1}{FOUND}"
)
SNAPSHOT, FINAL = HEAD + TRIED + SPAWN, HEAD + TRIED + JOIN + END
APR_TRACE = {
    "main_calls": [SNAPSHOT, FINAL],
    "sub_calls": [[{"main_calls": [CHILD_0], "sub_calls": []}, {"main_calls": [CHILD_1], "sub_calls": []}]],
}
APR_RUN = SearchRun(
    (TRIED, END),
    (((0, 0), (0, 1)),),
    ((CHILD_0.split("\n", 2)[2], CHILD_1.split("\n", 2)[2]),),
)


FRAMES = {
    "threadweaver": ("<Parallel>\n<Outlines>\n", "Outline", "</Outlines>\n", "Thread", "Conclusion", "</Parallel>"),
    "multiverse": ("<Parallel>\n<Goal>\n", "Outline", "</Goal>\n", "Path", "Conclusion", "\n</Parallel>"),
    "npr": ("<guideline>\n", "plan", "</guideline>\n", "step", "takeaway", ""),
    "parallel_r1": ("<Parallel>", "", "", "Path", "Summary", ""),
}
"""Opening, item, end of the plan, thread, conclusion and end of a block."""


def written(pieces: Any, layout: str, label: str = "") -> str:
    """Reasoning in a published layout."""
    opens, item, planned, thread, conclusion, closes = FRAMES[layout]
    text = ""
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
            continue
        text += opens
        for k, (outline, _) in enumerate(piece.threads if item else (), start=1):
            text += f"<{item}>{label}{k}:{outline}</{item}>\n"
        text += planned
        for k, (_, body) in enumerate(piece.threads, start=1):
            number = f"{label}{k}:" if item else ""
            inner = written((body,) if isinstance(body, str) else body, layout, f"{label}{k}.")
            text += f"<{thread}>\n{number}{inner}\n</{thread}>"
        text += "" if item else "</Parallel>"
        if piece.conclusion or layout != "threadweaver":
            text += f"\n<{conclusion}>\n{piece.conclusion}\n</{conclusion}>"
        text += closes
    return text


def row_of(layout: str, demo: Demonstration) -> dict[str, Any]:
    """A published row of a solution of the problem `q?`."""
    reasoning = written(demo.reasoning, layout)
    match layout:
        case "threadweaver":
            return {"qwen_text": chat("q?", f"<think>{reasoning}</think>{demo.answer}")}
        case "multiverse":
            return {"text": chat("q?", f"<Think>{reasoning}</Think>{demo.answer}")}
        case "npr":
            return {"problem": "q?", "trajectory": reasoning + demo.answer}
        case _:
            return {"problem": "q?", "text": reasoning + demo.answer}


def trace_of(target: int, numbers: tuple[int, ...], run: SearchRun) -> dict[str, Any]:
    """A run as the published generator writes it."""
    seen, main, subs = root_line(target, numbers), list[str](), list[list[dict[str, Any]]]()
    for turn, nodes, children in zip(run.turns, run.spawns, run.children, strict=False):
        known = states(seen + turn)
        main.append(f"{seen}{turn}{CALLING}{render_spawn(nodes)}{END_CALLING}\n")
        texts = [child_prompt(node, known[node]) + text for node, text in zip(nodes, children, strict=True)]
        subs.append([{"main_calls": [text], "sub_calls": []} for text in texts])
        before = SearchRun((turn, ""), (nodes,), (children,)).transcript(FULL)
        seen += before
    return {"main_calls": [*main, seen + run.turns[-1]], "sub_calls": subs}
