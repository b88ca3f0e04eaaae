"""Rollouts that cannot be looked at: no run where one was named, another tokenizer, contradictions in a line."""

from collections.abc import Callable
from pathlib import Path

from bad_inputs import Case, write

GROUP = "The page of rollouts"


def case(name: str, did: str, act: Callable[[], object], line: str) -> Case:
    return Case(name, GROUP, did, line, act)


def no_run() -> None:
    from scripts.view_rollouts import files_of

    Path("outputs/run").mkdir(parents=True)
    files_of(Path("outputs/run"))


def no_folder() -> None:
    from scripts.view_rollouts import read_tokenizer

    read_tokenizer(Path("Qwen/Qwen3-8B"))


def no_tokenizer() -> None:
    from scripts.view_rollouts import read_tokenizer

    write("start/tokenizer_config.json", '{"tokenizer_class": "PreTrainedTokenizerFast"}')
    write("start/tokenizer.json", "{}")
    read_tokenizer(Path("start"))


def other_tokenizer() -> None:
    from helpers import toy_tokens
    from trees import grow

    from rollout.viewer import Recorded, page

    tokens = toy_tokens()
    page([Recorded(1, grow(5), "correct")], tokens.decode, vocabulary=len(tokens.tokenizer))


def other_calls() -> None:
    from trees import grow

    from rollout.viewer import Recorded, page

    page([Recorded(1, grow(5), "correct", trainer_logprobs=[[-1.0]])])


def no_number() -> None:
    from trees import grow

    from rollout.viewer import Recorded, page

    page([Recorded(10**400, grow(5), "correct")])


CASES = [
    case(
        "view no run",
        "a folder without rollouts",
        no_run,
        (
            "outputs/run holds no rollouts: train with logger.rollouts_every above 0, or evaluate with eval.record "
            "above 0, and name a row's folder"
        ),
    ),
    case(
        "view hub name",
        "a name where a folder belongs: `--tokenizer Qwen/Qwen3-8B`",
        no_folder,
        "--tokenizer Qwen/Qwen3-8B is no folder: give the run's start/, sft/ or rl/",
    ),
    case(
        "view broken tokenizer",
        "a folder whose tokenizer is broken",
        no_tokenizer,
        "--tokenizer start cannot be read (KeyError: 'added_tokens'): give the run's start/, sft/ or rl/",
    ),
    case(
        "view other tokenizer",
        "the tokenizer of another model",
        other_tokenizer,
        "the tokenizer has no token 1000: give the run's own with --tokenizer",
    ),
    case(
        "view other calls",
        "log-probs of other calls",
        other_calls,
        "problem p: trainer log-probs do not fit its calls",
    ),
    case(
        "view step",
        "a step that no number holds",
        no_number,
        "a number is too large to be shown (step): correct the file",
    ),
]
