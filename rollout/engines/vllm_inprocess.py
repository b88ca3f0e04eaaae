"""vLLM in this process: drives its step loop itself, so that a call that ends lets its successor start at once."""

import asyncio
import gc
import logging
import os
import time
import weakref
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

# Read by vLLM when it is imported. On few cores a second OpenMP thread, or vLLM's own binding, is several times slower.
for _name, _value in {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}.items():
    os.environ.setdefault(_name, _value)
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights and steps are reached in this process

import torch  # noqa: E402
from vllm import EngineArgs, SamplingParams  # noqa: E402
from vllm.distributed import parallel_state  # noqa: E402
from vllm.inputs import tokens_input  # noqa: E402
from vllm.logprobs import FlatLogprobs  # noqa: E402
from vllm.outputs import RequestOutput  # noqa: E402
from vllm.platforms import current_platform  # noqa: E402
from vllm.sampling_params import RequestOutputKind  # noqa: E402
from vllm.v1.engine.llm_engine import LLMEngine  # noqa: E402

from rollout.engine import Completion, EngineDied, EngineError, Prompt, Race, Sampling, causal_ids  # noqa: E402
from rollout.engines import vllm_cpu  # noqa: E402
from rollout.engines.calls import EngineStats, Seeds, check_call, check_stock, first_line, settle, together  # noqa: E402

Result = TypeVar("Result")

_GIB = 1 << 30

logger = logging.getLogger(__name__)


class VllmEngine:
    """A vLLM engine owned by this process; under torchrun every rank owns one, of world size 1.

    Calls from any number of tasks are decoded together; the driver lives as long as calls wait, so plain `await` works
    in any event loop and `run` does it from code that has none. Same seed and same order of calls: same tokens.

    Under torchrun, initialise torch.distributed first; all ranks build their engines together. A process can have one
    engine at a time (vLLM's state is global to it): close it before you build the next.

    >>> engine = VllmEngine("outputs/quickstart/model", max_context=1024, seed=0)
    >>> engine.run([engine.complete([3, 1, 4], Sampling(max_tokens=2, stop_ids=(7,)))])
    [Completion(ids=(15, 7), logprobs=(-2.3, -1.1), finish='stop')]
    """

    _open: ClassVar["weakref.ref[VllmEngine] | None"] = None

    def __init__(
        self,
        model_path: str | Path,
        *,
        max_context: int,
        dtype: str = "float32",
        max_in_flight: int = 256,
        kv_cache_gib: float = 1.0,
        gpu_memory_utilization: float = 0.45,
        seed: int = 0,
    ) -> None:
        """`kv_cache_gib` counts on a CPU, `gpu_memory_utilization` on a GPU. Raises EngineError when vLLM refuses."""
        if Path(model_path).is_dir() and not (Path(model_path) / "config.json").is_file():
            raise EngineError(f"{model_path} is no model folder: it has no config.json (save_pretrained writes one)")
        check_stock(model_path, "vLLM")
        if VllmEngine._open is not None and VllmEngine._open() is not None:
            raise EngineError("this process has a vLLM engine already: close() it first")
        self.max_context = max_context
        self.policy_version = 0
        self.stats = EngineStats()
        self._calls = 0
        self._waiting: dict[str, asyncio.Future[Completion]] = {}
        self._races: dict[str, Race] = {}
        """Of the calls in flight that have one; vLLM shows these after each step."""
        self._driver: asyncio.Task[None] | None = None
        self._borrowed_group = torch.distributed.is_initialized()
        self._died = ""
        """Why the engine is gone; empty while it lives."""
        self.reseed(seed)
        on_cpu = current_platform.is_cpu()
        args = EngineArgs(
            model=str(model_path),
            skip_tokenizer_init=True,
            dtype=dtype,  # pyright: ignore[reportArgumentType]
            max_model_len=max_context,
            max_num_seqs=max_in_flight,
            max_num_batched_tokens=max(8192, max_context),
            seed=seed,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            disable_log_stats=True,
            use_tqdm_on_load=False,
            gpu_memory_utilization=gpu_memory_utilization,
            distributed_executor_backend="external_launcher" if self._borrowed_group else "uni",
        )
        if on_cpu:
            vllm_cpu.patch()
            args.enforce_eager = True
            args.kv_cache_memory_bytes = int(kv_cache_gib * _GIB)
            os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # would silently win over kv_cache_gib
            args.block_size = 32  # the default of 128 finds no common prefix in short trajectories
            args.enable_chunked_prefill = False  # a seeded request that prefills in chunks crashes vLLM's CPU runner
        if self._borrowed_group:  # what vLLM's external launcher reads
            os.environ.setdefault("RANK", str(torch.distributed.get_rank()))
            os.environ.setdefault("LOCAL_RANK", os.environ["RANK"])
        elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise EngineError("initialise torch.distributed before the engine: else vLLM starts a world of its own")
        self._args = args
        self._build()
        self._vocabulary = self._engine.model_config.get_vocab_size()

    def _build(self) -> None:
        try:
            with vllm_cpu.thread_setting_kept():
                self._engine = LLMEngine.from_engine_args(self._args)
        except Exception as error:
            if not self._borrowed_group:
                parallel_state.cleanup_dist_env_and_memory()
            raise EngineError(f"vLLM cannot serve {self._args.model}: {first_line(error)}") from error
        VllmEngine._open = weakref.ref(self)

    def revive(self, seconds: float = 0.0) -> None:
        """Ends what is left of the engine and builds it anew, with the weights of its folder; `seconds` are not looked
        at. Under torchrun all ranks do so together. Raises EngineError where vLLM cannot serve any more."""
        self.close()
        self._waiting.clear()
        self._races.clear()
        del self._engine  # frees its weights and cache before the next one takes as much
        gc.collect()
        self._build()
        self._died = ""

    def reseed(self, seed: int) -> None:
        """Restarts the stream that seeds calls without a seed of their own, e.g. at each training step."""
        self._seeds = Seeds(seed)

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        """Samples one continuation. Raises EngineError for a call that cannot be served, EngineDied when vLLM fails."""
        self._check_alive()
        prompt_ids = causal_ids(prompt, "vLLM")
        params = self._params(prompt_ids, sampling)
        self._calls += 1
        name = str(self._calls)
        future = asyncio.get_running_loop().create_future()
        try:
            self._engine.add_request(name, tokens_input(prompt_ids), params)
        except ValueError as error:
            raise EngineError(f"vLLM refuses a call: {first_line(error)}") from error
        self._waiting[name] = future
        if sampling.race is not None:
            self._races[name] = sampling.race
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive())
        try:
            return await future
        finally:
            self._races.pop(name, None)
            if self._waiting.pop(name, None):  # still decoding: the caller was cancelled
                self._engine.abort_request([name])

    def run(self, coroutines: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
        """Runs coroutines that call this engine; results in order. The first exception cancels the others."""
        return asyncio.run(together(coroutines))

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Takes all parameters of the trainer (Hugging Face names, whole tensors); empties the prefix cache.

        Raises EngineError when calls are in flight, or when a parameter is unknown, missing or of another shape.
        """
        self._check_alive()
        if self._waiting:
            raise EngineError(f"{len(self._waiting)} calls are being sampled: load weights between rollouts")
        try:
            (missing,) = self._engine.apply_model(lambda model: _load(model, named_tensors))
        except (KeyError, ValueError, AssertionError, RuntimeError) as error:
            raise EngineError(f"vLLM refuses the trainer's weights: {first_line(error)}") from error
        if missing:
            raise EngineError(f"{len(missing)} parameters were not sent, e.g. {min(missing)}: send all of them")
        if not self._engine.reset_prefix_cache():
            raise EngineError("vLLM kept its prefix cache, which would mix old and new weights")
        self.policy_version += 1

    def close(self) -> None:
        """Frees the engine, so that another can be built; a process group that was there before it stays."""
        if VllmEngine._open is None or VllmEngine._open() is not self:
            return  # closed, or dead and not built again
        VllmEngine._open = None
        destroy = parallel_state.destroy_distributed_environment
        if self._borrowed_group:
            parallel_state.destroy_distributed_environment = _forget_world
        try:
            self._engine.engine_core.shutdown()
        except Exception as error:
            if not self._died:
                raise
            # What a dead engine cannot clear up must not hide why it died, nor keep the next one from starting.
            logger.warning("a dead vLLM engine did not end in order: %s", first_line(error))
        finally:
            parallel_state.destroy_distributed_environment = destroy

    def _check_alive(self) -> None:
        if self._died:
            raise EngineDied(self._died)

    def _params(self, prompt_ids: list[int], sampling: Sampling) -> SamplingParams:
        check_call(prompt_ids, sampling, self.max_context)
        if not 0 <= min(prompt_ids) <= max(prompt_ids) < self._vocabulary:
            raise EngineError(f"a prompt id is outside the model's vocabulary of {self._vocabulary}: wrong tokenizer?")
        return SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            stop_token_ids=list(sampling.stop_ids),
            ignore_eos=True,  # stop ids are the caller's alone
            seed=self._seeds.of(sampling),
            logit_bias=dict.fromkeys(sampling.banned_ids, float("-inf")) or None,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            # An output each step costs time, and is needed only to cut a call that lost its race.
            output_kind=RequestOutputKind.FINAL_ONLY if sampling.race is None else RequestOutputKind.CUMULATIVE,
            skip_clone=True,
        )

    async def _drive(self) -> None:
        """Lets callers go on until none can, decodes one token for every call in flight, hands out what is finished."""
        while self._waiting:
            await settle(lambda: self._calls)
            try:
                outputs = self._step()
            except Exception as error:
                self._died = f"vLLM failed while decoding: {first_line(error)}"
                waiting, self._waiting = self._waiting, {}
                for future in (future for future in waiting.values() if not future.done()):
                    future.set_exception(EngineDied(self._died))
                return
            for name, completion in outputs:
                future = self._waiting.pop(name, None)
                if future is not None and not future.done():  # else its caller was cancelled a moment ago
                    future.set_result(completion)

    def _step(self) -> list[tuple[str, Completion]]:
        start = time.perf_counter()
        shown = [output for output in self._engine.step() if isinstance(output, RequestOutput)]
        outputs = [output for output in shown if output.finished or self._lost(output)]
        if lost := [output.request_id for output in outputs if not output.finished]:
            self._engine.abort_request(lost)
        self.stats.step_seconds += time.perf_counter() - start
        self.stats.steps += 1
        finished = [(output.request_id, _completion(output)) for output in outputs]
        for output, (_, completion) in zip(outputs, finished, strict=True):
            self.stats.sampled_tokens += len(completion.ids)
            self.stats.prompt_tokens += len(output.prompt_token_ids or ())
            self.stats.cached_tokens += output.num_cached_tokens or 0
        self.stats.prefilled_tokens = self.stats.prompt_tokens - self.stats.cached_tokens
        return finished

    def _lost(self, output: RequestOutput) -> bool:
        """Whether a call that goes on has as many tokens as the winner of its race."""
        race = self._races.get(output.request_id)  # None: its caller was cancelled a moment ago
        return race is not None and race.best is not None and len(output.outputs[0].token_ids) >= race.best


def _completion(output: RequestOutput) -> Completion:
    """What a call sampled; one that is still to go on is cut here, as by its length."""
    sample = output.outputs[0]
    finish = sample.finish_reason if output.finished else "length"
    if finish not in ("stop", "length") or not isinstance(sample.logprobs, FlatLogprobs):
        raise EngineError(f"vLLM ended call {output.request_id} with {finish!r}")
    return Completion(tuple(sample.token_ids), tuple(sample.logprobs.logprobs), finish)


def _load(model: torch.nn.Module, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
    """Loads, and names the parameters that got nothing."""
    load = cast(Callable[[Iterable[tuple[str, torch.Tensor]]], set[str]], model.load_weights)
    loaded = load(named_tensors)
    return {name for name, _ in model.named_parameters()} - loaded


def _forget_world() -> None:
    """What vLLM does to end its world, but for destroying the process group, which is the trainer's."""
    if parallel_state._WORLD is not None:  # pyright: ignore[reportPrivateUsage]
        parallel_state._WORLD.destroy()  # pyright: ignore[reportPrivateUsage]
    parallel_state._WORLD = None  # pyright: ignore[reportPrivateUsage]
