"""Every dialect: what is written is what is read, nothing sees what it must not, and every limit is the client's."""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apr_train.model import character_tokenizer
from rollout.critical_path import measure
from rollout.demonstration import Block, Demonstration
from rollout.dialects import DIALECTS, dialect_class, make_dialect
from rollout.dialects.base import Dialect, DialectError, Script
from rollout.engine import Completion, EngineError, Prompt, Sampling, causal_ids
from rollout.engines.replay import ReplayEngine
from rollout.orchestrator import Budget, run_trajectory
from rollout.search_trace import SearchRun
from rollout.tokens import Tokens, register_tags
from rollout.trajectory import Call, Trajectory
from rollout.view import View

WIDE = Budget(response=100_000, answer=8, threads=32, blocks=32, depth=8)


@dataclass
class Reader:
    """A dialect over the character tokenizer that knows its tags."""

    name: str
    join: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tokenizer = character_tokenizer()
        register_tags(tokenizer, dialect_class(self.name).tags(self.options))
        self.tokens = Tokens(tokenizer)
        self.dialect: Dialect = make_dialect(self.name, self.tokens, self.join, self.options)

    def turn(self, text: str) -> tuple[int, ...]:
        """Ids of a text in which tags and the eos are meant as structure."""
        return tuple(self.tokens.tokenizer.encode(text, add_special_tokens=False))

    def play(self, script: Script, budget: Budget = WIDE, prompt: str = "a3=", **serve: Any) -> Trajectory:
        engine = Late(script, 200_000, **serve)
        return asyncio.run(run_trajectory(engine, self.dialect, "p", self.tokens.prompt(prompt), budget))

    def text(self, trajectory: Trajectory, call: Call) -> str:
        return self.tokens.decode(trajectory.context_ids(call))


class Late(ReplayEngine):
    """Serves the calls that wait in an order of its own."""

    def __init__(self, script: Script, max_context: int, seed: int | None = None) -> None:
        super().__init__(script, max_context)
        self.rng = None if seed is None else random.Random(seed)

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        for _ in range(self.rng.randrange(30) if self.rng else 0):
            await asyncio.sleep(0)
        return await super().complete(prompt, sampling, thread)


VARIANTS = [
    *(Reader(name, join) for name in DIALECTS if name not in ("apr", "sequential") for join in DIALECTS[name].joins),
    Reader("threadweaver", options={"conclusion": True}),
    Reader("parallel_r1", options={"paths": 3}),
    Reader("parathinker", options={"paths": 2, "first_finish": True}),
    Reader("asyncthink", options={"workers": 2}),
]
EVERY = pytest.mark.parametrize("reader", VARIANTS, ids=lambda r: "-".join([r.name, r.dialect.join_rule, *r.options]))

# Nested demonstrations take a while to draw, and longer on a machine that does other things too.
EXAMPLES = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
BODY = st.text("ab12 ", max_size=6)


def blocks(bodies: st.SearchStrategy[Any], most: int = 4) -> st.SearchStrategy[Block]:
    threads = st.lists(st.tuples(BODY, bodies, st.tuples(BODY.map("={}".format), BODY)), min_size=1, max_size=most)
    return st.builds(
        lambda threads, conclusion, kind: Block(
            tuple((outline, body) for outline, body, _ in threads),
            conclusion,
            kind,
            tuple(task for *_, task in threads),
        ),
        threads,
        BODY,
        st.sampled_from(("and", "or")),
    )


NESTED = st.recursive(BODY, lambda inner: st.lists(BODY | blocks(inner, 3), max_size=2).map(tuple), max_leaves=5)
DEMOS = st.builds(Demonstration, st.lists(BODY | blocks(NESTED), max_size=3).map(tuple), BODY)


def may_refuse(reader: Reader, demo: Demonstration) -> Script | None:
    """The script, or None where the dialect says that it has no such form (one organizer, say)."""
    try:
        return reader.dialect.write(demo)
    except DialectError:
        return None


@EVERY
@EXAMPLES
@given(demo=DEMOS, order=st.integers(0, 9))
def test_what_is_written_is_what_is_read(reader: Reader, demo: Demonstration, order: int) -> None:
    script = may_refuse(reader, demo)
    if script is None:
        return
    trajectory = reader.play(script, seed=order)
    assert trajectory.outcome == "answered" and reader.dialect.check(trajectory) is None
    assert Trajectory.from_json(trajectory.to_json()) == trajectory
    sampled: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for call in trajectory.calls:
        segment = trajectory.segments[call.sampled]
        sampled.setdefault(segment.thread, []).append(segment.ids)
    cut = {s.thread for c in trajectory.calls if c.event == "cancelled" for s in [trajectory.segments[c.sampled]]}
    for thread, turns in sampled.items():
        written = script[thread]
        assert turns == written if thread not in cut else turns[0] == written[0][: len(turns[0])]


@EVERY
@EXAMPLES
@given(
    demo=DEMOS, sizes=st.tuples(st.integers(20, 160), st.none() | st.integers(20, 90), st.none() | st.integers(1, 20))
)
def test_no_budget_is_ever_exceeded(
    reader: Reader, demo: Demonstration, sizes: tuple[int, int | None, int | None]
) -> None:
    script = may_refuse(reader, demo)
    if script is None:
        return
    response, critical, thread = sizes
    script = {name: [*turns, *[reader.turn("1<|eos|>")] * 3] for name, turns in script.items()}
    budget = Budget(response, 8, threads=32, blocks=8, critical=critical, thread=thread, depth=2)
    lengths = measure(reader.play(script, budget))
    assert lengths.l_critical <= lengths.l_total <= response and lengths.depth <= 2
    assert critical is None or lengths.l_critical <= critical


@EVERY
def test_what_is_sampled_does_not_depend_on_which_thread_is_served_first(reader: Reader) -> None:
    threads = tuple((f"{k}", "b" * (k * 3 % 5)) for k in range(3))
    tasks = tuple((f"{k}=", str(k)) for k in range(3))
    demo = Demonstration(("go", Block(threads, kind="or", tasks=tasks), "on", Block(threads, tasks=tasks)), "2")
    script = reader.dialect.write(demo)

    runs = [reader.play(script, Budget(300, 8, 32, 32), seed=seed) for seed in range(6)]
    assert all(run == runs[0] for run in runs)


@EVERY
def test_tags_in_a_prompt_are_never_structure(reader: Reader) -> None:
    tags = [*dialect_class(reader.name).tags(reader.options), "<|eos|>"]
    ids = reader.tokens.prompt("".join(tags))
    assert not set(map(reader.tokens.tag, tags)) & set(ids)
    assert reader.tokens.decode(ids) == "".join(tags)
    script = reader.dialect.write(Demonstration(("a",), "1"))
    plain, tagged = reader.play(script), reader.play(script, prompt="".join(tags))
    assert measure(plain) == measure(tagged) and reader.dialect.check(tagged) is None


# -- nesting -----------------------------------------------------------------------------------------------------------

LEAF = (("x", "12"), ("y", "1234"))
TASKS = (("x=", "1"), ("y=", "2"))
INNER = Block((("i", ("a", Block(LEAF, tasks=TASKS), "b")), ("j", "123456")), tasks=(("i=", "3"), ("j=", "4")))
DEEP = Demonstration(("go", Block((("p", ("c", INNER)), ("q", "1")), tasks=(("p=", "5"), ("q=", "6")))), "9")


@pytest.mark.parametrize("reader", [Reader("multiverse"), Reader("multiverse", "transcript"), Reader("recursive")])
def test_blocks_three_deep_keep_their_names_and_their_place_on_the_critical_path(reader: Reader) -> None:
    trajectory = reader.play(reader.dialect.write(DEEP))
    lengths = measure(trajectory)
    assert trajectory.outcome == "answered" and reader.dialect.check(trajectory) is None
    assert (lengths.depth, lengths.blocks, lengths.threads) == (3, 3, 6)
    assert {s.thread for s in trajectory.segments} >= {(0, 1, 0, 1, 0, 2), (0, 2), (0, 1, 0, 2)}
    # brute force: of each block, everything but the longest thread (what nests in it included) is off the path
    own: dict[tuple[int, ...], int] = {}
    for segment in trajectory.segments:
        own[segment.thread] = own.get(segment.thread, 0) + (segment.origin != "prompt") * len(segment.ids)

    def path(name: tuple[int, ...]) -> int:
        children: dict[int, list[int]] = {}
        for other in own:
            if other[: len(name)] == name and len(other) == len(name) + 2:
                children.setdefault(other[-2], []).append(path(other))
        return own[name] + sum(map(max, children.values()))

    assert lengths.l_critical == path(()) and lengths.l_total == sum(own.values()) > lengths.l_critical


def test_nested_outlines_need_hierarchical_numbers() -> None:
    reader = Reader("multiverse")
    script = reader.dialect.write(DEEP)
    assert "<Outline>1.1:i</Outline><Outline>1.2:j</Outline>" in reader.tokens.decode(script[(0, 1)][0])
    wrong = reader.tokens.decode(script[(0, 1)][0]).replace("1.1:", "1:")
    trajectory = reader.play(script | {(0, 1): [reader.turn(wrong)]})
    assert trajectory.notes == {"fork/items are not numbered 1, 2, 3, ...": 1, "thread/forced close": 1}


@pytest.mark.parametrize("name", ["multiverse", "recursive"])
def test_the_model_cannot_raise_its_own_depth(name: str) -> None:
    reader = Reader(name)
    trajectory = reader.play(
        {key: [*turns, reader.turn("1<|eos|>")] for key, turns in reader.dialect.write(DEEP).items()},
        Budget(100_000, 8, threads=32, blocks=32, depth=1),
    )
    assert measure(trajectory).depth == 1 and trajectory.notes["fork/too deep"] == 1


def test_stitched_threads_see_no_sibling_and_start_together() -> None:
    reader = Reader("multiverse")
    trajectory = reader.play(reader.dialect.write(DEEP))
    assert trajectory.attention == "stitched"
    for call in trajectory.calls:
        view = trajectory.view(call)
        names = [trajectory.segments[index].thread for index in call.context]
        for i, seen in enumerate(view.sees):
            for j in seen:  # a thread sees the root, those above it, and, after their join, those below
                a, b = names[i], names[j]
                shared = min(len(a), len(b))
                assert a[:shared] == b[:shared] or a[: shared - 1] != b[: shared - 1]
    last = trajectory.view(trajectory.calls[-1])
    starts = {names[:2]: [] for names in [(0, 1), (0, 2)]}
    for start, index in zip(last.starts, trajectory.calls[-1].context, strict=True):
        thread = trajectory.segments[index].thread
        if len(thread) == 2:
            starts[thread].append(start)
    assert starts[(0, 1)][0] == starts[(0, 2)][0]
    assert last.end == len(trajectory.segments[0].ids) + measure(trajectory).l_critical - len(
        trajectory.segments[trajectory.calls[-1].sampled].ids
    )


# -- message joins -----------------------------------------------------------------------------------------------------

ASK = Demonstration(("go", Block((("a", "345"), ("b", "78")), tasks=(("a3*2=", "A5"), ("b7*1=", "B8"))), "so"), "58")


@pytest.mark.parametrize("name", ["recursive", "asyncthink"])
def test_a_thread_sees_its_task_alone_and_gives_back_its_answer_alone(name: str) -> None:
    reader = Reader(name)
    trajectory = reader.play(reader.dialect.write(ASK))
    contexts = {trajectory.segments[c.sampled].thread: reader.text(trajectory, c) for c in trajectory.calls}
    children = {thread: text for thread, text in contexts.items() if thread}
    assert sorted(children.values()) == ["a3*2=", "b7*1="]
    assert "A5" in contexts[()] and "B8" in contexts[()] and "345" not in contexts[()]
    assert trajectory.outcome == "answered" and reader.dialect.check(trajectory) is None


def test_a_parent_goes_on_after_a_fork_until_it_joins() -> None:
    reader = Reader("asyncthink", options={"workers": 2})
    script: Script = {
        (): [
            reader.turn("<think><FORK-1>a</FORK-1>"),
            reader.turn("1234567890<JOIN-1>"),
            reader.turn("</think>5<|eos|>"),
        ],
        (0, 1): [reader.turn("<think>12</think>3<|eos|>")],
    }
    trajectory = reader.play(script)
    lengths = measure(trajectory)
    # root 4 + 11, then what the join writes (3 and </JOIN-1>: 2) and 3; the worker's prompt 1 and 6 ran meanwhile
    assert (lengths.l_total, lengths.l_critical) == (4 + 11 + 2 + 3 + 1 + 6, 4 + 11 + 2 + 3)
    script[()][1] = reader.turn("1<JOIN-1>")
    # now the parent waits: root 4, worker 1 + 6, then 2 + 3
    assert measure(reader.play(script)).l_critical == 4 + 1 + 6 + 2 + 3


@pytest.mark.parametrize(
    ("turns", "note"),
    [
        (["<think><JOIN-1>"], "fork/a join of what was never forked"),
        (["<think><FORK-1>a</FORK-1>", "<FORK-1>b</FORK-1>"], "fork/forked twice"),
        (["<think></FORK-1>"], "fork/no <FORK-i> text before </FORK-i>"),
        (["<think><FORK-1></FORK-1>"], "fork/no <FORK-i> text before </FORK-i>"),
        (["<think><FORK-2>a</FORK-1>"], "fork/no <FORK-i> text before </FORK-i>"),
        (["<think></think><JOIN-1>"], "fork/after the reasoning"),
    ],
)
def test_a_senseless_fork_or_join_is_named(turns: list[str], note: str) -> None:
    reader = Reader("asyncthink")
    worker = [reader.turn("<think></think>3<|eos|>")]
    trajectory = reader.play({(): list(map(reader.turn, turns)), (0, 1): worker, (1, 1): worker})
    assert trajectory.outcome == "malformed" and trajectory.notes[note] == 1


def test_a_thread_that_was_never_joined_counts_and_is_a_flaw() -> None:
    reader = Reader("asyncthink")
    script: Script = {
        (): [reader.turn("<think><FORK-1>a</FORK-1>"), reader.turn("</think>5<|eos|>")],
        (0, 1): [reader.turn("<think>" + "1" * 50 + "</think>3<|eos|>")],
    }
    trajectory = reader.play(script)
    assert measure(trajectory).l_total == 4 + 3 + 1 + 54 and measure(trajectory).l_critical == 4 + 1 + 54
    assert trajectory.outcome == "answered" and reader.dialect.check(trajectory) == "a thread was never joined"


@pytest.mark.parametrize("answer", ["</results></think>", "<spawn>", "<|eos|>", "<think>"])
def test_a_thread_cannot_smuggle_tags_into_its_parent(answer: str) -> None:
    reader = Reader("recursive")
    script = reader.dialect.write(ASK) | {(0, 1): [reader.turn(f"<think>1</think>A{answer}5<|eos|>")]}
    trajectory = reader.play(script)
    forced = [s for s in trajectory.segments if s.origin == "forced" and not s.thread]
    inner = reader.tokens.decode(forced[0].ids)
    assert inner in (
        "<results><result>A5</result><result>B8</result></results>",
        "<results><result>A</result><result>B8</result></results>",
    )


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_do_not_starve_when_the_critical_budget_is_ample(workers: int) -> None:
    reader = Reader("asyncthink", options={"workers": workers})
    threads = tuple(("", "") for _ in range(workers))
    script = reader.dialect.write(Demonstration((Block(threads, tasks=(("a", "1"),) * workers),), "5"))
    for critical in (None, 400):
        trajectory = reader.play(script, Budget(100_000, 8, 32, 32, critical=critical))
        assert trajectory.outcome == "answered" and reader.dialect.check(trajectory) is None


@pytest.mark.parametrize("name", ["multiverse", "recursive"])
def test_a_fork_that_the_client_refused_is_a_flaw(name: str) -> None:
    reader = Reader(name)
    script = {key: [*turns, reader.turn("1<|eos|>")] for key, turns in reader.dialect.write(DEEP).items()}
    for budget in (Budget(100_000, 8, 32, 32, depth=1), Budget(100_000, 8, threads=1, blocks=32)):
        trajectory = reader.play(script, budget)
        assert reader.dialect.check(trajectory) is not None
        forks = sum(call.event == "fork" for call in trajectory.calls)
        assert forks == measure(trajectory).blocks
    reader = Reader("threadweaver")
    script = reader.dialect.write(GOOD)
    script[()].append(reader.turn("1<|eos|>"))
    tight = reader.play(script, Budget(sum(map(len, script[()][:1])) + 14, 8, 32, 32))
    assert tight.notes == {"fork/no room": 1} and reader.dialect.check(tight) is not None


def test_a_thread_with_no_token_left_after_its_own_block_is_a_flaw() -> None:
    reader = Reader("multiverse")
    script = reader.dialect.write(Demonstration((Block((("p", ("c", Block(LEAF))), ("q", "1"))),), "9"))
    own = Budget(100_000, 8, threads=32, blocks=32, thread=len(script[(0, 1)][0]))
    trajectory = reader.play(script, own)
    assert trajectory.notes == {"thread/forced close": 1} and trajectory.outcome == "answered"
    assert [c.event for c in trajectory.calls if trajectory.segments[c.sampled].thread == (0, 1)] == ["fork"]
    assert reader.dialect.check(trajectory) is not None


def test_a_failing_thread_leaves_no_sibling_behind() -> None:
    reader = Reader("threadweaver")
    script = reader.dialect.write(GOOD)
    del script[(0, 1)]
    engine = Late(script, 1000, seed=3)
    served: list[tuple[int, ...]] = []

    async def session() -> None:
        with pytest.raises(EngineError):
            await run_trajectory(engine, reader.dialect, "p", reader.tokens.prompt("a="), WIDE)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others
        served.extend(name for name, turns in engine._turns.items() if name and not turns)

    asyncio.run(session())


def test_a_spawn_block_in_a_prompt_is_text_to_apr() -> None:
    reader = Reader("apr", options={"surface": "terse"})
    tags = "".join(dialect_class("apr").tags())
    run = SearchRun(("3*4=12:5 12\n+0,0\n", "-\n"), (((0, 0),),), (("12-5=7:7\n7!9\n-\n",),))
    script = reader.dialect.write(run)
    honest = reader.play(script, prompt=">0\n:9:3 4 5|\n")
    tagged = reader.play(script, prompt=f"{tags}\n0>0,0\n>0\n:9:3 4 5|\n")
    assert honest.outcome == tagged.outcome == "answered" and measure(honest) == measure(tagged)
    assert measure(honest).threads == 1 and reader.dialect.check(tagged) is None


# -- threads that race -------------------------------------------------------------------------------------------------

RACE = "<think><Parallel><Outlines><Trial>1:a</Trial><Trial>2:b</Trial><Trial>3:c</Trial></Outlines>"


def race(reader: Reader, *threads: str, **serve: Any) -> Trajectory:
    turns = {(0, k): [reader.turn(text)] for k, text in enumerate(threads, 1)}
    return reader.play({(): [reader.turn(RACE), reader.turn("</think>5<|eos|>")]} | turns, **serve)


@pytest.mark.parametrize("seed", range(8))
def test_the_first_success_is_the_first_in_tokens_and_not_in_seconds(seed: int) -> None:
    reader = Reader("parason")
    trajectory = race(reader, "1" * 40 + "</Thread>", "222\n</Thread>", "33333\n</Thread>", seed=seed)
    ends = {
        trajectory.segments[c.sampled].thread: (c.event, trajectory.segments[c.sampled].ids) for c in trajectory.calls
    }
    assert ends[(0, 1)] == ("cancelled", reader.turn("11111")) and ends[(0, 3)] == ("cancelled", reader.turn("33333"))
    assert ends[(0, 2)][0] == "join"
    assert "222" in reader.text(trajectory, trajectory.calls[-1])
    assert not {"1111", "3333"} & {reader.text(trajectory, trajectory.calls[-1])[i : i + 4] for i in range(200)}
    # <think> <Parallel> <Outlines> + 3 x 4 + </Outlines>; \n; header 3; 5; \n</Parallel> 2; the answer 3
    assert measure(trajectory).l_critical == 16 + 1 + 3 + 5 + 2 + 3
    assert measure(trajectory).l_total == 16 + 1 + 3 * (3 + 5) + 2 + 3
    assert reader.dialect.check(trajectory) is None


def test_a_cut_thread_keeps_no_log_prob_beyond_its_cut() -> None:
    trajectory = race(Reader("parason"), "1" * 40, "222\n</Thread>", "3</Thread>")
    for call in trajectory.calls:
        segment = trajectory.segments[call.sampled]
        assert segment.logprobs is not None and len(segment.logprobs) == len(segment.ids)


def test_without_a_success_all_threads_are_read() -> None:
    reader = Reader("parason")
    trajectory = race(reader, "11<|eos|>", "2222<|eos|>", "3<|eos|>")
    assert trajectory.notes == {"thread/eos": 3}
    text = reader.text(trajectory, trajectory.calls[-1])
    assert all(part in text for part in ("1:11", "2:2222", "3:3"))


def test_a_block_of_two_kinds_is_malformed() -> None:
    reader = Reader("parason")
    mixed = "<think><Parallel><Outlines><Trial>1:a</Trial><Subtask>2:b</Subtask></Outlines>"
    assert reader.play({(): [reader.turn(mixed)]}).notes == {"fork/items of two kinds in one block": 1}


def test_first_finish_cuts_every_path_and_the_summary_reads_them_all() -> None:
    reader = Reader("parathinker", options={"paths": 3, "first_finish": True})
    script: Script = {
        (): [reader.turn("s</summary></think>5<|eos|>")],
        (0, 1): [reader.turn("1" * 30 + "</think1>")],
        (0, 2): [reader.turn("22</think2>")],
        (0, 3): [reader.turn("3" * 30 + "</think3>")],
    }
    trajectory = reader.play(script)
    assert reader.tokens.decode(trajectory.response_ids()) == (
        "<think><think1>111</think1><think2>22</think2><think3>333</think3><summary>s</summary></think>5<|eos|>"
    )
    assert trajectory.notes == {"thread/cut": 2} and reader.dialect.check(trajectory) is None


def test_what_the_client_closed_is_a_flaw_even_when_the_answer_repeats_the_tag() -> None:
    """The long fuzz found it: no token left for the summary, and an answer that begins with the tag it owed."""
    reader = Reader("parathinker", options={"paths": 2, "first_finish": True})
    script: Script = {
        (): [reader.turn("</summary>5<|eos|>")],
        (0, 1): [reader.turn("1</think1>")],
        (0, 2): [reader.turn("2222222</think2>")],
    }
    # critical: <think>, the cut path <think2>22</think2>, <summary>, the client's </summary></think>, the answer: 11
    trajectory = reader.play(script, Budget(response=38, answer=3, threads=2, blocks=1, critical=11))
    assert trajectory.outcome == "forced_answer" and trajectory.notes == {"thread/cut": 1}
    assert reader.tokens.decode(trajectory.root_ids()) == "<think><summary></summary></think></summary>5<|eos|>"
    assert reader.dialect.check(trajectory) == "the response ended as forced_answer"


# -- strict format -----------------------------------------------------------------------------------------------------

GOOD = Demonstration(
    ("go", Block((("a", "1"), ("b", "2"), ("c", "3")), "end", tasks=(("a=", "1"), ("b=", "2"), ("c=", "3"))), "x"), "5"
)


@EVERY
def test_a_stray_tag_anywhere_is_a_flaw(reader: Reader) -> None:
    """Every tag, put into every sampled turn before its last token: a breach, or a turn that stops there."""
    script = reader.dialect.write(GOOD)
    assert reader.dialect.check(reader.play(script)) is None
    for tag in dialect_class(reader.name).tags(reader.options):
        for name, turns in script.items():
            for at, turn in enumerate(turns):
                broken = (*turn[:-1], reader.tokens.tag(tag), turn[-1])
                changed = script | {name: [*turns[:at], broken, *turns[at + 1 :], reader.turn("1<|eos|>")]}
                try:
                    trajectory = reader.play(changed)
                except EngineError:
                    continue  # the script ends: the turn did something else
                flaw = reader.dialect.check(trajectory)
                events = [c.event for c in trajectory.calls]
                if turn in [trajectory.segments[c.sampled].ids for c in trajectory.calls]:
                    continue  # the turn stopped at the tag, which it ends with anyway
                assert flaw or trajectory.outcome != "answered" or "cancelled" in events, (tag, name, at)


# -- a dialect of one's own --------------------------------------------------------------------------------------------


def test_a_dialect_in_a_file_of_the_users_is_found(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        '"""Mine."""\n'
        "from rollout.dialects.tagged import Grammar, Tagged\n\n\n"
        "class Mine(Tagged):\n"
        '    name = "mine"\n\n'
        "    @classmethod\n"
        "    def grammar(cls, options):\n"
        '        return Grammar(forks="<fork>", threads=2, header="<way>", ends="</way>", join="<met>")\n'
    )
    reader = Reader(f"{file}:Mine", "stitched")
    trajectory = reader.play(reader.dialect.write(Demonstration(("go", Block((("", "1"), ("", "2")))), "3")))
    assert reader.dialect.check(trajectory) is None and trajectory.dialect == "mine"
    assert reader.tokens.decode(trajectory.response_ids()) == (
        "<think>go<fork><way>1</way><way>2</way><met></think>3<|eos|>"
    )
    for name, why in ((f"{tmp_path}/none.py:Mine", "no such Python file"), (f"{file}:Other", "is no dialect")):
        with pytest.raises(DialectError, match=why):
            dialect_class(name)


@pytest.mark.parametrize(
    ("name", "join", "options", "why"),
    [
        ("multivers", None, {}, "did you mean multiverse"),
        ("parallel_r1", None, {"path": 3}, "did you mean 'paths'"),
        ("parallel_r1", None, {"paths": 0}, "1 to 64"),
        ("parallel_r1", None, {"paths": "two"}, "is not int"),
        ("parathinker", None, {"paths": 99}, "1 to 16"),
        ("asyncthink", None, {"workers": 0}, "1 to 16"),
        ("dc_cot", "message", {}, "it has transcript, stitched"),
        ("recursive", "stitched", {}, "it has message"),
        ("npr", None, {"paths": 2}, "no option"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(name: str, join: str | None, options: dict[str, Any], why: str) -> None:
    with pytest.raises(DialectError, match=why):
        Reader(name, join, options)


def test_an_engine_of_flat_ids_refuses_a_stitched_join() -> None:
    view = View.stitched([(1,), (2,), (3,)], [(), (0,), (0,)])
    with pytest.raises(EngineError, match="rollout=torch"):
        causal_ids(view, "vLLM")
    assert causal_ids(View.causal([(1,), (2,)]), "vLLM") == [1, 2]
