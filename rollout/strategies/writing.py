"""Partial responses, and calls beside them: what strategies that search among thoughts are made of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rollout.dialects.base import Dialect, Reasoning
from rollout.engine import Completion, Sampling
from rollout.seeds import mix
from rollout.strategies.base import Ids, Question, Setting, Solved, StrategyError, mean, spell
from rollout.strategies.merge import Name, Record
from rollout.tokens import Tokens
from rollout.trajectory import Event, Outcome
from rollout.view import View

NO_ROOM = "strategy/prompt does not fit"
BLANKS = 2
"""Blank lines that a thought may begin with."""


@dataclass(frozen=True, slots=True)
class State:
    """A response as far as it is written: the segments that its next call reads, the prompt first; its ids and the
    log-probs of those that were sampled; how it ended, None while it goes on; of how many whole thoughts it is."""

    context: tuple[int, ...]
    ids: Ids = ()
    logprobs: tuple[float, ...] = ()
    ended: Outcome | None = None
    thoughts: int = 0

    @property
    def last(self) -> int:
        """The segment that has to be there before anything that goes on from here."""
        return self.context[-1]

    @property
    def finished(self) -> bool:
        return self.ended in ("answered", "forced_answer")

    @property
    def logprob(self) -> float:
        """The mean over its sampled tokens, in nats."""
        return mean(self.logprobs)


class Writer:
    """Writes responses to one question as the sequential dialect does: the dialect's tags but those of the reasoning
    are banned, so nothing forks. Calls may run side by side; each records itself when it ends."""

    def __init__(self, setting: Setting, question: Question, strategy: str) -> None:
        self.setting, self.question, self.strategy = setting, question, strategy
        self.record = Record(question.prompt)
        self.eos = setting.tokens.eos
        self.banned = forbidden(setting.dialect, self.eos, strategy)
        self.start = State((0,))

    async def think(
        self,
        state: State,
        name: Name,
        seed: int,
        after: Sequence[int] = (),
        *,
        stops: Ids = (),
        most: int | None = None,
    ) -> State:
        """Goes on with an open response, as thread `name`, when the segments `after` are there too: to the end, to one
        of `stops`, or for `most` tokens. Out of budget, the client closes the reasoning and lets the model answer.

        A blank line is no thought, though it ends with one of `stops`: what follows belongs to it. A third one in a row
        is, or a model that writes nothing else would be asked for every token of its budget alone."""
        for again in range(BLANKS, -1, -1):
            room = self._room(state) - self._reserve()
            size = room if most is None else min(room, most)
            if size < 1:
                return await self._force_answer(state, name, seed, after)
            done = await self._complete(state.context, size, (*stops, self.eos), seed, name)
            final = done.ids[-1] == self.eos
            out = not final and done.finish == "length" and size == room
            state = self._grown(state, done, name, after, "final" if final else "truncated" if out else "kept")
            if final:
                return replace(state, ended="answered")
            if out:
                return await self._force_answer(state, name, seed)
            if not stops or not again or self.text(done.ids).strip():
                break
            seed, after = mix(seed, 2), ()
        return replace(state, thoughts=state.thoughts + 1)

    async def ask(self, text: str, name: Name, seed: int, after: Sequence[int], most: int) -> tuple[str, int | None]:
        """What the model says to a prompt of its own that could be written when `after` was there, its reasoning left
        out; and the segment of the reply. ("", None) where the prompt does not fit."""
        prompt = spell(self.setting.tokens, text, self.strategy)
        room = min(most, self.setting.engine.max_context - len(prompt))
        if room < 1:
            self.record.note(NO_ROOM)
            return "", None
        asked = self.record.add("prompt", prompt, after, name)
        done = await self._complete((asked,), room, (self.eos,), seed, name)
        reply = self.record.add("sampled", done.ids, (asked,), name, done.logprobs)
        self.record.call((asked,), reply, "join" if done.finish == "stop" else "truncated")
        return self.text(done.ids).rpartition("</think>")[2], reply

    def text(self, ids: Sequence[int]) -> str:
        """As text, without the eos."""
        return self.setting.tokens.decode([token for token in ids if token != self.eos])

    def solved(self, chosen: State | None) -> Solved:
        """The strategy's result; None: nothing finished."""
        outcome = "truncated" if chosen is None or chosen.ended is None else chosen.ended
        trajectory = self.record.trajectory(self.setting, self.question, outcome)
        return Solved(trajectory, chosen.ids if chosen is not None and chosen.finished else ())

    def _room(self, state: State) -> int:
        held = sum(len(self.record.segments[index].ids) for index in state.context)
        return min(self.setting.budget.response - len(state.ids), self.setting.engine.max_context - held)

    def _reserve(self) -> int:
        """What a response keeps back for its answer, as the orchestrator does."""
        closing = self.setting.dialect.closing
        return 0 if closing is None else closing + self.setting.budget.answer

    async def _complete(self, context: Sequence[int], most: int, stops: Ids, seed: int, name: Name) -> Completion:
        setting = self.setting
        sampling = Sampling(most, stops, setting.temperature, seed, banned_ids=self.banned)
        view = View.causal([self.record.segments[index].ids for index in context])
        return await setting.engine.complete(view, sampling, name)

    def _grown(self, state: State, done: Completion, name: Name, after: Sequence[int], event: Event) -> State:
        new = self.record.add("sampled", done.ids, (state.last, *after), name, done.logprobs)
        self.record.call(state.context, new, event)
        ids, logprobs = (*state.ids, *done.ids), (*state.logprobs, *done.logprobs)
        return replace(state, context=(*state.context, new), ids=ids, logprobs=logprobs)

    async def _force_answer(self, state: State, name: Name, seed: int, after: Sequence[int] = ()) -> State:
        """Closes the reasoning of a response that is out of budget, and samples its answer with what was kept back."""
        setting = self.setting
        if setting.dialect.closing is None:
            return replace(state, ended="truncated")
        forced = setting.dialect.force_answer(state.ids)
        room = min(setting.budget.answer, self._room(state) - len(forced))
        if room < 1:
            return replace(state, ended="truncated")
        if forced:
            new = self.record.add("forced", forced, (state.last, *after), name)
            state = replace(state, context=(*state.context, new), ids=(*state.ids, *forced))
            after = ()
        done = await self._complete(state.context, room, (self.eos,), mix(seed, 1), name)
        ended = done.finish == "stop"
        wrote = self._grown(state, done, name, after, "final" if ended else "truncated")
        return replace(wrote, ended="forced_answer" if ended else "truncated")


def forbidden(dialect: Dialect, eos: int, strategy: str) -> Ids:
    """The ids of a dialect's tags but those of the reasoning and the eos. Raises StrategyError where a dialect does not
    tell them."""
    tags: frozenset[int] | None = getattr(dialect, "tag_ids", None)
    if tags is None:
        raise StrategyError(
            f"strategy {strategy} cannot keep dialect {dialect.name} from forking: give its class `tag_ids`, the ids "
            "of its tags"
        )
    free = {dialect.think, dialect.end_think} if isinstance(dialect, Reasoning) else set[int]()
    return tuple(sorted(tags - free - {eos}))


class Separator:
    """The ids with which a thought ends: every ordinary token whose text ends with the separator, since a vocabulary
    may have many (`.\\n` beside `\\n`). Those of the last tokenizer are remembered: a vocabulary is long."""

    def __init__(self, text: str, strategy: str) -> None:
        self.text, self.strategy = text, strategy
        self._known: tuple[Tokens, Ids] | None = None

    def ids(self, tokens: Tokens) -> Ids:
        """Raises StrategyError where no token ends so."""
        if self._known is None or self._known[0] is not tokens:
            self._known = tokens, self._ends(tokens)
        return self._known[1]

    def _ends(self, tokens: Tokens) -> Ids:
        special: set[int] = set(tokens.tokenizer.all_special_ids)
        plain = (token for token in range(len(tokens.tokenizer)) if token not in special)
        ends = tuple(token for token in plain if tokens.decode((token,)).endswith(self.text))
        if not self.text or not ends:
            raise StrategyError(
                f"strategy {self.strategy}, option separator: no token ends with {self.text!r}; take another, or "
                "thought_tokens"
            )
        return ends
