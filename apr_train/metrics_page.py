"""Writes docs/metrics.md from the vocabulary: `python -m apr_train.metrics_page`."""

from pathlib import Path

from apr_train.vocabulary import AXES, DROPPED, METRICS, RENAMED, SECTIONS, Metric

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"

HEAD = """\
# Metrics

Made by `python -m apr_train.metrics_page` from [apr_train/vocabulary.py](../apr_train/vocabulary.py); a test compares
that table with what a run logs.

Every update and every held-out evaluation is a line of `outputs/<name>/metrics.jsonl` and a row on W&B, with the same
names. A line has a `stage` (`sft`, `rl`, `round1`, ...; `sft_heldout` and `rl_heldout` for evaluations, `<row>_heldout`
for the rows of `scripts/evaluate.py`) and a `step`: updates of the stage, at `round<n>_heldout` the round, at a row its
number. W&B gets the step as {axes}.
A figure that does not apply is null.

## Where to see them

    tail -1 outputs/mine/metrics.jsonl
    python scripts/train.py experiment=quickstart name=mine logger.tensorboard=true
    tensorboard --logdir outputs/mine/tensorboard      # without an account; each stage is a run
    python scripts/make_dashboard.py --dry-run         # the W&B workspace, a section for each prefix below
    python scripts/make_dashboard.py --entity me --project adaptive-parallel-reasoning

The event files of TensorBoard are a view of metrics.jsonl: when a run goes back to a checkpoint, or is first asked for
them half-way, they are made again from it, so no step is there twice.

## What to look at first

When a run goes wrong, in this order; each rules out what would make the next one misleading.

1. `optim/skipped`, `gap/logprob_mean_abs`, `gap/logprob_max_abs`: is the policy that sampled the one that is trained?
   In float32 the mean is below 1e-5, in bfloat16 near 0.01. A large maximum beside a small mean is a wrong mask or
   position of a few tokens.
2. `stop/*` and `verify/*`: do trajectories end, and does the verifier work? Much `truncated`: raise the budget. Any
   `timeout` or `error`: mend the verifier before you believe a reward.
3. `group/without_signal`: is there anything to learn? Near 1 with `group/all_correct` the problems are too easy, with
   `group/none_correct` too hard. A high `reward/saturated/<term>` takes the signal out of a term.
4. `reward/accuracy`, then `reward/term/<term>`: which term moves? A total that rises without accuracy is a term that
   is gamed ([rewards.md](rewards.md)).
5. `tree/trigger_rate`, `tree/l_critical`, `tree/l_total` and the two alarms: does parallelism shorten the critical
   path, or only add tokens?
6. `loss/entropy`, `optim/grad_norm`, `advantage/mean_abs`: entropy that falls to 0 early, or a norm that jumps, asks
   for a lower learning rate. `loss/policy` itself says nothing: on-policy it is near 0 whatever is learnt.
7. `time/*`, `perf/*`: what a step waits for. `time/step` less `time/sync`, `time/rollout` and `time/update` is the
   optimizer and checkpoints.

## All of them

A metric marked * measures the machine or what befell it: two runs of one seed differ in these alone.
"""

TAIL = """
## Names of TRL and transformers

Each is renamed or dropped; a key that is neither is said once and not logged.

| theirs | under `rl` | under `sft` |
|---|---|---|
"""


COLUMNS = "| name | unit | meaning | reduction |\n|---|---|---|---|\n"


def page() -> str:
    """The text of docs/metrics.md."""
    axes = ", ".join(f"`{axis}`" for axis in AXES.values())
    parts = [HEAD.replace("{axes}", axes)]
    for section, about in SECTIONS.items():
        rows = [_row(metric) for metric in METRICS if metric.section == section]
        parts.append(f"\n### `{section}/`: {about[0].lower()}{about[1:]}\n\n{COLUMNS}")
        parts += rows
    names = dict.fromkeys([*RENAMED["rl"], *RENAMED["sft"]])
    parts.append(TAIL)
    parts += [f"| `{name}` | {_new('rl', name)} | {_new('sft', name)} |\n" for name in names]
    parts.append("\n| dropped | why |\n|---|---|\n")
    parts += [f"| `{name}` | {why} |\n" for name, why in DROPPED.items()]
    return "".join(parts)


def _row(metric: Metric) -> str:
    only = f" Only: {metric.only}." if metric.only else ""
    mark = " *" if metric.timed else ""
    meaning = metric.meaning.replace("|", "\\|")
    return f"| `{metric.name}`{mark} | {metric.unit} | {meaning}{only} | {metric.reduction} |\n"


def _new(kind: str, name: str) -> str:
    names = RENAMED["rl"] if kind == "rl" else RENAMED["sft"]
    return f"`{names[name]}`" if name in names else "as it is" if "/" in name and "clip" not in name else "-"


if __name__ == "__main__":
    PAGE.write_text(page())
