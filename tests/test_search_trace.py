"""APR's search language: golden lines worked out by hand, and a client side that no trace can break or mislead."""

from random import Random
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_train.tasks.search import apr, sos_plus
from rollout.search_trace import (
    FULL,
    MAX_CHILDREN,
    SURFACES,
    TAGS,
    TERSE,
    Kind,
    Line,
    Node,
    SearchRun,
    State,
    Surface,
    budget_prefix,
    child_prompt,
    child_return,
    node_of,
    render_join,
    render_return,
    render_spawn,
    resolve_spawn,
    root_line,
    states,
)

ROOT_FULL = "Moving to Node #0\nCurrent State: 62:[53, 22, 2, 4], Operations: []\n"
TRACE_FULL = (
    ROOT_FULL + "Exploring Operation: 53-22=31, Resulting Numbers: [2, 4, 31]\n"
    "Generated Node #0,0: 62:[2, 4, 31] Operation: 53-22=31\n"
    "Exploring Operation: 22*2=44, Resulting Numbers: [53, 4, 44]\n"
    "Generated Node #0,1: 62:[53, 4, 44] Operation: 22*2=44\n"
    "Moving to Node #0,0\n"
    "Current State: 62:[2, 4, 31], Operations: ['53-22=31']\n"
    "Exploring Operation: 4-2=2, Resulting Numbers: [31, 2]\n"
    "Generated Node #0,0,0: 62:[31, 2] Operation: 4-2=2\n"
)
TRACE_TERSE = (
    ">0\n:62:53 22 2 4|\n53-22=31:2 4 31\n+0,0\n22*2=44:53 4 44\n+0,1\n>0,0\n:62:2 4 31|53-22=31\n4-2=2:31 2\n+0,0,0\n"
)
TRACES = {FULL: TRACE_FULL, TERSE: TRACE_TERSE}
BOTH = pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)

numbers = st.integers(0, 10**15 - 1)
nodes = st.lists(st.integers(0, 999), min_size=1, max_size=8).map(tuple)
operations = st.builds(lambda a, sign, b, c: f"{a}{sign}{b}={c}", numbers, st.sampled_from("+-*/"), numbers, numbers)
lists = st.lists(numbers, min_size=1, max_size=8).map(tuple)
lines = st.builds(
    Line,
    st.sampled_from(list(FULL.templates)),
    nodes,
    numbers,
    lists,
    st.lists(operations, max_size=8).map(tuple),
    operations,
    numbers,
    st.integers(0, 999),
)


@st.composite
def runs(draw: st.DrawFn, surface: Surface) -> tuple[str, SearchRun]:
    """A prompt and what the APR solver writes after it; solvable or not."""
    given_numbers = tuple(draw(st.lists(st.integers(1, 30), min_size=3, max_size=4)))
    target, beam = draw(st.integers(2, 60)), draw(st.integers(1, 4))
    random = Random(draw(st.integers(0, 1000)))
    run = apr(target, given_numbers, random, beam=beam, child_beam=draw(st.integers(1, 5)), surface=surface)
    return root_line(target, given_numbers, surface), run


def before(run: SearchRun, spawn: int, surface: Surface) -> str:
    """What the parent has read and written when it makes a spawn."""
    return SearchRun(run.turns[: spawn + 1], run.spawns[:spawn], run.children[:spawn]).transcript(surface)


# --- lines ------------------------------------------------------------------------------------------------------------


def test_lines_are_spelt_as_published() -> None:
    stated = Line("state", target=62, numbers=(4, 2, 31), operations=("53-22=31",))
    assert FULL.write(stated) == "Current State: 62:[4, 2, 31], Operations: ['53-22=31']\n"
    explored = Line("explore", numbers=(4, 2, 31), operation="53-22=31")
    assert FULL.write(explored) == "Exploring Operation: 53-22=31, Resulting Numbers: [4, 2, 31]\n"
    generated = Line("generate", (0, 1), 62, (4, 2, 31), operation="53-22=31")
    assert FULL.write(generated) == "Generated Node #0,1: 62:[4, 2, 31] Operation: 53-22=31\n"
    assert FULL.write(Line("dead", value=33, target=62)) == "33,62 unequal: No Solution\n"
    assert FULL.write(Line("goal", value=62, target=62)) == "62,62 equal: Goal Reached\n"
    assert FULL.write(Line("fail")) == "No solution found.\n"
    assert FULL.write(Line("enter", (0, 1), index=2)) == "Start Sub Search at level 2: Moving to Node #0,1\n"
    assert [TERSE.write(line) for line in (stated, explored, generated)] == [
        ":62:4 2 31|53-22=31\n",
        "53-22=31:4 2 31\n",
        "+0,1\n",
    ]


def test_client_lines_are_spelt_as_published() -> None:
    assert root_line(62, [53, 22, 2, 4]) == ROOT_FULL
    assert root_line(62, [53, 22, 2, 4], moving=False) == ROOT_FULL.removeprefix("Moving to Node #0\n")
    assert budget_prefix("sub_calls", 3) + budget_prefix("tokens", 512) == "Sub Call Budget: 3 Token Budget: 512 "
    assert render_spawn([(0, 0), (0, 1)]) == (
        "\n<Start Sub Search 0 at level 1> Moving to Node #0,0\n<Start Sub Search 1 at level 1> Moving to Node #0,1\n"
    )
    assert render_join([(0, 0), (0, 1)], [None, "Moving to Node #0,1\n62,62 equal: Goal Reached"]) == (
        "\n<No Solution in Sub Search 0 at level 1 at Node #0,0>"
        "\n<Goal Reached in Sub Search 1 at level 1 at Node #0,1>"
        "\nMoving to Node #0,1\n62,62 equal: Goal Reached\n"
    )
    assert render_join([(0, 0)], [None]) == render_return(0, (0, 0), False) + "\n"


@BOTH
@given(line=lines)
def test_a_line_is_read_as_the_kind_it_was_written_as(surface: Surface, line: Line) -> None:
    text = surface.write(line)
    read = surface.read(text.removesuffix("\n"))
    assert read is not None
    assert read.kind == line.kind
    if line.kind == "generate" and surface is TERSE:  # leaves to the line before what that has said
        read = Line("generate", read.node, line.target, line.numbers, operation=line.operation)
    assert surface.write(read) == text
    other = TERSE if surface is FULL else FULL
    assert other.read(text.removesuffix("\n")) is None


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "Moving to Node #",
            "Moving to Node #00",
            "Moving to Node #0,",
            "Moving to Node #1000",
            "moving to Node #0",
        ),
        *("Moving to Node #0 ", "Moving to Node #٠", "Moving to Node #0\r", "62,62 equal: Goal Reached."),
        *("Current State: 62:[], Operations: []", "Current State: 62:[1,2], Operations: []"),
        *("Current State: 62:[-1, 2], Operations: []", "Current State: 62:[1, 2], Operations: [1+2=3]"),
        "Current State: 62:[1, 2, 3, 4, 5, 6, 7, 8, 9], Operations: []",
        f"Current State: {10**15}:[1, 2], Operations: []",
        "Exploring Operation: 1^2=3, Resulting Numbers: [3]",
        "Exploring Operation: __import__('os')=3, Resulting Numbers: [3]",
    ],
)
def test_what_is_nearly_a_line_is_none(text: str) -> None:
    assert FULL.read(text) is None


# --- spawns -----------------------------------------------------------------------------------------------------------


@BOTH
def test_children_start_with_what_the_trace_said_of_their_nodes(surface: Surface) -> None:
    spawn = render_spawn([(0, 1), (0, 0, 0), (0, 0)], surface)
    assert resolve_spawn(spawn, TRACES[surface], surface) == [
        child_prompt((0, 1), State(62, (53, 4, 44), ("22*2=44",)), surface),
        child_prompt((0, 0, 0), State(62, (31, 2), ("53-22=31", "4-2=2")), surface),
        child_prompt((0, 0), State(62, (2, 4, 31), ("53-22=31",)), surface),
    ]


def test_a_childs_prompt_is_its_nodes_start_lines_and_nothing_else() -> None:
    assert resolve_spawn(render_spawn([(0, 0, 0)]), TRACE_FULL) == [
        "Moving to Node #0,0,0\nCurrent State: 62:[31, 2], Operations: ['53-22=31', '4-2=2']\n"
    ]
    assert resolve_spawn("\n0>0,0,0\n", TRACE_TERSE, TERSE) == [">0,0,0\n:62:31 2|53-22=31 4-2=2\n"]


@BOTH
@pytest.mark.parametrize("moving", [True, False])
@pytest.mark.parametrize("front", ["", "<s>", "<s>Sub Call Budget: 3 ", "<|user|>\n", "c3 "])
def test_a_bos_or_a_budget_before_the_root_hides_no_node(surface: Surface, moving: bool, front: str) -> None:
    below = TRACES[surface].removeprefix(root_line(62, [53, 22, 2, 4], surface))
    trace = front + root_line(62, [53, 22, 2, 4], surface, moving=moving) + below
    assert resolve_spawn(render_spawn([(0, 1)], surface), trace, surface) == [
        child_prompt((0, 1), State(62, (53, 4, 44), ("22*2=44",)), surface)
    ]
    assert node_of(front + child_prompt((0, 1), State(62, (4,)), surface), surface) == (0, 1)


BAD_SPAWNS = {
    "no lines": ("", "without lines"),
    "only a newline": ("\n", "without lines"),
    "an empty line": ("\n0>0,0\n\n", "line 1 of"),
    "another line": ("\n>0,0\n", "line 0 of"),
    "numbered from 1": ("\n1>0,0\n", "sub search 0 of a spawn block is numbered 1"),
    "a number twice": ("\n0>0,0\n0>0,1\n", "sub search 1 of a spawn block is numbered 0"),
    "an unknown node": ("\n0>0,0\n1>0,2\n", "node #0,2, which"),
    "a node twice": ("\n0>0,0\n1>0,0\n", "node #0,0 twice"),
    "too many": (render_spawn([(0, k) for k in range(MAX_CHILDREN + 1)], TERSE), "more than 32"),
    "a name that never ends": ("\n0>" + ",".join("0" * 100_000) + "\n", "line 0 of"),
    "a number that never ends": ("\n" + "1" * 100_000 + ">0,0\n", "line 0 of"),
}


@pytest.mark.parametrize(("spawn", "reason"), BAD_SPAWNS.values(), ids=BAD_SPAWNS)
def test_a_bad_spawn_is_told_by_name(spawn: str, reason: str) -> None:
    answer = resolve_spawn(spawn, TRACE_TERSE, TERSE)
    assert isinstance(answer, str)
    assert reason in answer
    assert len(answer) < 100


@pytest.mark.parametrize(
    "trace",
    [
        "",
        ">0\n+0,0\n",  # nothing was explored
        ">0\n:62:53 22 2|\n+0,0\n",
        "53-22=31:2 31\n+0,0\n",  # of no known parent
        ">0\n:62:53 22 2|\n53-22=31:2 31\n+0,1,0\n",
        ">0\n:62:53 22 2|\n53-22=31:2 " + "3" * 16 + "\n+0,0\n",
        ">0\n:62:53 22 2|\n53-22=31:2 " + "3" * 5000 + "\n+0,0\n",
        ">0\n:62:53 22 2|" + " ".join(["1+1=2"] * 8) + "\n53-22=31:2 31\n+0,0\n",
        ">0\n:62:53 22 2|" + " ".join(["1+1=2"] * 9) + "\n53-22=31:2 31\n+0,0\n",
    ],
)
def test_a_node_that_the_trace_does_not_really_tell_is_unknown(trace: str) -> None:
    assert resolve_spawn("\n0>0,0\n", trace, TERSE) == "a spawn of node #0,0, which the trace does not know"


def test_what_the_trace_said_last_of_a_node_counts() -> None:
    again = TRACE_TERSE + ">0\n:62:53 22 2 4|\n53+22=75:2 4 75\n+0,0\n"
    assert states(again, TERSE)[(0, 0)] == State(62, (2, 4, 75), ("53+22=75",))
    stated = TRACE_TERSE + ">0,0\n:62:4 31|\n"
    assert states(stated, TERSE)[(0, 0)] == State(62, (4, 31))
    joined = TRACE_TERSE + f"{TAGS[2]}\n0+0,0\n>0,0\n:62:2 4 31|53-22=31\n4/2=2:31 2\n+0,0,1\n{TAGS[3]}\n"
    assert resolve_spawn("\n0>0,0,1\n", joined, TERSE) == [">0,0,1\n:62:31 2|53-22=31 4/2=2\n"]


@BOTH
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_children_that_the_client_starts_read_what_the_solver_started_from(
    surface: Surface, data: st.DataObject
) -> None:
    prompt, run = data.draw(runs(surface))
    for spawn, (wanted, texts) in enumerate(zip(run.spawns, run.children, strict=True)):
        prompts = resolve_spawn(render_spawn(wanted, surface), prompt + before(run, spawn, surface), surface)
        assert isinstance(prompts, list)
        assert [node_of(child, surface) for child in prompts] == list(wanted)
        for child, text in zip(prompts, texts, strict=True):
            path = child_return(text, surface)
            assert path is None or path.startswith(child)  # which restates its own start
            assert states(child + text, surface)[node_of(child, surface)].numbers


@BOTH
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_text_of_any_kind_makes_the_client_fail(surface: Surface, data: st.DataObject) -> None:
    """Pieces of valid traces in any order, with any characters in any place."""
    piece = st.one_of(
        st.text(max_size=20), lines.map(surface.write), st.sampled_from((*TAGS, "\n", ",", "0", ">", ":"))
    )
    trace, spawn = (f"{''.join(data.draw(st.lists(piece, max_size=12)))}" for _ in range(2))
    cut = data.draw(st.integers(0, len(TRACES[surface])))
    trace = TRACES[surface][:cut] + trace + TRACES[surface][cut:]
    answer = resolve_spawn(data.draw(st.sampled_from([spawn, render_spawn([(0, 0)], surface)])), trace, surface)
    assert isinstance(answer, str) or all(node_of(prompt, surface) for prompt in answer)
    child_return(trace, surface)
    states(spawn, surface)


@BOTH
@pytest.mark.parametrize(
    "text",
    [
        "Current State: " * 20_000,
        ("Current State: 1:[" + "1, " * 300 + "\n") * 300,
        ("Generated Node #" + "0," * 480 + "\n") * 300,
        (":1:" + "1 " * 480 + "\n") * 300,
        ":1" * 150_000,
        (":1" * 499 + "\n") * 300,
        "Current State: 1:[1], Operations: [" + "'1+1=2', " * 30_000,
        "\n" * 50_000,
    ],
)
def test_hostile_text_takes_no_more_time_than_honest_text(surface: Surface, text: str) -> None:
    start = perf_counter()
    resolve_spawn(render_spawn([(0, 5)], surface), text, surface)
    resolve_spawn(text, "", surface)
    child_return(text, surface)
    assert perf_counter() - start < 5  # 0.4 s at most where it is linear


# --- returns ----------------------------------------------------------------------------------------------------------

PATH = ">0,0\n:62:2 31|53-22=31\n31*2=62:62\n62=62"


@pytest.mark.parametrize(
    ("text", "returned"),
    [
        ("31*2=62:62\n62=62\n" + PATH + "\n", PATH),
        ("31*2=62:62\n62=62\n" + PATH, PATH),
        ("62=62\n62=62\n" + PATH, PATH),  # after the second-to-last goal, not after the first
        (PATH, None),
        ("-\n", None),
        ("", None),
        ("31*2=62:62\n62=62 \n62=62\n", None),  # nearly a goal line is none
        ("1+62=62:62\nx62=62\n62=62\n", None),
    ],
)
def test_only_a_path_told_after_a_goal_is_returned(text: str, returned: str | None) -> None:
    assert child_return(text, TERSE) == returned


def test_the_full_surface_returns_the_same() -> None:
    path = (
        "Moving to Node #0,0\nCurrent State: 62:[2, 31], Operations: ['53-22=31']\n"
        "Exploring Operation: 31*2=62, Resulting Numbers: [62]\n62,62 equal: Goal Reached"
    )
    found = "Exploring Operation: 31*2=62, Resulting Numbers: [62]\n62,62 equal: Goal Reached\n"
    assert child_return(f"{found}{path}\n") == path
    assert child_return(found + "the Goal Reached\n") is None


@BOTH
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_parent_reads_every_return_and_no_tag_in_it(surface: Surface, data: st.DataObject) -> None:
    _, run = data.draw(runs(surface))
    text = run.transcript(surface)
    assert text.count(TAGS[2]) == text.count(TAGS[3]) == len(run.spawns)
    assert text.startswith(run.turns[0]) and text.endswith(run.turns[-1])
    own = [*run.turns, *(child for children in run.children for child in children)]
    own += [render_spawn(spawn, surface) for spawn in run.spawns]
    assert not any(tag in piece for tag in TAGS for piece in own)
    for spawn, children in zip(run.spawns, run.children, strict=True):
        returns = [child_return(child, surface) for child in children]
        join = render_join(spawn, returns, surface)
        assert f"{TAGS[2]}{join}{TAGS[3]}\n" in text
        kinds: list[tuple[Kind, Node]] = [
            ("failed" if path is None else "reached", node) for node, path in zip(spawn, returns, strict=True)
        ]
        read = [surface.read(line) for line in join.split("\n")]
        assert [(line.kind, line.node) for line in read if line and line.kind in ("failed", "reached")] == kinds


def test_a_run_whose_parts_do_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="2 turns around 0 spawns"):
        SearchRun(("a", "b"))
    with pytest.raises(ValueError, match="as many nodes"):
        SearchRun(("a", "b"), (((0, 0), (0, 1)),), (("-\n",),))


def test_the_root_of_sos_plus_is_known_though_nothing_moves_there() -> None:
    start = root_line(62, [53, 22, 2], moving=False)
    for nest in (0.0, 1.0):
        trace = start + sos_plus(62, (53, 22, 2), Random(0), beam=1, nest=nest).split(start)[0]  # not restated
        assert states(trace)[(0,)] == State(62, (53, 22, 2))
        assert states(trace)[(0, 0)] == State(62, (2, 31), ("53-22=31",))
