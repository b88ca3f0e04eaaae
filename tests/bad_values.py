"""Values that cannot train rightly, alone or together, and folders that a run cannot have."""

from bad_configs import case
from bad_inputs import Case, write

MEANING = "Values and contradictions"


def other_run() -> None:
    """Resumes in the folder of a run with another group size."""
    from pathlib import Path

    from apr_train.compose import load as composed
    from apr_train.identity import check_same_run, identity_of

    first, second = composed([]), composed(["algorithm.group_size=4"])
    check_same_run(Path("outputs/run"), identity_of(first, [], 1), writes=True)
    check_same_run(Path("outputs/run"), identity_of(second, [], 1), writes=True)


def unknown_metric() -> None:
    """The first log of a stage whose best checkpoint is to be the one of a metric that is not there."""
    from types import SimpleNamespace
    from typing import Any, cast

    from apr_train.saving import _StopCallback

    saver = SimpleNamespace(score="reward/totl", values=[])
    nothing = cast(Any, None)
    _StopCallback(nothing, cast(Any, saver)).on_log(nothing, nothing, nothing, {"loss": 0.1, "reward/total": 0.5})


def in_proc() -> None:
    """A folder that the system does not let anybody make."""
    from pathlib import Path
    from typing import Any, cast

    from apr_train.compose import load as composed
    from apr_train.progress import claim

    config = composed(["output_dir=/proc/mine"])
    claim(config, cast(Any, None), Path(config.output_dir), [])


def trained_in_bfloat16() -> None:
    """What scripts/train.py asks of a configuration, and scripts/evaluate.py does not."""
    from apr_train.compose import load as composed
    from apr_train.validate_sampling import check_trainable

    check_trainable(composed(["model.dtype=bfloat16"]))


CASES = [
    case(MEANING, "negative", "a negative count", "algorithm.steps=-1", "algorithm.steps=-1 must be at least 0"),
    case(MEANING, "zero", "a zero", "rollout.max_threads=0", "rollout.max_threads=0 must be at least 1"),
    case(MEANING, "NaN", "no number", "sft.parallel_share=nan", "sft.parallel_share=nan must be a finite number"),
    case(
        MEANING,
        "infinite",
        "an infinity",
        "algorithm.learning_rate=inf",
        "algorithm.learning_rate=inf must be a finite number",
    ),
    case(
        MEANING,
        "huge",
        "a number too large for any machine",
        "rollout.temperature=1e400",
        "rollout.temperature=inf must be a finite number",
    ),
    case(
        MEANING,
        "huge seed",
        "a seed of too many bits",
        "seed=4294967296",
        "seed=4294967296 must be below 2**32, which numpy's generator takes",
    ),
    case(
        MEANING,
        "one rollout a group",
        "nothing to compare a rollout with",
        "algorithm.group_size=1",
        "algorithm.group_size=1 must be at least 2: an advantage compares rollouts of one prompt",
    ),
    case(
        MEANING,
        "row loss",
        "a loss that is wrong for rows of calls",
        "algorithm.loss=bnpo",
        (
            "algorithm.loss=bnpo is wrong here, use dapo or cispo: it divides by the tokens of one "
            "micro-batch: the update would depend on how rows are split"
        ),
    ),
    case(
        MEANING,
        "deepspeed stage",
        "a ZeRO stage that is not there",
        "deepspeed.stage=4",
        "deepspeed.stage=4 does not exist; use null, 0, 1, 2 or 3",
    ),
    case(
        MEANING,
        "offload alone",
        "what only DeepSpeed does, without it",
        "deepspeed.offload_optimizer=true",
        "deepspeed.offload_optimizer needs stage 1, 2 or 3, not None",
    ),
    Case(
        "bfloat16 alone",
        MEANING,
        "bfloat16 trained without master weights",
        (
            "to train, model.dtype=bfloat16 needs deepspeed=zero0 to zero3, which keep float32 master weights: "
            "without them small updates round to nothing"
        ),
        trained_in_bfloat16,
        ("model.dtype=bfloat16",),
    ),
    case(
        MEANING,
        "more prompts",
        "more prompts a step than problems",
        "data.train_problems=8",
        "algorithm.prompts_per_step=16 is more than data.train_problems=8",
    ),
    case(
        MEANING,
        "torn groups",
        "micro-batches that tear groups",
        "algorithm.micro_batches=3",
        "algorithm.micro_batches=3 must divide a rank's 16 prompts a step: groups are never torn",
    ),
    case(
        *(MEANING, "nodes that do not divide", "prompts that cannot be shared among the ranks"),
        "cluster=slurm dry_run=true cluster.nodes=5",
        "algorithm.prompts_per_step=16 must be a multiple of the number of ranks, 40",
    ),
    case(
        MEANING,
        "no room",
        "responses as long as the context",
        "rollout.max_response_tokens=1024",
        "rollout.max_response_tokens=1024 leaves no room for a prompt in model.max_context=1024",
    ),
    case(
        MEANING,
        "flat stitched",
        "a stitched join of flat rows",
        "dialect=npr model.attention=sdpa",
        "model.attention=sdpa reads flat rows, not a stitched join: use model.attention=tree",
    ),
    case(
        MEANING,
        "stitched vllm",
        "a stitched join by vLLM",
        "dialect=npr rollout=vllm",
        (
            "rollout.engine=vllm cannot sample a stitched join, which hides threads from each other: "
            "use rollout=torch, or dialect.join=transcript"
        ),
    ),
    case(
        MEANING,
        "vectors in vllm",
        "vectors of threads without a stitched join",
        "model.thread_vectors=8",
        ("model.thread_vectors=8: only a stitched join keeps a thread's keys: set dialect.join=stitched"),
    ),
    case(
        MEANING,
        "name with a slash",
        "a run's name with a slash",
        "name=mine/first",
        "name='mine/first' must be a folder name, without /",
    ),
    case(
        MEANING,
        "name of a parent",
        "a run's name that leads out of outputs/",
        "name=..",
        "name='..' must be the name of a folder of its own",
    ),
    case(
        MEANING,
        "name with a line end",
        "a run's name with a line end",
        "name='mine\nfirst'",
        "name='mine\\nfirst' must be the name of a folder of its own",
    ),
    case(
        *(
            MEANING,
            "output is a file",
            "a file where the run's folder belongs",
            "output_dir=notes.txt",
            "output_dir=notes.txt: notes.txt is a file; name a folder",
        ),
        lambda: write("notes.txt", "x"),
    ),
    Case(
        "output is nowhere",
        MEANING,
        "a folder that cannot be made: `output_dir=/proc/mine`",
        "output_dir=/proc/mine cannot be made (No such file or directory): name another folder",
        in_proc,
    ),
    case(
        MEANING,
        "slurm time",
        "a time that Slurm does not read",
        "cluster.time=tomorrow",
        "cluster.time='tomorrow' is no time, e.g. 24:00:00",
    ),
    case(
        MEANING,
        "url without scheme",
        "an address without http://",
        "rollout=vllm_http rollout.urls=[localhost]",
        "rollout.urls: localhost is no server's address, as http://127.0.0.1:8000/v1 is",
    ),
    case(
        *(MEANING, "url without port", "a port that is no number"),
        "rollout=vllm_http rollout.urls=[http://127.0.0.1:vllm/v1]",
        ("rollout.urls: http://127.0.0.1:vllm/v1 is no address (Port could not be cast to integer value as 'vllm')"),
    ),
    case(
        *(MEANING, "url elsewhere", "a server of another machine without a token"),
        "rollout=vllm_http rollout.urls=[http://gpu7:8000/v1]",
        (
            "rollout.urls: http://gpu7:8000/v1 is another machine: set VLLM_API_KEY to the token of "
            "its server, here and there"
        ),
    ),
    Case(
        *(
            "folder of another run",
            MEANING,
            "a start in the folder of a run with other settings",
            (
                "outputs/run holds a run with other settings: algorithm.group_size was 8 and is 4; take "
                "another name=, start anew with resume=never, or go on all the same with resume=force"
            ),
        ),
        other_run,
    ),
    Case(
        "unknown metric",
        MEANING,
        "`checkpoint.keep_best=reward/totl`, found when the stage logs first",
        "checkpoint.keep_best=reward/totl is no metric of this stage; reward/total is",
        unknown_metric,
    ),
]
