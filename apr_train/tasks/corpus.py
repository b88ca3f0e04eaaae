"""Problems and demonstrations of a published corpus, in whatever dialect the run writes them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from apr_train.corpora import import_corpus
from apr_train.corpora.base import CorpusError, Worked
from apr_train.tasks.base import Form, Problem, Split, TaskError
from apr_train.tasks.split import generator, split_of
from rewards.verdict import Verifier
from rewards.verify.countdown_search import SearchVerifier
from rewards.verify.math import MathVerifier
from rollout.demonstration import Demonstration
from rollout.search_trace import FULL, SearchRun


@dataclass(frozen=True, slots=True)
class CorpusOptions:
    """Where a corpus is and how its rows are laid out."""

    path: str | None = None
    """A .jsonl, .json or .parquet file, a folder, or a hub name; scripts/import_corpus.py shows what would be kept."""
    layout: Literal["threadweaver", "multiverse", "parallel_r1", "npr", "apr"] = "threadweaver"
    """How the file is written, whatever the dialect of the run."""
    split: str = "train"
    """Of a folder or hub dataset."""
    heldout_share: float = 0.05
    """Share of the problems held out by a hash of their text."""
    deadline_s: float = 5.0
    verifier_workers: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.heldout_share < 1:
            raise TaskError(f"task corpus needs 0 <= heldout_share < 1, got {self.heldout_share}")


class Corpus:
    """Problems as they are in the corpus; `parts` is the size of the widest block of the solution.

    `parallel` is the solution as it was published, `sequential` the bodies of its blocks one after the other. Of a
    problem with several solutions each is a problem of its own, all on one side of the held-out line. Layout apr has
    search traces, judged as such; the others are judged by math-verify.
    """

    name = "corpus"
    forms: tuple[Form, ...] = ("sequential", "parallel")

    def __init__(self, options: CorpusOptions) -> None:
        self.options = options
        self.verifier: Verifier = (
            SearchVerifier(FULL)
            if options.layout == "apr"
            else MathVerifier(options.deadline_s, options.verifier_workers)
        )
        self._worked: dict[str, Worked] = {}
        self._problems: dict[Split, list[Problem]] = {"train": [], "heldout": []}
        if options.path is not None:
            self._read(options.path)

    def _read(self, path: str) -> None:
        options = self.options
        try:
            corpus = import_corpus(path, options.layout, options.split)
        except CorpusError as error:
            raise TaskError(f"data.options.path={path}: {error}") from error
        for where, worked in corpus.rows:
            problem = Problem(f"{Path(path).parent.name}/{where}", worked.prompt, worked.answer, worked.parts)
            self._worked[problem.id] = worked
            self._problems[split_of(f"corpus {worked.prompt}", options.heldout_share)].append(problem)
        if not corpus.rows:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in corpus.report.rows.items())
            raise TaskError(f"data.options.path={path} has no row of layout {options.layout}: {reasons or 'no rows'}")

    def problems(self, split: Split, count: int, seed: int) -> list[Problem]:
        """See Task. No row comes twice: TaskError when the split has fewer than `count`."""
        random = generator(self.name, split, count, seed)
        if self.options.path is None:
            raise TaskError("task corpus needs data.options.path: a file, a folder or a hub name")
        if count > len(self._problems[split]):
            key, has = "data.train_problems" if split == "train" else "eval.problems", len(self._problems[split])
            raise TaskError(f"{key}={count}: ask for fewer {split} problems, the corpus has {has}")
        return random.sample(self._problems[split], count)

    def demonstration(self, problem: Problem, form: Form) -> Demonstration | SearchRun:
        """See Task."""
        worked = self._worked[problem.id]
        if form == "parallel":
            if worked.parts == 1:
                raise TaskError(f"problem {problem.id} is solved without threads: only the sequential form exists")
            return worked.demonstration
        if isinstance(worked.demonstration, SearchRun) and worked.demonstration.spawns:
            raise TaskError(f"the search of {problem.id} has children, no sequential form: set sft.parallel_share=1")
        return worked.in_sequence()
