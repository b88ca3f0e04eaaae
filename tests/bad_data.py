"""Wrong data files: problems, demonstrations, published corpora, recorded rollouts; and places to write to."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from bad_inputs import Case, write

TASK, CORPUS, STORED = "Files of problems (data=jsonl)", "Published corpora", "Recorded rollouts and what is written"
GOOD = '{"problem": "1+1?", "answer": "2"}\n'
MANY = "".join(f'{{"problem": "{n}+1?", "answer": "{n + 1}"}}\n' for n in range(60))


def problems(name: str, did: str, content: str | bytes, line: str, **options: Any) -> Case:
    """data=jsonl data.options.path=train.jsonl."""

    def act() -> None:
        from apr_train.tasks import make_task

        make_task("jsonl", {"path": write("train.jsonl", content), **options}).problems("heldout", 500, 0)

    return Case(name, TASK, did, line, act)


def demonstrations(name: str, did: str, row: dict[str, Any], line: str) -> Case:
    """The same with a file of demonstrations."""

    def act() -> None:
        from apr_train.tasks import make_task

        worked = write("worked.jsonl", json.dumps({"problem": "1+1?", "answer": "2", **row}) + "\n")
        make_task("jsonl", {"path": write("train.jsonl", GOOD), "demonstrations": worked})

    return Case(name, TASK, did, line, act)


def corpus(name: str, did: str, file: str, content: str | bytes | None, line: str) -> Case:
    """data=corpus, or scripts/import_corpus.py, over a file."""

    def act() -> None:
        from apr_train.tasks import make_task

        if content is not None:
            write(file, content)
        make_task("corpus", {"path": file})

    return Case(name, CORPUS, did, line, act)


def rollouts(name: str, did: str, change: Callable[[dict[str, Any]], object] | str | bytes, line: str) -> Case:
    """scripts/score_rollouts.py over a recorded line that was changed, or over other contents."""

    def act() -> None:
        from test_credit import TWO, tree

        from apr_train.stored import line_of, read_groups, recorded

        content: Any = change
        if callable(change):
            line = json.loads(line_of(recorded(9, tree(TWO), 1.0, 0.0)))
            change(line)
            content = json.dumps(line) + "\n"
        read_groups([Path(write("rollouts.jsonl", content))])

    return Case(name, STORED, did, line, act)


def prompt_too_long() -> None:
    """A problem longer than the context leaves room for."""
    from helpers import toy_tokens

    from apr_train.compose import load
    from apr_train.problems import check_prompts
    from apr_train.tasks.base import Problem

    check_prompts(toy_tokens(), [Problem("train:7", "1" * 1000, "1")], load([]))


def half_a_pair() -> None:
    """JSON can hold half of a surrogate pair, which no tokenizer reads."""
    from apr_train.tasks import make_task

    make_task("jsonl", {"path": write("train.jsonl", '{"problem": "\\ud800", "answer": "2"}\n')})


def task(**options: Any) -> Callable[[], object]:
    """Makes task jsonl with options alone."""

    def act() -> None:
        from apr_train.tasks import make_task

        make_task("jsonl", options)

    return act


def folder_for_a_file() -> None:
    Path("train.jsonl").mkdir()
    task(path="train.jsonl")()


def write_nowhere() -> None:
    from apr_train.stored import check_writable

    check_writable(Path("plots/rewards.png"))


def no_share() -> None:
    """What a rank does with the trajectories of a task that judges threads."""
    from helpers import toy_tokens
    from trees import grow, judged

    from apr_train.rollouts import Rollouts
    from apr_train.tasks.base import Problem
    from rollout.dialects import make_dialect

    class Percent:
        def thread_success(self, problem: Problem, asked: str, said: str) -> float:
            return 90

    tokens = toy_tokens()
    rollouts = Rollouts(*cast(Any, (None, make_dialect("threadweaver", tokens), tokens, None, None)))
    rollouts._thread_verdicts(Percent(), judged(grow(5, [[(1, 2)]], 5)), Problem("sums-train-0-1", "3*4 =", "12"))


def layout() -> None:
    from apr_train.corpora import import_corpus

    import_corpus("train.jsonl", "threadweever")


CASES = [
    Case(
        "no share",
        TASK,
        "a task of your own that judges threads in percent",
        "problem sums-train-0-1: thread_success is 90, not 0 to 1 or None",
        no_share,
    ),
    Case("no file", TASK, "a file that is not there", "there is no file train.jsonl", task(path="train.jsonl")),
    Case(
        "a folder", TASK, "a folder instead of a file", "train.jsonl is a folder; name a JSONL file", folder_for_a_file
    ),
    Case(
        "no path",
        TASK,
        "neither a file nor a dataset",
        "task jsonl needs exactly one of data.options.path, data.options.paths and data.options.dataset",
        task(),
    ),
    Case(
        "hub is not reached",
        TASK,
        "a dataset that cannot be had",
        (
            "cannot load dataset nobody/nothing (default, train): Couldn't reach 'nobody/nothing' on "
            "the Hub (OfflineModeIsEnabled)"
        ),
        task(dataset="nobody/nothing"),
    ),
    problems("empty", "an empty file", "", "task jsonl: train.jsonl has no train rows; add rows or set heldout_share"),
    problems(
        "not UTF-8",
        "Latin-1 instead of UTF-8",
        '{"problem": "café", "answer": "1"}\n'.encode("latin-1"),
        ("train.jsonl:1: not JSON ('utf-8' codec can't decode byte 0xe9 in position 16: invalid continuation byte)"),
    ),
    problems(
        "gzip", "a compressed file", gzip.compress(GOOD.encode(), mtime=0), "train.jsonl is compressed; unpack it first"
    ),
    problems(
        "not JSON",
        "a line that is no JSON",
        GOOD + "{'problem': 1}\n",
        ("train.jsonl:2: not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))"),
    ),
    problems("no object", "a line that is no object", GOOD + "[1, 2]\n", "train.jsonl:2: a row is an object, not list"),
    problems("blank line", "a blank line", f"{GOOD}\n{GOOD}", "train.jsonl:2: empty line"),
    problems(
        "too deep",
        "nesting without end",
        "[" * 100_000 + "\n",
        (
            "train.jsonl:1: not JSON (maximum recursion depth exceeded while decoding a JSON array "
            "from a unicode string)"
        ),
    ),
    problems(
        "missing field",
        "a misspelt column",
        '{"problem": "1+1?", "anwser": "2"}\n',
        "train.jsonl:1: no column 'answer'; did you mean 'anwser'?",
    ),
    problems(
        "wrong type",
        "a list for an answer",
        '{"problem": "1+1?", "answer": ["2"]}\n',
        "train.jsonl:1: column 'answer' must be text or a number, got ['2']",
    ),
    problems(
        "empty answer",
        "an empty answer",
        '{"problem": "1+1?", "answer": " "}\n',
        "train.jsonl:1: column 'answer' is empty",
    ),
    problems(
        "NaN",
        "NaN for an answer",
        '{"problem": "1+1?", "answer": NaN}\n',
        "train.jsonl:1: column 'answer' must be text or a number, got nan",
    ),
    problems(
        "infinity",
        "an answer that no number holds",
        '{"problem": "1+1?", "answer": 1e999}\n',
        "train.jsonl:1: column 'answer' must be text or a number, got inf",
    ),
    Case(
        "half a pair",
        TASK,
        "text that is no Unicode",
        "train.jsonl:1: column 'problem' is no Unicode text (it has half of a surrogate pair)",
        half_a_pair,
    ),
    problems(
        *(
            "duplicate id",
            "an id that comes twice",
            '{"id": 7, "problem": "1", "answer": "1"}\n' * 2,
            "train.jsonl:2: id '7' was already used at train.jsonl:1",
        ),
        id_column="id",
    ),
    problems(
        "few problems",
        "a BOM, which is read over, and fewer problems than asked for",
        "\ufeff" + MANY,
        "eval.problems=500: ask for fewer heldout problems, the data has 3",
    ),
    Case(
        "long prompt",
        TASK,
        "a problem that leaves no room to answer",
        (
            "problem train:7 has 1000 prompt tokens; model.max_context=1024 leaves room for 960: "
            "raise it, or drop the problem"
        ),
        prompt_too_long,
    ),
    demonstrations(
        "reasoning is text",
        "a demonstration that is no list",
        {"reasoning": "One and one."},
        "worked.jsonl:1: reasoning must be a list of at least one piece",
    ),
    demonstrations(
        "one thread",
        "a block of one thread",
        {"reasoning": [{"threads": [["a", "b"]]}]},
        (
            'worked.jsonl:1: reasoning holds text and {"threads": [[outline, body], [outline, body], '
            "..]} with two threads or more, got {'threads': [['a', 'b']]}"
        ),
    ),
    corpus(
        "corpus missing",
        "a file that is not there",
        "train.parquet",
        None,
        "data.options.path=train.parquet: there is no file train.parquet",
    ),
    corpus(
        "corpus empty",
        "an empty file",
        "train.jsonl",
        "",
        "data.options.path=train.jsonl has no row of layout threadweaver: no rows",
    ),
    corpus(
        "corpus not JSON",
        "lines that are no JSON",
        "train.jsonl",
        "one\ntwo\n",
        "data.options.path=train.jsonl has no row of layout threadweaver: not a JSON object (2)",
    ),
    corpus(
        "corpus object",
        "an object instead of rows",
        "train.json",
        "{}",
        ("data.options.path=train.json: train.json holds no JSON array of rows; name it .jsonl if it has a row a line"),
    ),
    corpus(
        "corpus truncated",
        "a truncated Parquet file",
        "train.parquet",
        b"PAR1 half of it",
        (
            "data.options.path=train.parquet: train.parquet is no sound Parquet file (Parquet magic "
            "bytes not found in footer. Either the file is corrupted or this is not a parquet file.)"
        ),
    ),
    corpus(
        "corpus compressed",
        "a compressed file",
        "train.jsonl.gz",
        gzip.compress(b"{}", mtime=0),
        ("data.options.path=train.jsonl.gz: train.jsonl.gz ends in none of .jsonl, .json, .parquet"),
    ),
    Case(
        "corpus layout",
        CORPUS,
        "a misspelt layout",
        "there is no layout 'threadweever': did you mean 'threadweaver'?",
        layout,
    ),
    rollouts(
        "rollouts empty",
        "a file without rollouts",
        "",
        "no rollouts in rollouts.jsonl: set logger.rollouts_every to record some",
    ),
    rollouts(
        "rollouts not UTF-8",
        "bytes that are no text",
        b"\xff\xfe\n",
        ("rollouts.jsonl cannot be read: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ),
    rollouts(
        "rollouts list",
        "a line that is no object",
        "[]\n",
        "rollouts.jsonl:1 is no recorded rollout (TypeError: a line is an object, not list)",
    ),
    rollouts(
        "rollouts truncated",
        "a line that was cut off",
        '{"step": 9, "verdict": "corr\n',
        (
            "rollouts.jsonl:1 is no recorded rollout (JSONDecodeError: Unterminated string starting "
            "at: line 1 column 24 (char 23))"
        ),
    ),
    rollouts(
        "rollouts field",
        "a missing field",
        lambda line: line["trajectory"].pop("segments"),
        "rollouts.jsonl:1 is no recorded rollout (KeyError: 'segments')",
    ),
    rollouts(
        "rollouts verdict",
        "an unknown verdict",
        lambda line: line.update(verdict="perfect"),
        ("rollouts.jsonl:1: verdict 'perfect' is none of correct, wrong, unparsable, timeout, error"),
    ),
    rollouts(
        "rollouts step",
        "a step without end",
        lambda line: line.update(step=float("inf")),
        ("rollouts.jsonl:1 is no recorded rollout (OverflowError: cannot convert float infinity to integer)"),
    ),
    rollouts(
        "rollouts ids",
        "text for ids",
        lambda line: line["trajectory"]["segments"][0].update(ids="abc"),
        "rollouts.jsonl:1 is no recorded rollout (TypeError: 'a' is no whole number)",
    ),
    rollouts(
        "rollouts outcome",
        "an unknown outcome",
        lambda line: line["trajectory"].update(outcome="won"),
        (
            "rollouts.jsonl:1 is no recorded rollout (TypeError: outcome 'won' is none of answered, "
            "forced_answer, malformed, truncated)"
        ),
    ),
    Case(
        "no folder to write",
        STORED,
        "a picture into a folder that is not there",
        "cannot write plots/rewards.png: its folder is not there",
        write_nowhere,
    ),
]
