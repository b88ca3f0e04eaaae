"""Changes that vLLM's CPU backend needs before it can follow a policy that is being trained."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from vllm.model_executor.layers import utils as layer_utils
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.sampler import Sampler


def _plain_linear(layer: torch.nn.Module, remove_weight: bool) -> None:
    """vLLM repacks float32 weights at load and drops the originals, so that later weight loads are lost."""
    layer.cpu_linear = torch.nn.functional.linear  # pyright: ignore[reportArgumentType]


def _gather_without_ranks(logprobs: torch.Tensor, num_logprobs: int, token_ids: torch.Tensor) -> LogprobsTensors:
    """vLLM compiles a kernel (20 s, needs a C++ compiler) only to rank the sampled token, which nobody reads."""
    top_logprobs, top_ids = torch.topk(logprobs, num_logprobs, dim=-1)
    sampled = token_ids.unsqueeze(-1)
    ids = torch.cat((sampled, top_ids), dim=1).to(torch.int32)
    values = torch.cat((logprobs.gather(-1, sampled), top_logprobs), dim=1)
    return LogprobsTensors(ids, values, torch.zeros_like(token_ids))


def patch() -> None:
    """Call before an engine is built. Patching twice does no harm."""
    layer_utils.dispatch_cpu_unquantized_gemm = _plain_linear
    Sampler.gather_logprobs = staticmethod(_gather_without_ranks)


@contextmanager
def thread_setting_kept() -> Generator[None, None, None]:
    """Gives back `torch.set_num_threads`, which vLLM's CPU worker replaces by a no-op while it starts."""
    kept = torch.set_num_threads
    try:
        yield
    finally:
        torch.set_num_threads = kept
