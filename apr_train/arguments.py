"""Our configuration in the words of transformers' TrainingArguments and DeepSpeed."""

from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig

from apr_train.config import Config, DeepspeedConfig

LR_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
"""Our name -> transformers' name."""


def common_arguments(config: Config, folder: Path) -> dict[str, Any]:
    """What SFT and GRPO share. Metrics leave through our own callback, so every built-in reporter is off."""
    return {
        "output_dir": str(folder),
        "seed": config.seed,
        "data_seed": config.seed,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": config.model.dtype == "bfloat16",
        "fp16": False,
        "gradient_checkpointing": config.model.gradient_checkpointing,
        "max_grad_norm": config.algorithm.max_grad_norm,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # otherwise Trainer shows the last finite loss in place of a NaN
        "report_to": [],
        "disable_tqdm": True,
        "ddp_timeout": int(config.deadline.collective) or 10**6,
        "save_strategy": "steps" if config.checkpoint.every else "no",
        "save_steps": config.checkpoint.every or 1,
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "deepspeed": deepspeed_arguments(config.deepspeed),
    }


def grpo_arguments(config: Config, folder: Path, world_size: int) -> GRPOConfig:
    """TRL's settings for call rows: token-normalised loss, no reference model, one update per batch of rollouts."""
    algorithm = config.algorithm
    per_rank = algorithm.prompts_per_step * algorithm.group_size // world_size
    return GRPOConfig(
        **common_arguments(config, folder),
        max_steps=algorithm.steps,
        per_device_train_batch_size=per_rank // algorithm.micro_batches,
        gradient_accumulation_steps=algorithm.micro_batches,
        num_generations=algorithm.group_size,
        learning_rate=algorithm.learning_rate,
        warmup_steps=algorithm.warmup_steps,
        lr_scheduler_type=LR_SCHEDULES[algorithm.lr_schedule],
        weight_decay=algorithm.weight_decay,
        temperature=config.rollout.temperature,
        loss_type=algorithm.loss,
        scale_rewards=algorithm.scale_rewards,
        epsilon=algorithm.epsilon_low,
        epsilon_high=algorithm.epsilon_high,
        beta=0.0,
        max_completion_length=config.rollout.max_response_tokens,
        use_vllm=False,  # the sampler is ours; TRL's own would generate one flat completion per prompt
    )


def deepspeed_arguments(config: DeepspeedConfig) -> dict[str, Any] | None:
    """A DeepSpeed configuration for the stage, sizes left to Trainer; None trains without DeepSpeed."""
    if config.stage is None:
        return None
    zero: dict[str, Any] = {"stage": config.stage}
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,  # torch's AdamW: DeepSpeed's own takes minutes to compile on a CPU
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
    }
