"""Runs inside a vLLM server's worker: loads the trainer's weights from a file. `--worker-extension-cls` names it."""

from typing import Any

from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from vllm.platforms import current_platform

from rollout.engines import vllm_cpu
from rollout.engines.boot import REFUSED
from rollout.engines.calls import first_line

if current_platform.is_cpu():
    vllm_cpu.patch()  # this module is imported before the worker loads its model


class WeightLoader:
    """Mixed into vLLM's worker, whose `model_runner` it uses."""

    model_runner: Any

    def load_weights_file(self, path: str) -> list[str]:
        """Loads a safetensors file of Hugging Face names; returns the parameters that it left as they were, or one line
        that begins with REFUSED: an exception would take the server down."""
        model = self.model_runner.get_model()
        try:
            loaded: set[str] = model.load_weights(load_file(path).items())
        except Exception as error:  # whatever a model says to tensors that are not its own
            return [f"{REFUSED}{first_line(error)}"]
        return sorted(name for name, _ in model.named_parameters() if name not in loaded)
