"""The one vocabulary of metrics: every key that a run logs, its unit, what it means, and how it is reduced to a number.

`docs/metrics.md` is made from here, and so is the dashboard (`scripts/make_dashboard.py`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["rl", "sft", "heldout"]
"""What a line of metrics.jsonl is of: an update of GRPO, one of SFT or of a round of self-training, an evaluation."""

SECTIONS = {
    "reward": "What the trajectories are worth",
    "tree": "How they fork, and how long they are",
    "stop": "How they end; the shares sum to 1",
    "verify": "What the verifier says; the shares sum to 1",
    "group": "Whether the rollouts of a prompt differ",
    "advantage": "How strongly the step pushes",
    "gap": "Whether the policy that sampled is the one that is trained",
    "loss": "What the update minimises",
    "optim": "The optimizer's step",
    "sync": "The trainer's weights in the sampler",
    "time": "Where the seconds go",
    "perf": "Throughput and memory",
    "eval": "Held-out problems, after SFT and after RL",
    "sft": "Updates of the warm start, or of a round of self-training",
}
"""The prefixes, in the order of dashboards and docs, and what each is about."""

AXES: dict[Kind, str] = {"rl": "optim/step", "sft": "sft/step", "heldout": "eval/step"}
"""Under which name W&B gets a line's step."""

EACH = "mean over trajectories of all ranks"
JUDGED = "mean over judged trajectories of all ranks"
GROUPS = "mean over groups of all ranks"
PASSES = "mean over micro-batches, each a mean over trained tokens of all ranks"
TRAINED = "mean over trained tokens of all ranks"
FIRST = "the first rank's"
SAME = "the same on all ranks"
FIGURES = "over all problems"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. A name with `<term>` is one for each of the reward's terms.

    >>> find("reward/gate/acceleration").name
    'reward/gate/<term>'
    """

    name: str
    unit: str
    """share | tokens | nats | s | GiB | count | ..."""
    meaning: str
    reduction: str
    """How a step's many values become one."""
    only: str = ""
    """When it is logged; empty: in every line of its kind."""
    timed: bool = False
    """Measures the machine or what befell it: two runs of one seed differ in it."""

    @property
    def kind(self) -> Kind:
        """Of the lines that hold it."""
        return "sft" if self.name.startswith("sft/") else "heldout" if self.name.startswith("eval/") else "rl"

    @property
    def section(self) -> str:
        """Its prefix, a key of SECTIONS."""
        return self.name.split("/")[0]

    @property
    def pattern(self) -> str:
        """A regular expression of its names."""
        return "^" + re.escape(self.name).replace("<term>", ".+") + "$"


METRICS: tuple[Metric, ...] = (
    Metric("reward/total", "reward", "The reward: the sum over its terms.", JUDGED),
    Metric("reward/accuracy", "share", "Right answers. A verifier that failed counts neither way.", JUDGED),
    Metric("reward/term/<term>", "reward", "The term's summand: weight, schedule, gate and clip applied.", JUDGED),
    Metric("reward/gate/<term>", "share", "Trajectories for which the term's gate was open.", EACH),
    Metric(
        "reward/saturated/<term>",
        "share",
        "Of those with an open gate, where the term's floor or cap bound: it cannot tell them apart.",
        "mean over trajectories with an open gate, of all ranks",
    ),
    Metric("reward/schedule/<term>", "factor", "The term's schedule at this step.", SAME),
    Metric("tree/l_critical", "tokens", "L_critical: the longest chain of response tokens.", EACH),
    Metric("tree/l_critical_max", "tokens", "The longest L_critical.", "max over trajectories of all ranks"),
    Metric("tree/l_total", "tokens", "L_total: response tokens, each counted once.", EACH),
    Metric("tree/l_total_max", "tokens", "The longest L_total.", "max over trajectories of all ranks"),
    Metric("tree/eta", "share", "Acceleration ratio 1 - L_critical / L_total.", EACH),
    Metric("tree/trigger_rate", "share", "Trajectories with at least one block.", EACH),
    Metric("tree/parallel_ratio", "share", "Response tokens inside threads.", EACH),
    Metric("tree/blocks", "count", "Blocks (forks that were run).", EACH),
    Metric("tree/spawned", "count", "Threads, over all blocks.", EACH),
    Metric("tree/threads", "count", "Threads per block.", "mean over trajectories with a block, of all ranks"),
    Metric("tree/depth", "count", "How deep blocks nest; 0 without one.", EACH),
    Metric("tree/strict_format", "share", "Trajectories that the strict grammar check of the dialect passes.", EACH),
    Metric("tree/threads_cut", "count", "Threads that reached rollout.max_thread_tokens and were closed.", EACH),
    Metric("tree/threads_ended_by_eos", "count", "Threads that ended the text in place of closing their tag.", EACH),
    Metric(
        "tree/threads_right",
        "share",
        "How right those threads were that closed themselves and that the task can judge (`JudgesThreads`).",
        "mean over trajectories with such a thread, of all ranks",
    ),
    Metric("tree/forks_without_room", "count", "Forks that the token budget had no room for.", EACH),
    Metric(
        "tree/alarm_serial_collapse",
        "0 or 1",
        "The trigger rate fell below 0.7 of what it was when the bonus was relaxed (docs/rewards.md).",
        "over the last 10 steps",
    ),
    Metric(
        "tree/alarm_spurious_parallelism",
        "0 or 1",
        "L_total is up by a tenth since the first 10 steps, and L_critical is not down (docs/rewards.md).",
        "over the last 10 steps",
    ),
    Metric("stop/answered", "share", "Ended by themselves, with an answer.", EACH),
    Metric("stop/forced_answer", "share", "Out of budget: closed by the client, then answered.", EACH),
    Metric("stop/malformed", "share", "Ended by tags that break the grammar.", EACH),
    Metric("stop/truncated", "share", "Out of budget or context, without an answer.", EACH),
    Metric("verify/correct", "share", "Right.", EACH),
    Metric("verify/wrong", "share", "Wrong.", EACH),
    Metric("verify/unparsable", "share", "No answer to be found in the response.", EACH),
    Metric("verify/timeout", "share", "The verifier did not end in time; never counted as wrong.", EACH),
    Metric("verify/error", "share", "The verifier failed; never counted as wrong.", EACH),
    Metric("group/without_signal", "share", "Groups whose advantages are all 0: they teach nothing.", GROUPS),
    Metric("group/all_correct", "share", "Groups in which every rollout is right: problems too easy.", GROUPS),
    Metric("group/none_correct", "share", "Groups in which no rollout is right: problems too hard.", GROUPS),
    Metric(
        "group/reward_std",
        "reward",
        "Standard deviation of the reward inside a group (divided by its size), of judged rollouts.",
        GROUPS,
    ),
    Metric(
        "group/resampled",
        "share",
        "Groups that were drawn again by algorithm.dynamic_sampling, per group of the step; may be above 1.",
        "sum over ranks, over the step's groups",
    ),
    Metric("advantage/mean_abs", "reward", "|advantage| of a trajectory's root.", EACH),
    Metric("advantage/max_abs", "reward", "The largest of them.", "max over trajectories of all ranks"),
    Metric("gap/logprob_mean_abs", "nats", "|log p_sampler - log p_trainer| of a sampled token.", PASSES),
    Metric(
        "gap/logprob_max_abs",
        "nats",
        "The largest of them: one token that a wrong mask or position hits shows here first.",
        "max over trained tokens of all ranks",
    ),
    Metric(
        "gap/unscored_calls",
        "share",
        "Calls that the public masks cannot score, and that train nothing.",
        "over calls of all ranks",
        only="dialect.mask other than exact",
    ),
    Metric(
        "loss/policy",
        "1",
        "The loss of algorithm.loss; on-policy near 0 whatever is learnt.",
        TRAINED,
    ),
    Metric("loss/entropy", "nats", "Entropy of the policy at a sampled token.", PASSES),
    Metric(
        "loss/clipped",
        "share",
        "Tokens whose probability ratio was clipped, either way.",
        PASSES,
        only="algorithm.loss=dapo",
    ),
    Metric(
        "loss/clipped_low",
        "share",
        "Of them, clipped at 1 - algorithm.epsilon_low.",
        PASSES,
        only="algorithm.loss=dapo",
    ),
    Metric(
        "loss/clipped_high",
        "share",
        "Of them, clipped at 1 + algorithm.epsilon_high.",
        PASSES,
        only="algorithm.loss=dapo",
    ),
    Metric(
        "loss/capped",
        "share",
        "Tokens whose probability ratio was above algorithm.epsilon_high.",
        PASSES,
        only="algorithm.loss=cispo",
    ),
    Metric(
        "optim/grad_norm",
        "1",
        "Norm of the whole gradient before it is clipped.",
        SAME,
        only="where it is told, which deepspeed=zero0 does not always do",
    ),
    Metric("optim/learning_rate", "1", "The schedule's rate.", SAME),
    Metric("optim/skipped", "0 or 1", "The loss or gradient was no number: no weight changed (docs/guards.md).", SAME),
    Metric("sync/policy_version", "count", "Loads of weights into the sampler so far.", "the last"),
    Metric(
        "sync/engine_restarts",
        "count",
        "Times that a dead engine was brought back, since this start of the run.",
        "the last",
        timed=True,
    ),
    Metric(
        "time/step",
        "s",
        "From line to line: all below, the optimizer's step, checkpoints.",
        FIRST,
        timed=True,
    ),
    Metric("time/sync", "s", "Weights to the sampler.", FIRST, timed=True),
    Metric("time/rollout", "s", "Sampling, verdicts included.", FIRST, timed=True),
    Metric("time/verify", "s", "The verdicts of it.", FIRST, timed=True),
    Metric("time/update", "s", "Forward and backward passes.", FIRST, timed=True),
    Metric(
        "perf/tokens_per_second",
        "tokens/s",
        "Response tokens of the step's trajectories over time/rollout.",
        "sum over trajectories of all ranks, over the first rank's seconds",
        timed=True,
    ),
    Metric(
        "perf/packing_ratio",
        "factor",
        "Tokens of all rows over tokens that the packed forward computes.",
        "mean over micro-batches of the first rank",
        only="model.attention=tree",
    ),
    Metric(
        "perf/peak_memory_gib",
        "GiB",
        "Largest GPU memory that torch had allocated during the step; on a CPU the largest resident memory of the "
        "process so far.",
        "max over ranks",
        timed=True,
    ),
    Metric("eval/problems", "count", "Problems.", "sum over ranks"),
    Metric("eval/samples", "count", "Samples of them, `eval.samples` each.", "sum over ranks"),
    Metric("eval/not_judged", "count", "Samples whose verifier failed.", "sum over ranks"),
    Metric("eval/accuracy", "share", "Right answers among the judged.", FIGURES),
    Metric("eval/accuracy_low", "share", "Lower end of its 95% score interval over problems.", FIGURES),
    Metric("eval/accuracy_high", "share", "Upper end of its 95% score interval over problems.", FIGURES),
    Metric("eval/l_critical", "tokens", "L_critical.", f"mean {FIGURES}"),
    Metric("eval/l_critical_p90", "tokens", "What nine in ten samples need at most.", f"90th percentile {FIGURES}"),
    Metric("eval/l_total", "tokens", "L_total.", f"mean {FIGURES}"),
    Metric("eval/l_total_p90", "tokens", "What nine in ten samples need at most.", f"90th percentile {FIGURES}"),
    Metric("eval/eta", "share", "Acceleration ratio, 1 - L_critical / L_total.", f"mean {FIGURES}"),
    Metric("eval/self_speedup", "factor", "L_total over L_critical.", f"ratio of sums {FIGURES}"),
    Metric("eval/parallel_ratio", "share", "Response tokens inside threads.", f"ratio of sums {FIGURES}"),
    Metric("eval/threads", "count", "Threads of a trajectory.", f"mean {FIGURES}"),
    Metric("eval/strict", "share", "Trajectories that obey the strict grammar.", FIGURES),
    Metric("eval/trigger_rate", "share", "Trajectories with at least one block.", FIGURES),
    Metric("eval/answered", "share", "Trajectories that ended by themselves, with an answer.", FIGURES),
    Metric("sft/loss", "nats", "Negative log-likelihood of a demonstrated token.", TRAINED),
    Metric("sft/entropy", "nats", "Entropy of the policy at a demonstrated token.", "as sft/loss"),
    Metric("sft/token_accuracy", "share", "Demonstrated tokens that are the policy's likeliest.", "as sft/loss"),
    Metric(
        "sft/grad_norm",
        "1",
        "Norm of the whole gradient before it is clipped.",
        SAME,
        only="where it is told, which deepspeed=zero0 does not always do",
    ),
    Metric("sft/learning_rate", "1", "The schedule's rate.", SAME),
    Metric("sft/skipped", "0 or 1", "The loss or gradient was no number: no weight changed.", SAME),
    Metric("sft/step_seconds", "s", "From line to line.", FIRST, timed=True),
    Metric("sft/peak_memory_gib", "GiB", "As perf/peak_memory_gib.", "max over ranks", timed=True),
)

RENAMED: dict[Kind, dict[str, str]] = {
    "rl": {
        "loss": "loss/policy",
        "entropy": "loss/entropy",
        "clip_ratio/region_mean": "loss/clipped",
        "clip_ratio/low_mean": "loss/clipped_low",
        "clip_ratio/high_mean": "loss/clipped_high",
        "cispo_clip_ratio": "loss/capped",
        "grad_norm": "optim/grad_norm",
        "learning_rate": "optim/learning_rate",
    },
    "sft": {
        "loss": "sft/loss",
        "entropy": "sft/entropy",
        "mean_token_accuracy": "sft/token_accuracy",
        "grad_norm": "sft/grad_norm",
        "learning_rate": "sft/learning_rate",
        "optim/skipped": "sft/skipped",
        "time/step": "sft/step_seconds",
        "perf/peak_memory_gib": "sft/peak_memory_gib",
    },
    "heldout": {},
}
"""What TRL, transformers and the parts that SFT and GRPO share call it -> its name here."""

DROPPED = {
    "epoch": "the step says it",
    "num_tokens": "TRL counts them since this start of the run, not since its beginning",
    "clip_ratio/low_min": "extremes over rows; a row here is one call, and most hold a few tokens",
    "clip_ratio/high_max": "the same",
}
"""What TRL and transformers log as well and no dashboard shows, and why."""


def find(name: str) -> Metric | None:
    """The entry of a logged key; None where there is none."""
    return next((metric for metric in METRICS if re.match(metric.pattern, name)), None)


def ours(kind: Kind, logs: Mapping[str, Any]) -> dict[str, Any]:
    """What a trainer logged, by the names of the vocabulary, without what is dropped.

    >>> ours("sft", {"loss": 0.3, "epoch": 1.0})
    {'sft/loss': 0.3}
    """
    return {RENAMED[kind].get(name, name): value for name, value in logs.items() if name not in DROPPED}


def kind_of(stage: str) -> Kind:
    """What the lines of a stage are of: "rl", "sft", "round1", "rl_heldout", ..."""
    return "rl" if stage == "rl" else "heldout" if stage.endswith("heldout") else "sft"


def reproducible(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl without what two runs of one seed differ in."""
    return {name: value for name, value in line.items() if not ((metric := find(name)) and metric.timed)}
