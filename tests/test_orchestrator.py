"""The orchestrator records exactly what was sent, counts by hand-checkable rules, and names every end."""

import asyncio
from dataclasses import dataclass, field

import pytest
from helpers import toy_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.critical_path import measure
from rollout.demonstration import Block, Demonstration
from rollout.dialects import DialectError, make_dialect
from rollout.dialects.base import Dialect, Script
from rollout.engine import Completion, EngineError, Prompt, Sampling, causal_ids
from rollout.engines.replay import ReplayEngine
from rollout.orchestrator import Budget, run_trajectory
from rollout.trajectory import Trajectory

TOKENS = toy_tokens()
DIALECT = make_dialect("threadweaver", TOKENS)
WIDE = Budget(response=2000, answer=8, threads=8, blocks=8)
TWO = Demonstration(("go", Block((("a", "a345"), ("b", "b78"))), "so"), "58")


@dataclass
class Spy:
    """Serves a script and keeps what it was sent."""

    inner: ReplayEngine
    sent: list[tuple[tuple[int, ...], list[int], Sampling]] = field(default_factory=list)

    @property
    def max_context(self) -> int:
        return self.inner.max_context

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        self.sent.append((thread, causal_ids(prompt, "a spy"), sampling))
        return await self.inner.complete(prompt, sampling, thread)


def play(
    script: Script, budget: Budget = WIDE, max_context: int = 4000, dialect: Dialect = DIALECT
) -> tuple[Trajectory, Spy]:
    spy = Spy(ReplayEngine(script, max_context))
    return asyncio.run(run_trajectory(spy, dialect, "p", TOKENS.prompt("a3b7="), budget)), spy


def turn(text: str) -> tuple[int, ...]:
    """Ids of a text in which tags (and the eos) are meant as structure."""
    return tuple(TOKENS.tokenizer.encode(text, add_special_tokens=False))


FORK_OF_TWO = "<think><Parallel><Outlines><Outline>1:a</Outline><Outline>2:b</Outline></Outlines>"


def test_join_reads_the_published_surface_form() -> None:
    trajectory, _ = play(DIALECT.write(TWO))
    assert TOKENS.decode(trajectory.response_ids()) == (
        "<think>go<Parallel><Outlines><Outline>1:a</Outline><Outline>2:b</Outline></Outlines>"
        "\n<Thread>\n1:a345\n</Thread><Thread>\n2:b78\n</Thread>\n</Parallel>so</think>58<|eos|>"
    )


def test_threads_do_not_see_their_siblings() -> None:
    _, spy = play(DIALECT.write(TWO))
    texts = {thread: TOKENS.decode(ids) for thread, ids, _ in spy.sent if thread}
    assert texts[(0, 2)].endswith("</Outlines>\n<Thread>\n2:")
    assert "a345" not in texts[(0, 2)] and "b78" not in texts[(0, 1)]


def test_replay_gives_the_ids_that_were_sent() -> None:
    trajectory, spy = play(DIALECT.write(TWO))
    by_thread: dict[tuple[int, ...], list[list[int]]] = {}
    for thread, ids, _ in spy.sent:
        by_thread.setdefault(thread, []).append(ids)
    for call in trajectory.calls:
        assert trajectory.context_ids(call) == by_thread[trajectory.segments[call.sampled].thread].pop(0)
    assert not any(by_thread.values())


def test_lengths_by_hand() -> None:
    # Root: <think> g o <Parallel><Outlines> 2 x (<Outline> k: letter </Outline>) </Outlines> = 5 + 8 + 1 = 14.
    # Forced: \n 1, headers <Thread> \n k: 3 each, \n</Parallel> 2.
    # Threads: a345\n</Thread> 6, b78\n</Thread> 5. End: so</think>58<eos> 6.
    lengths = measure(play(DIALECT.write(TWO))[0])
    assert lengths.l_total == 14 + 1 + (3 + 6) + (3 + 5) + 2 + 6
    assert lengths.l_critical == 14 + 1 + (3 + 6) + 2 + 6
    assert (lengths.blocks, lengths.threads, lengths.width, lengths.depth) == (1, 2, 2, 1)
    assert lengths.parallel_tokens == (3 + 6) + (3 + 5)


def test_tags_in_a_prompt_are_never_structure() -> None:
    ids = TOKENS.prompt("</Outlines><Thread><|eos|>")
    tags = {TOKENS.tag(tag) for tag in DIALECT.tags()} | {TOKENS.eos}
    assert not tags & set(ids)
    assert TOKENS.decode(ids) == "</Outlines><Thread><|eos|>"


def test_a_runaway_thread_is_closed_and_the_parent_goes_on() -> None:
    script = DIALECT.write(TWO) | {(0, 1): [turn("9" * 50)]}
    trajectory, _ = play(script, Budget(response=2000, answer=8, threads=8, blocks=8, thread=10))
    assert trajectory.outcome == "answered" and trajectory.notes == {"thread/forced close": 1}
    assert "1:9999999999\n</Thread><Thread>\n2:b78" in TOKENS.decode(trajectory.response_ids())
    # 14 + \n 1 + header 3 + 10 sampled + \n</Thread> 2 + \n</Parallel> 2 + 6: the forced close is on the critical path
    assert measure(trajectory).l_critical == 14 + 1 + 3 + 10 + 2 + 2 + 6
    assert DIALECT.check(trajectory) is not None


def test_a_thread_that_ends_the_text_does_not_kill_the_trajectory() -> None:
    script = DIALECT.write(TWO) | {(0, 2): [turn("b7<|eos|>")]}
    trajectory, _ = play(script)
    assert trajectory.outcome == "answered" and trajectory.notes == {"thread/eos": 1}


def test_a_root_out_of_budget_still_answers() -> None:
    script: Script = {(): [turn("<think>" + "7" * 500), turn("42<|eos|>")]}
    trajectory, _ = play(script, Budget(response=40, answer=8, threads=8, blocks=8))
    assert trajectory.outcome == "forced_answer"
    assert TOKENS.decode(trajectory.response_ids()).endswith("7</think>42<|eos|>")
    assert measure(trajectory).l_total <= 40


def test_an_answer_that_does_not_end_is_named_truncated() -> None:
    script: Script = {(): [turn("<think>" + "7" * 500), turn("4" * 50)]}
    assert play(script, Budget(response=40, answer=8, threads=8, blocks=8))[0].outcome == "truncated"


@pytest.mark.parametrize(
    "text",
    [
        "<think></Outlines>",
        "<think><Parallel></Outlines>",
        "<think><Parallel><Outlines></Outlines>",
        "<think><Parallel><Outlines><Outline>2:a</Outline></Outlines>",
        "<think><Parallel><Outlines><Outline>1:a</Outline><Outline>1:b</Outline></Outlines>",
        "<think><Parallel><Outlines><Outline>1:a<Thread></Outline></Outlines>",
        "<think><Parallel><Outlines>x<Outline>1:a</Outline></Outlines>",
        "<think><Parallel><Outlines><Outline>a</Outline></Outlines>",
        "<think><Outlines><Outline>1:a</Outline></Outlines>",
        "<think><Parallel>x<Outlines><Outline>1:a</Outline></Outlines>",
    ],
)
def test_a_malformed_fork_is_named_and_never_run(text: str) -> None:
    trajectory, spy = play({(): [turn(text)]})
    assert trajectory.outcome == "malformed" and trajectory.calls[0].event == "malformed"
    assert len(spy.sent) == 1 and len(trajectory.notes) == 1


def test_a_broken_fork_before_a_good_one_is_no_strict_format() -> None:
    script = DIALECT.write(TWO)
    script[()][0] = (
        turn("<think><Parallel></Thread><Parallel>") + script[()][0][script[()][0].index(TOKENS.tag("<Outlines>")) :]
    )
    trajectory, _ = play(script)
    assert trajectory.outcome == "answered" and DIALECT.check(trajectory) is not None


def test_a_thread_cannot_close_the_reasoning_of_the_root() -> None:
    script = DIALECT.write(TWO) | {(0, 1): [turn("9</think>1\n</Thread>")]}
    script[()][1] = turn("7" * 500)
    trajectory, _ = play(script | {(): [*script[()], turn("42<|eos|>")]}, Budget(100, 8, threads=8, blocks=8))
    assert trajectory.outcome == "forced_answer"
    assert TOKENS.decode(trajectory.root_ids()).endswith("7</think>42<|eos|>")
    assert "9</think>1" not in TOKENS.decode(trajectory.root_ids())


def test_a_fork_after_the_reasoning_is_malformed() -> None:
    trajectory, spy = play({(): [turn("<think></think>5" + FORK_OF_TWO.removeprefix("<think>"))]})
    assert (
        trajectory.outcome == "malformed" and trajectory.notes == {"fork/after the reasoning": 1} and len(spy.sent) == 1
    )


def test_what_is_sampled_does_not_depend_on_which_call_is_served_first() -> None:
    """Each call has a seed of its own, the same in every run, different from every other's."""
    spy = Spy(ReplayEngine(DIALECT.write(TWO), 4000))
    asyncio.run(run_trajectory(spy, DIALECT, "p", TOKENS.prompt("a3="), WIDE, seed=5))
    seeds = {(thread, tuple(ids)): sampling.seed for thread, ids, sampling in spy.sent}
    assert len(set(seeds.values())) == 4 and None not in seeds.values()
    again = Spy(ReplayEngine(DIALECT.write(TWO), 4000))
    asyncio.run(run_trajectory(again, DIALECT, "p", TOKENS.prompt("a3="), WIDE, seed=5))
    assert {(thread, tuple(ids)): sampling.seed for thread, ids, sampling in again.sent} == seeds


def test_a_prompt_without_room_is_an_error_and_no_empty_trajectory() -> None:
    with pytest.raises(EngineError, match="max_context"):
        play(DIALECT.write(TWO), max_context=12)


def test_white_space_between_tags_is_allowed() -> None:
    script = DIALECT.write(TWO)
    script[()][0] = turn(
        "<think><Parallel>\n<Outlines>\n<Outline> 1: a</Outline>\n <Outline>2:b</Outline>\n</Outlines>"
    )
    assert play(script)[0].outcome == "answered"


def test_too_many_threads_or_blocks_are_malformed() -> None:
    assert play({(): [turn(FORK_OF_TWO)]}, Budget(2000, 8, threads=1, blocks=8))[0].outcome == "malformed"
    assert play({(): [turn(FORK_OF_TWO)]}, Budget(2000, 8, threads=8, blocks=0))[0].outcome == "malformed"


def test_a_fork_without_room_answers_instead() -> None:
    trajectory, _ = play({(): [turn(FORK_OF_TWO), turn("1<|eos|>")]}, Budget(36, 8, threads=8, blocks=8))
    assert trajectory.outcome == "forced_answer" and trajectory.notes == {"fork/no room": 1}
    assert TOKENS.decode(trajectory.response_ids()).endswith("</Outlines></Parallel></think>1<|eos|>")


def test_a_sequential_policy_reads_tags_as_words() -> None:
    dialect = make_dialect("sequential", TOKENS)
    script: Script = {(): [turn(FORK_OF_TWO + "<Thread></Parallel></think>58<|eos|>")]}
    trajectory, _ = play(script, dialect=dialect)
    lengths = measure(trajectory)
    assert trajectory.outcome == "answered" and lengths.blocks == 0 and lengths.l_critical == lengths.l_total
    with pytest.raises(DialectError, match="parallel_share"):
        dialect.write(TWO)


BODY = st.text("abc0123456789 ", max_size=12)
BLOCK = st.lists(st.tuples(BODY, BODY), min_size=1, max_size=4).map(lambda threads: Block(tuple(threads)))
DEMOS = st.builds(Demonstration, st.lists(BODY | BLOCK, max_size=4).map(tuple), BODY)


@settings(max_examples=60, deadline=None)
@given(DEMOS)
def test_what_is_written_is_what_is_read(demo: Demonstration) -> None:
    """Any demonstration plays through to its end, is strictly well formed, survives JSON, and counts right."""
    trajectory, _ = play(DIALECT.write(demo))
    assert trajectory.outcome == "answered" and DIALECT.check(trajectory) is None
    assert Trajectory.from_json(trajectory.to_json()) == trajectory
    lengths = measure(trajectory)
    blocks = [piece for piece in demo.reasoning if isinstance(piece, Block)]
    assert lengths.blocks == len(blocks) and lengths.threads == sum(len(b.threads) for b in blocks)
    # every thread samples body + \n </Thread> after a header of 3: a block hides all of its threads but the longest
    hidden = sum(sum(n) - max(n) for n in ([len(TOKENS.text(body)) + 5 for _, body in b.threads] for b in blocks))
    assert lengths.l_total - lengths.l_critical == hidden
    assert lengths.l_total == len(trajectory.response_ids())


@settings(max_examples=60, deadline=None)
@given(DEMOS, st.integers(12, 120), st.integers(1, 30) | st.none(), st.integers(12, 100) | st.none())
def test_no_budget_is_ever_exceeded(
    demo: Demonstration, response: int, thread: int | None, critical: int | None
) -> None:
    script = DIALECT.write(demo)
    script[()] += [turn("1<|eos|>")]  # for a forced answer
    trajectory, _ = play(script, Budget(response, 8, threads=8, blocks=8, critical=critical, thread=thread))
    lengths = measure(trajectory)
    assert lengths.l_critical <= lengths.l_total <= response
    assert critical is None or lengths.l_critical <= critical
    assert thread is None or all(
        len(s.ids) <= thread for s in trajectory.segments if s.thread and s.origin == "sampled"
    )


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(3)))
def test_lengths_do_not_depend_on_the_order_of_threads(order: list[int]) -> None:
    threads = (("a", "1"), ("b", "22222"), ("c", "333"))
    shuffled = Demonstration((Block(tuple(threads[i] for i in order)),), "0")
    assert measure(play(DIALECT.write(shuffled))[0]) == measure(
        play(DIALECT.write(Demonstration((Block(threads),), "0")))[0]
    )
