"""GRPO on forking trajectories: TRL's trainer and loss, with three things replaced.

1. `_generate_and_score_completions`: weights to the sampler, rollouts, rewards, one advantage per trajectory, rows.
2. `_prepare_inputs`: micro-batches of whole groups, unshuffled, with equal row counts on all ranks.
3. `_get_per_token_logps_and_entropies`: one forward over the packed calls instead of one padded row per call.
"""

import math
import random
import time
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from apr_train.advantage import AdvantageRule, scope_advantages
from apr_train.config import AlgorithmConfig
from apr_train.credit import CallAdvantages, credit_calls, mean_over_calls, node_advantages
from apr_train.dag_packing import TrajectoryCall
from apr_train.gap import GapGate
from apr_train.guarded import GuardedTrainer
from apr_train.masks import EXACT, Masks
from apr_train.metrics import step_metrics, term_metrics, trajectory_metrics
from apr_train.revival import Revival
from apr_train.rollouts import Rollouts
from apr_train.rows import Rows, call_rows, cut_rows, pad_rows, split_groups, structured_calls
from apr_train.saving import Reseeded, SavingTrainer
from apr_train.step_record import OnRollouts, StepRecord
from apr_train.stored import recorded
from apr_train.tasks.base import Problem
from apr_train.tree_attention import plan_attention
from apr_train.weight_sync import full_weights
from rewards.reward import Part, Reward
from rewards.scored import Group, Scored
from rollout.engines import thread_vectors
from rollout.errors import UserError
from rollout.orchestrator import mix
from rollout.trajectory import Trajectory


class NoSignalWarning(UserWarning):
    """A whole step taught nothing although dynamic sampling looked for groups that do."""


class ForkJoinGRPOTrainer(SavingTrainer, GuardedTrainer, GRPOTrainer):
    """Trains the policy that `rollouts` samples, or what `masks` make of it. `args` come from `grpo_arguments`;
    `problems` feed the prompts.

    `algorithm` says how rewards become advantages of calls: baseline, scale, apart, credit, dynamic sampling.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: GRPOConfig,
        tokenizer: PreTrainedTokenizerBase,
        problems: Sequence[Problem],
        *,
        rollouts: Rollouts,
        reward: Reward,
        algorithm: AlgorithmConfig,
        gate: GapGate,
        packed: bool,
        masks: Masks = EXACT,
        on_rollouts: OnRollouts,
        callbacks: list[TrainerCallback],
    ) -> None:
        self.problems, self.rollouts, self.reward, self.gate = problems, rollouts, reward, gate
        self.algorithm, self.packed, self.masks, self.step_record = algorithm, packed, masks, StepRecord(on_rollouts)
        self.pad_id, self.group_size, self.micro_batches = _pad_id(tokenizer), *_sizes(args)
        self.revival = Revival(rollouts)
        self._seconds = 0.0  # of this step's forward and backward passes
        self.structured: dict[int, TrajectoryCall] = {}  # of this step; the rows' "call" says which
        super().__init__(
            model=model,
            reward_funcs=_scored_elsewhere,
            args=args,
            train_dataset=Dataset.from_dict(
                {"prompt": [p.prompt for p in problems], "problem": list(range(len(problems)))}
            ),
            processing_class=tokenizer,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)  # metrics leave through `callbacks`
        self._worst = torch.zeros((), device=self.accelerator.device)  # gap of a token in this step

    # -- 1. rollouts -----------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """One trajectory per input row (whole groups, adjacent) -> call rows on this rank."""
        step, started, verified = self.state.global_step, time.perf_counter(), self.rollouts.deadlines.spent["verify"]
        numbers = [row["problem"] for row in inputs]
        scored, resampled = self.revival.run(lambda: full_weights(self.policy()), lambda: self._sample(numbers, step))
        synced, sampled = started + self.revival.sync_seconds, time.perf_counter()
        parts = self._parts(scored, step + 1)
        advantages, rewards = self._advantages(scored, parts)
        metrics = self._figures(scored, parts, advantages["root"], resampled)
        tokens = metrics["tree/l_total"] * len(scored) * self.accelerator.num_processes
        self._log(
            metrics
            | {
                "time/sync": synced - started,
                "time/rollout": sampled - synced,
                "time/verify": self.rollouts.deadlines.spent["verify"] - verified,
                "perf/tokens_per_second": tokens / (sampled - synced),
                "sync/policy_version": self.rollouts.sampler.policy_version,
                "sync/engine_restarts": self.revival.used,
            }
        )
        terms = [{name: part.value for name, part in own.items()} for own in parts]
        self.step_record.begin(list(map(partial(recorded, step + 1), scored, rewards, advantages["root"], terms)))
        credited = self._credit(scored, advantages, rewards)
        trajectories = [each.trajectory for each in scored]
        self.structured = structured_calls(trajectories, self.masks)
        if self.structured and not self.packed:
            attention = next(iter(self.structured.values())).trajectory.attention
            raise UserError(f"model.attention=sdpa cannot train {attention} rollouts: use model.attention=tree")
        if not self.masks.exact:
            credited = self._scorable(trajectories, credited)
        batch = call_rows(trajectories, credited, self.group_size, self.pad_id)
        return {key: value.to(self.accelerator.device) for key, value in batch.items()}

    def _sample(self, numbers: list[int], step: int) -> tuple[list[Scored], int]:
        """Scored trajectories for these problems, and how many groups were drawn again for want of a signal.

        A refill has problems of its own choosing and nothing to wait for, so ranks may differ in how often they need
        one. After `dynamic_sampling` rounds the groups without a signal stay: they teach nothing, and are counted.
        """
        seed, first = mix(self.args.seed, step), self.accelerator.process_index * len(numbers)
        size, used, resampled = self.group_size, set(numbers), 0

        def collect(chosen: list[int], stream: int) -> list[Scored]:
            problems = [self.problems[number] for number in chosen]
            return self.rollouts.collect(problems, temperature=self.temperature, seed=stream, first=first)

        scored = collect(numbers, seed)
        for again in range(1, self.algorithm.dynamic_sampling + 1):
            flat = [start for start in range(0, len(scored), size) if not self._signal(scored[start : start + size])]
            fresh = other_problems(len(self.problems), used, len(flat), mix(seed, again, first))
            if not fresh:
                break
            used, resampled = used | set(fresh), resampled + len(fresh)
            drawn = collect([number for number in fresh for _ in range(size)], mix(seed, again))
            for index, start in enumerate(flat[: len(fresh)]):
                scored[start : start + size] = drawn[index * size : (index + 1) * size]
        return scored, resampled

    def _signal(self, members: list[Scored]) -> bool:
        """Whether the judged members of a group differ in any term's value at this step."""
        columns = self.reward.parts(Group(tuple(members)), self.state.global_step + 1).values()
        return any(len({part.value for part in column if not math.isnan(part.value)}) > 1 for column in columns)

    def _parts(self, scored: list[Scored], step: int) -> list[dict[str, Part]]:
        """Each trajectory's reward, term by term. Groups are adjacent."""
        found: list[dict[str, Part]] = []
        for start in range(0, len(scored), self.group_size):
            parts = self.reward.parts(Group(tuple(scored[start : start + self.group_size])), step)
            found += [{name: column[i] for name, column in parts.items()} for i in range(self.group_size)]
        return found

    def _advantages(
        self, scored: list[Scored], parts: list[dict[str, Part]]
    ) -> tuple[dict[str, list[float]], list[float]]:
        """Of this rank's trajectories: advantages of "root" and "threads" calls, and rewards. All ranks take part."""
        values = torch.tensor([[part.value for part in each.values()] for each in parts], dtype=torch.float32)
        everyone = self._gathered(values.to(self.accelerator.device))
        mine = slice(self.accelerator.process_index * len(scored), (self.accelerator.process_index + 1) * len(scored))
        algorithm = self.algorithm
        rule = AdvantageRule(algorithm.baseline, algorithm.scale_rewards, algorithm.apart)
        advantages = scope_advantages(everyone, self.reward, self.group_size, rule)
        return {scope: found[mine].tolist() for scope, found in advantages.items()}, values.sum(1).tolist()

    def _credit(self, scored: list[Scored], advantages: dict[str, list[float]], rewards: list[float]) -> CallAdvantages:
        kind = self.algorithm.credit
        if kind == "node_local":
            size, bonus = self.group_size, self.reward.node_bonus
            assert bonus is not None  # validate sees to it
            groups = [Group(tuple(scored[start : start + size])) for start in range(0, len(scored), size)]
            return node_advantages(groups, bonus, advantages["root"])
        credited = credit_calls(kind, scored, advantages["root"], advantages["threads"], rewards)
        if kind != "per_call_mean":
            return credited
        trajectories = [each.trajectory for each in scored]
        own = sum(len(t.segments[call.sampled].ids) for t in trajectories for call in t.calls)
        totals = torch.tensor([own, len(scored)], device=self.accelerator.device)
        tokens, count = self._summed(totals).tolist()
        return mean_over_calls(credited, trajectories, tokens, count)

    def _scorable(self, trajectories: list[Trajectory], credited: CallAdvantages) -> CallAdvantages:
        """Without those of calls that the masks cannot score; logs their share."""
        scored = [self.masks.scored(trajectory) for trajectory in trajectories]
        counts = torch.tensor([sum(map(sum, scored)), sum(map(len, scored))], device=self.accelerator.device)
        can, calls = self._summed(counts).tolist()
        self._log({"gap/unscored_calls": 1.0 - can / max(1, calls)})
        return [
            [advantage if whether else None for advantage, whether in zip(own, told, strict=True)]
            for own, told in zip(credited, scored, strict=True)
        ]

    def _figures(
        self, scored: list[Scored], parts: list[dict[str, Part]], advantages: list[float], resampled: int
    ) -> dict[str, float]:
        """Figures of all trajectories of all ranks, NaN meaning "does not apply here"."""
        rows = [
            trajectory_metrics(each)
            | term_metrics(terms)
            | {"reward/total": sum(part.value for part in terms.values()), "advantage/mean_abs": abs(advantage)}
            for each, terms, advantage in zip(scored, parts, advantages, strict=True)
        ]
        names = list(rows[0])
        table = self._gathered(torch.tensor([list(row.values()) for row in rows], device=self.accelerator.device))
        resampled_groups = self._summed(torch.tensor(resampled, device=self.accelerator.device))
        schedule = self.reward.schedule(self.state.global_step + 1)
        metrics = step_metrics(names, table, self.group_size) | {
            "group/resampled": resampled_groups.item() * self.group_size / len(table),
            **{f"reward/schedule/{name}": factor for name, factor in schedule.items()},
        }
        if self.algorithm.dynamic_sampling and metrics["group/without_signal"] == 1.0:
            warnings.warn(
                f"step {self.state.global_step + 1}: every group's rewards are equal, also after "
                f"{self.algorithm.dynamic_sampling} rounds of dynamic sampling, so nothing is learnt from it: the "
                "problems are all too easy or all too hard",
                NoSignalWarning,
                stacklevel=2,
            )
        return metrics

    def _log(self, metrics: dict[str, float]) -> None:
        """For TRL to log at the end of the step: means of what was noted by then."""
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """TRL's, whose order of an epoch does not depend on the epochs before: those a resumed run has not seen."""
        sampler = cast(Any, super()._get_train_sampler(dataset))
        steps = max(1, len(self.problems) // sampler.batch_size)
        return Reseeded(sampler, sampler.generator, sampler.seed, lambda: self.state.global_step // steps)

    def policy(self) -> PreTrainedModel:
        """The model without DDP's or DeepSpeed's wrapper."""
        return cast(PreTrainedModel, self.accelerator.unwrap_model(self.model))

    def _gathered(self, tensor: Tensor) -> Tensor:
        with self.rollouts.deadlines("update"):
            return cast(Tensor, self.accelerator.gather(tensor))

    def _summed(self, tensor: Tensor) -> Tensor:
        with self.rollouts.deadlines("update"):
            return cast(Tensor, self.accelerator.reduce(tensor, reduction="sum"))

    # -- 2. micro-batches ------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Replaces TRL's, whose counter and clock take a piece of a micro-batch for a whole one."""
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except Exception:
            self.step_record.failed()
            raise
        self._step += 1
        if self._step % self.micro_batches == 0:
            self.step_record.hand_out()
            self._log({"time/update": self._seconds, "gap/logprob_max_abs": self._gathered(self._worst).max().item()})
            self._seconds, self._worst = 0.0, torch.zeros_like(self._worst)
        return loss

    def _micro_batch(self, inputs: Any) -> Rows:
        return self._prepare_inputs(inputs)

    def _parts_of(self, batch: Rows) -> int:
        return int((batch["completion_mask"].sum(1) > 0).sum())

    def _mark(self) -> None:
        super()._mark()
        self.gate_mark = self.gate.sum, self.gate.count

    def _forget_passes(self) -> None:
        super()._forget_passes()
        self.gate.sum, self.gate.count = self.gate_mark
        self._worst = torch.zeros_like(self._worst)

    def _cut(self, batch: Rows, pieces: int) -> list[Rows]:
        whole = {"num_items_in_batch": batch["num_items_in_batch"]}
        parts = cut_rows({key: value for key, value in batch.items() if key not in whole}, pieces)
        return [pad_rows(part, self._most_rows(part)) | whole for part in parts]

    def _pass(self, model: Any, batch: Any, num_items_in_batch: Any) -> Tensor:
        started = time.perf_counter()
        loss = Trainer.training_step(self, model, batch, num_items_in_batch)
        self._seconds += time.perf_counter() - started
        return loss

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """New rollouts at the start of each step, then one micro-batch of whole groups at a time."""
        if "advantages" in generation_batch:  # rows already
            return generation_batch
        if self._step % self.micro_batches == 0 or self._buffered_inputs is None:
            batch: Rows = self._generate_and_score_completions(generation_batch)
            sampled = self._summed(batch["completion_mask"].sum())
            self._buffered_inputs = [
                pad_rows(part, self._most_rows(part)) | {"num_items_in_batch": sampled}
                for part in split_groups(batch, self.micro_batches, packed=self.packed)
            ]
        return self._buffered_inputs[self._step % self.micro_batches]

    def _most_rows(self, part: Rows) -> int:
        rows = torch.tensor(len(part["advantages"]), device=self.accelerator.device)
        return int(self._gathered(rows).max())

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._scoring = inputs  # override 3 compares the sampler's log-probs with its own
        if not self.masks.exact:
            inputs = {key: value for key, value in inputs.items() if key != "old_per_token_logps"}
        return super()._compute_loss(model, inputs)

    # -- 3. log-probs ----------------------------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **options: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(B, C) log-probs and entropies of the last `logits_to_keep` columns. `packed=False` is TRL's own code."""
        if self.packed:
            logps, entropies = self._packed_logps(model, input_ids, attention_mask, logits_to_keep)
            result = logps, entropies, None
        else:
            result = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, **options
            )
        mask = self._scoring["completion_mask"]
        self.step_record.note(self._scoring["call"], result[0], mask)
        gaps = (result[0].detach() - self._scoring["old_per_token_logps"]).abs() * mask
        self._worst = torch.cat([gaps.flatten(), self._worst[None]]).max()  # a piece may have no tokens at all
        total, count = self._summed(torch.stack([gaps.sum(), mask.sum()])).tolist()
        if count:  # of a piece that only keeps step with the others there is no gap
            self._log({"gap/logprob_mean_abs": self.gate.check(total / count)})
        return result

    def _packed_logps(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int
    ) -> tuple[Tensor, Tensor]:
        ids_BL, real_BL = input_ids.cpu().numpy(), attention_mask.bool().cpu().numpy()
        rows = [ids[real] for ids, real in zip(ids_BL, real_BL, strict=True)]
        contexts = real_BL[:, :-logits_to_keep].sum(1).tolist()
        trained = [b for b, row in enumerate(rows) if len(row) > contexts[b]]
        calls = [self.structured.get(call) for call in self._scoring["call"].tolist()]
        # A rank whose rows are all inert still runs the forward that the other ranks' collectives wait for.
        kept = [rows[b] for b in trained] or [np.array([self.pad_id] * 2)]
        packed = self.masks.pack(kept, [contexts[b] for b in trained] or [1], [calls[b] for b in trained] or [None])
        where = torch.full((len(rows), logits_to_keep), packed.unique_tokens)  # one past the end: reads a zero
        for places, b in zip(packed.where, trained, strict=False):
            where[b, : len(places)] = places
        device = input_ids.device
        more = thread_vectors.arguments(self.policy(), packed.threads, packed.input_ids[None])
        with self.accelerator.autocast():
            outputs = model(
                input_ids=packed.input_ids[None].to(device),
                position_ids=packed.position_ids[None].to(device),
                shift_labels=packed.shift_labels[None].to(device),
                tree=plan_attention(packed, device),
                fused_lm_head=True,
                **{key: value.to(device) for key, value in more.items()},
            )
        self._log({"perf/packing_ratio": packed.raw_tokens / packed.unique_tokens})
        where = where.to(device)
        return _scatter(outputs.log_probs[0], where), _scatter(outputs.entropy[0], where)


def other_problems(count: int, used: set[int], wanted: int, seed: int) -> list[int]:
    """Up to `wanted` of `count` problems, none of them used in this step already; fewer when there are no more."""
    left = sorted(set(range(count)) - used)
    return random.Random(seed).sample(left, min(wanted, len(left)))


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    assert isinstance(tokenizer.pad_token_id, int)  # load_tokenizer sees to it
    return tokenizer.pad_token_id


def _sizes(args: GRPOConfig) -> tuple[int, int]:
    """(group size, micro-batches of a step)."""
    assert args.num_generations is not None and args.steps_per_generation is not None
    return args.num_generations, args.steps_per_generation


def _scatter(values_N: Tensor, where_BC: Tensor) -> Tensor:
    """values[where], reading 0 where `where` is N. A position read by several rows collects all their gradients."""
    return torch.cat([values_N, values_N.new_zeros(1)])[where_BC]


def _scored_elsewhere(prompts: list[Any], completions: list[Any], **_: Any) -> list[float | None]:
    """TRL wants a reward function; ours sees trajectories, not completions, so this one must never run."""
    raise RuntimeError("rewards are computed from trajectories in _generate_and_score_completions")
