"""Countdown as APR trains it: the policy continues a search trace, in one text (SoS+) or with sub-searches (APR)."""

from dataclasses import dataclass
from math import ceil
from random import Random
from typing import Literal

from apr_train.tasks.base import Form, Problem, Split, TaskError
from apr_train.tasks.countdown import Instances, instances, reference
from apr_train.tasks.search import apr, sos_plus
from apr_train.tasks.split import MAX_DRAWS
from rewards.verdict import Verifier
from rewards.verify.countdown_search import SearchVerifier
from rollout.search_trace import SURFACES, SearchRun, budget_prefix, root_line

BIN, LARGEST_BIN = 512, 4096
"""Token budgets come in bins."""
LONGEST_NUMBER = 10**15
"""What the language can spell; the product of all numbers must stay below."""


@dataclass(frozen=True, slots=True)
class SearchOptions(Instances):
    """Instances as in task countdown, and how the solver that demonstrates searches."""

    form: Literal["apr", "sos_plus"] = "apr"
    """apr: some successors become children, in dialect apr. sos_plus: one text with nested searches."""
    surface: Literal["full", "terse"] = "full"
    """As in dialect.options.surface."""
    beam_max: int | None = None
    """Each problem draws a beam of 1 to this; null is 10 for apr and 5 for sos_plus, as published."""
    child_beam_max: int = 15
    """Children draw one beam, from the parent's to this."""
    promising: float = 0.9
    """apr: the chance that successors become children rather than wait in the parent's queue."""
    nest: float = 0.5
    """sos_plus: the chance that successors are searched at once."""
    only_solved: bool = False
    """Leaves out train problems whose demonstration fails, in GRPO too; about 30 % of apr, half of sos_plus."""
    condition: Literal["none", "sub_calls", "tokens"] = "none"
    """A budget before the prompt: children per spawn (apr) or tokens of the text (sos_plus)."""
    budget: int | None = None
    """The budget of held-out problems; null is 10 sub calls, or 4096 tokens."""
    train_budget: int | None = None
    """The budget of train problems; null is what each problem's own demonstration took, which SFT needs."""
    characters_per_token: float = 1.0
    """How the length of a demonstration is told in tokens; 1 for models that read characters."""

    def __post_init__(self) -> None:
        Instances.__post_init__(self)
        if self.number_max**self.numbers >= LONGEST_NUMBER:
            raise TaskError(f"task countdown_search cannot spell products of {self.numbers} such number_max")
        if self.beams[0] < 1 or self.beams[0] > self.child_beam_max:
            raise TaskError(f"task countdown_search needs 1 <= beam_max <= child_beam_max, got {self.beams}")
        if not 0 <= self.promising <= 1 or not 0 <= self.nest <= 1:
            raise TaskError("task countdown_search: promising and nest are chances, from 0 to 1")
        if self.condition != {"apr": "sub_calls", "sos_plus": "tokens"}[self.form] and self.condition != "none":
            raise TaskError(f"task countdown_search: form={self.form} cannot be conditioned on {self.condition}")
        if self.characters_per_token <= 0 or min(self.budget or 0, self.train_budget or 0) < 0:
            raise TaskError("task countdown_search: budgets are 0 or more, characters_per_token is above 0")

    @property
    def beams(self) -> tuple[int, int]:
        """The largest beam of a parent and of its children."""
        published = {"apr": 10, "sos_plus": 5}[self.form]
        return published if self.beam_max is None else self.beam_max, self.child_beam_max


class CountdownSearch:
    """`Moving to Node #0\\nCurrent State: 62:[53, 22, 4, 2], Operations: []\\n`; the reference is `62 from 53 22 4 2`.

    The same instances as task countdown. A demonstration is what the solver writes, failures included, as in the paper.
    """

    name = "countdown_search"

    def __init__(self, options: SearchOptions) -> None:
        self.options = options
        self.surface = SURFACES[options.surface]
        self.forms: tuple[Form, ...] = ("sequential", "parallel") if options.form == "apr" else ("sequential",)
        self.verifier: Verifier = SearchVerifier(self.surface)

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """See Task. `parts` is how many pairs of numbers a search may start with; SoS+ has one part: one text."""
        options = self.options
        parts = options.numbers * (options.numbers - 1) // 2 if options.form == "apr" else 1
        found: list[Problem] = []
        left_out = 0
        for target, numbers in instances(options, split, count, seed):
            if len(found) == count:
                break
            name = f"{self.name}-{split}-{seed}-{len(found)}"
            prompt = root_line(target, numbers, self.surface, moving=options.form == "apr")
            problem = Problem(name, prompt, reference(target, numbers), parts)
            if split == "train" and options.only_solved and not self._solved(problem):
                left_out += 1
                if left_out > MAX_DRAWS + 100 * count:
                    raise TaskError("task countdown_search: next to no demonstration succeeds; raise beam_max")
                continue
            found.append(self._conditioned(problem, split))
        return found

    def demonstration(self, problem: Problem, form: Form) -> SearchRun:
        """See Task. `parallel`: the solver decides where it spawns; `sequential`: it never does."""
        if form not in self.forms:
            raise TaskError(f"task countdown_search with form={self.options.form} has no {form} form")
        run = self._run(problem, form)
        if not problem.prompt.startswith(self._prefix(self._spent(run))):
            raise TaskError(
                f"the {form} demonstration of {problem.id} does not spend the budget it was given: for SFT take "
                "data.options.train_budget=null, and sft.parallel_share=1 with sub_calls"
            )
        return run

    def _run(self, problem: Problem, form: Form) -> SearchRun:
        """Drawn from the problem alone, so that a prompt can tell what its demonstration will spend."""
        options = self.options
        target, _, *numbers = problem.answer.split(" ")
        instance = int(target), tuple(map(int, numbers))
        random = Random(f"{problem.id} {problem.answer}")
        beam = random.randint(1, options.beams[0])
        if options.form == "sos_plus":
            return SearchRun((sos_plus(*instance, random, beam=beam, nest=options.nest, surface=self.surface),))
        promising = options.promising if form == "parallel" else 0.0
        child_beam = random.randint(beam, options.beams[1])
        return apr(*instance, random, beam=beam, child_beam=child_beam, promising=promising, surface=self.surface)

    def _solved(self, problem: Problem) -> bool:
        """Whether the demonstration reaches its goal in every form it may be shown in."""
        transcripts = (self._run(problem, form).transcript(self.surface) for form in self.forms)
        return all(self.verifier(transcript, problem.answer) == "correct" for transcript in transcripts)

    def _conditioned(self, problem: Problem, split: Split) -> Problem:
        options = self.options
        if options.condition == "none":
            return problem
        if split == "train":
            budget = options.train_budget
            budget = self._spent(self._run(problem, self.forms[-1])) if budget is None else budget
        else:
            budget = (
                options.budget if options.budget is not None else {"sub_calls": 10, "tokens": 4096}[options.condition]
            )
        return Problem(problem.id, self._prefix(budget) + problem.prompt, problem.answer, problem.parts)

    def _prefix(self, budget: int) -> str:
        condition = self.options.condition
        return "" if condition == "none" else budget_prefix(condition, budget, self.surface)

    def _spent(self, run: SearchRun) -> int:
        """Children per spawn, rounded; or the text's length in tokens, rounded up to a bin."""
        if self.options.form == "apr":
            return round(sum(map(len, run.spawns)) / len(run.spawns)) if run.spawns else 0
        tokens = len(run.turns[0]) / self.options.characters_per_token
        return min(LARGEST_BIN, BIN * ceil(tokens / BIN))
