"""Wrong checkpoints, and notes of a run that are not what was written."""

from collections.abc import Callable
from pathlib import Path

from bad_inputs import Case, write

CHECKPOINT = "Checkpoints and what a run noted"


def checkpoint(name: str, did: str, change: Callable[[Path], object], line: str) -> Case:
    """A whole checkpoint that was changed and is then looked at by the next start."""

    def act() -> None:
        from apr_train.checkpoint import Checkpoints, verify

        points = Checkpoints(Path("rl"))
        write(str(points.draft(50) / "model.safetensors"), "weights")
        change(points.seal(50))
        verify(points.path(50))

    return Case(name, CHECKPOINT, did, line, act)


def none_whole() -> None:
    import warnings

    from apr_train.checkpoint import Checkpoints

    write("rl/step_50/model.safetensors", "weights")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names the damaged one, and is another line
        Checkpoints(Path("rl")).newest()


def progress(content: str) -> Callable[[], object]:
    def act() -> None:
        from apr_train.checkpoint import read_json

        read_json(Path(write("outputs/run/progress.json", content)))

    return act


def other_ranks() -> None:
    from apr_train.compose import load
    from apr_train.identity import check_same_run, identity_of

    config = load([])
    check_same_run(Path("outputs/run"), identity_of(config, [], 2), writes=True)
    check_same_run(Path("outputs/run"), identity_of(config, [], 4), writes=True)


CASES = [
    checkpoint(
        "no manifest",
        "no manifest",
        lambda path: (path / "manifest.json").unlink(),
        "rl/step_50 is damaged: it has no readable manifest.json",
    ),
    checkpoint(
        *("odd manifest", "a manifest of something else"),
        lambda path: (path / "manifest.json").write_text('{"files": {"model.safetensors": 7}}'),
        "rl/step_50 is damaged: it has no readable manifest.json",
    ),
    checkpoint(
        "lost file",
        "a file that is gone",
        lambda path: (path / "model.safetensors").unlink(),
        "rl/step_50 is damaged: model.safetensors is missing",
    ),
    checkpoint(
        "cut file",
        "a truncated file",
        lambda path: (path / "model.safetensors").write_text("wei"),
        "rl/step_50 is damaged: model.safetensors has 3 bytes and not 7",
    ),
    checkpoint(
        "other bytes",
        "other bytes",
        lambda path: (path / "model.safetensors").write_text("WEIGHTS"),
        "rl/step_50 is damaged: model.safetensors has other contents than were written",
    ),
    Case(
        "none whole",
        CHECKPOINT,
        "no checkpoint that is whole",
        "no checkpoint in rl is whole: resume=never starts the run anew",
        none_whole,
    ),
    Case(
        "cut progress",
        CHECKPOINT,
        "a truncated progress.json",
        (
            "outputs/run/progress.json cannot be read (Expecting value: line 1 column 9 (char 8)): "
            "it was cut off, or changed by hand"
        ),
        progress('{"sft": '),
    ),
    Case(
        "odd progress",
        CHECKPOINT,
        "a progress.json of something else",
        ("outputs/run/progress.json cannot be read (it holds no object): it was changed by hand"),
        progress("[]"),
    ),
    Case(
        "other ranks",
        CHECKPOINT,
        "a start with another number of ranks",
        (
            "outputs/run holds a run with other settings: ranks was 2 and is 4; take another name=, "
            "start anew with resume=never, or go on all the same with resume=force"
        ),
        other_ranks,
    ),
]
