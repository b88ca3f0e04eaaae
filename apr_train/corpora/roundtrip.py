"""Whether imported solutions can be trained in a dialect: written, played by the orchestrator, and read strictly."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from apr_train.corpora.base import Worked
from apr_train.corpora.report import Report
from rollout.dialects import dialect_class, make_dialect
from rollout.dialects.base import Dialect, DialectError, Script
from rollout.engine import EngineError
from rollout.engines.replay import ReplayEngine
from rollout.orchestrator import Budget, run_trajectory
from rollout.tokens import TagError, Tokens, register_tags
from rollout.trajectory import Trajectory

NO_END = 1 << 40


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A token for each byte: spells every text, so that no row fails for want of a character."""
    vocabulary = {letter: k for k, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|eos|>", pad_token="<|pad|>")


@dataclass
class Checker:
    """A dialect over a tokenizer; `why_not` says what keeps a solution from being trained in it.

    >>> Checker("npr").why_not(Worked("1+1?", "2", Demonstration(("One and one. ",), "2"))) is None
    True
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tokenizer: PreTrainedTokenizerBase = field(default_factory=byte_tokenizer)
    budget: Budget = field(default_factory=lambda: Budget(response=NO_END, answer=8, threads=64, blocks=256, depth=8))
    """Wide open: this asks about the grammar, not about the run's budgets."""

    def __post_init__(self) -> None:
        register_tags(self.tokenizer, dialect_class(self.name).tags(self.options))
        self.tokens = Tokens(self.tokenizer)
        self.dialect: Dialect = make_dialect(self.name, self.tokens, None, self.options)

    def why_not(self, worked: Worked) -> str | None:
        """None when the strict grammar accepts it and every turn is sampled as it was written, else the reason."""
        try:
            prompt = self.tokens.prompt(worked.prompt)
            script = self.dialect.write(worked.in_sequence() if self.name == "sequential" else worked.demonstration)
            engine = ReplayEngine(script, NO_END)
            trajectory = asyncio.run(run_trajectory(engine, self.dialect, "", prompt, self.budget))
        except (DialectError, TagError, EngineError) as error:
            return f"{type(error).__name__}: {str(error).partition(':')[0]}"
        if trajectory.outcome != "answered":
            return f"ends {trajectory.outcome} ({', '.join(trajectory.notes) or 'out of budget'})"
        if flaw := self.dialect.check(trajectory):
            return flaw
        return None if _as_written(script, trajectory) else "a turn ended early"


def _as_written(script: Script, trajectory: Trajectory) -> bool:
    """Whether each thread sampled all its turns, those apart that a race cut short."""
    sampled: dict[tuple[int, ...], list[int]] = {}
    cut: set[tuple[int, ...]] = set()
    for call in trajectory.calls:
        segment = trajectory.segments[call.sampled]
        sampled.setdefault(segment.thread, []).extend(segment.ids)
        cut |= {segment.thread} if call.event == "cancelled" else set()
    written = {name: [token for turn in turns for token in turn] for name, turns in script.items()}
    return all(sampled.get(name) == ids for name, ids in written.items() if name not in cut)


def check_rows(rows: Iterable[tuple[str, Worked]], checker: Checker) -> Report:
    """The report of a round trip through a dialect."""
    report = Report("kept rows", f"dialect {checker.name}")
    for where, worked in rows:
        report.read += 1
        reason = checker.why_not(worked)
        if reason is None:
            report.keep(worked)
        else:
            report.drop(reason, where)
    return report
