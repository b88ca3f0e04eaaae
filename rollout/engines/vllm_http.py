"""vLLM over HTTP: token ids in, token ids and log-probs out, from a server that `server_command` starts."""

import asyncio
import math
import sys
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from rollout.engine import Completion, EngineDied, EngineError, Prompt, Sampling, causal_ids
from rollout.engines.bearer import LEAST, VARIABLE, EveryRoute, TokenError, is_loopback, token_of
from rollout.engines.boot import END, REFUSED, Endable, NamedBoot
from rollout.engines.calls import Seeds, check_call, check_stock, together
from rollout.engines.http_answers import read_completion, read_missing, read_models, read_success
from rollout.engines.http_server import HttpServer
from rollout.shown import visible

Result = TypeVar("Result")

_WEIGHTS = "sampler_weights.safetensors"
"""The file that weights go through: one name, so that what a killed sender left is no file for ever."""
_CHECK_SECONDS = 60.0
"""For one token of an idle server, after which it hangs."""
_HEALTH_SECONDS = 10.0
"""A server that lives says so at once."""
_CACHE_TRIES, _CACHE_PAUSE = 40, 0.25
"""How often, and how many seconds apart, the prefix cache is emptied: calls that were given up end a little later."""


def server_command(
    model_path: str | Path,
    *,
    max_context: int,
    dtype: str,
    port: int,
    host: str = "127.0.0.1",
    cpu_kv_cache_gib: float | None = None,
) -> list[str]:
    """The command that serves `model_path` as this engine needs it. Run it with VLLM_SERVER_DEV_MODE=1 to load weights.

    `cpu_kv_cache_gib` is the size of the key/value cache on a CPU; None on a GPU. Where VLLM_API_KEY is set every route
    asks for it. Raises EngineError for a model that vLLM would serve as another one, and TokenError for a `host` that
    other machines reach while no token is set: the routes that load weights would be anybody's.

    >>> server_command("outputs/sft", max_context=1024, dtype="bfloat16", port=8000)[1:3]
    ['-m', 'vllm.entrypoints.openai.api_server']
    """
    check_stock(model_path, "vLLM")
    token = token_of()
    if len(token or "") < LEAST and not is_loopback(host):
        raise TokenError(
            f"other machines reach {host}: set {VARIABLE} to a token of {LEAST} characters or more, here and where you "
            "train"
        )
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_path)]
    command += ["--host", host, "--port", str(port), "--dtype", dtype, "--max-model-len", str(max_context)]
    command += ["--skip-tokenizer-init", "--logprobs-mode", "processed_logprobs"]
    command += ["--worker-extension-cls", "rollout.engines.vllm_worker.WeightLoader"]
    # vLLM's own check of the token leaves out the routes that load weights. The last one answers first.
    for layer in (Endable, *([EveryRoute] if token is not None else []), NamedBoot):
        command += ["--middleware", f"{layer.__module__}.{layer.__qualname__}"]
    if cpu_kv_cache_gib is not None:  # the rest for the reasons given in vllm_inprocess
        command += ["--kv-cache-memory-bytes", str(int(cpu_kv_cache_gib * (1 << 30)))]
        command += ["--enforce-eager", "--block-size", "32", "--no-enable-chunked-prefill"]
        command += ["--max-num-batched-tokens", str(max(8192, max_context))]
    return command


class VllmHttpEngine:
    """A running vLLM server, checked when the engine is made: that it is there, fits, and reports exact log-probs.

    Weights go through a file in `weights_folder`, which the servers must see under the same path. Every request carries
    VLLM_API_KEY, where it is set, as a bearer token. A server that was started again in between is noticed at its first
    answer: it has other weights.

    >>> engine = VllmHttpEngine("http://127.0.0.1:8000/v1", max_context=1024)
    >>> engine.run([engine.complete([3, 1, 4], Sampling(max_tokens=2, stop_ids=(7,)))])
    [Completion(ids=(15, 7), logprobs=(-2.3, -1.1), finish='stop')]
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        max_context: int,
        weights_folder: str | Path | None = None,
        max_in_flight: int = 256,
        timeout_seconds: float = 600.0,
        vocabulary: int | None = None,
        sends_to: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        """`model` may be left out when the server serves one; ids of an answer must lie below `vocabulary`. Of several
        clients one `sends_to` all servers, by their addresses, the others to none; None: this one sends to its own.
        Raises EngineError when the server is not as needed, TokenError for a token that no header can carry."""
        self.url = url.rstrip("/")
        self.max_context = max_context
        self.policy_version = 0
        self._weights_folder = None if weights_folder is None else Path(weights_folder)
        self._vocabulary = vocabulary
        token = token_of()
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}

        def server() -> HttpServer:
            return HttpServer(headers=headers, max_in_flight=max_in_flight, seconds=timeout_seconds)

        self._server = server()
        to = [self.url] if sends_to is None else [each.rstrip("/") for each in sends_to]
        self._loaded = {each: self._server if each == self.url else server() for each in to}
        self.model = ""
        self.reseed(seed)
        self.run([self._check_server(model)])

    @property
    def timeout_seconds(self) -> float:
        """How long one exchange with the server may take; an engine that takes longer is dead."""
        return self._server.seconds

    @timeout_seconds.setter
    def timeout_seconds(self, seconds: float) -> None:
        for server in (self._server, *self._loaded.values()):
            server.seconds = seconds

    def reseed(self, seed: int) -> None:
        """Restarts the stream that seeds calls without a seed of their own, e.g. at each training step."""
        self._seeds = Seeds(seed)

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        """Samples one continuation. Raises EngineDied for a server that is gone, EngineError for one that refuses, or
        a call that does not fit."""
        prompt_ids = causal_ids(prompt, "vLLM")
        check_call(prompt_ids, sampling, self.max_context)
        # -100 is the strongest bias the API takes; exp(-100) is 0 next to any other probability in float32.
        banned = {"logit_bias": {str(token): -100.0 for token in sampling.banned_ids}} if sampling.banned_ids else {}
        return await self._sample(prompt_ids, sampling, banned)

    def run(self, coroutines: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
        """Runs coroutines that call this engine; results in order. The first exception cancels the others."""

        async def session() -> list[Result]:
            try:
                return await together(coroutines)
            finally:
                await self.aclose()

        return asyncio.run(session())

    async def aclose(self) -> None:
        """Closes the connections of this event loop; `run` does so itself."""
        for server in (self._server, *self._loaded.values()):
            await server.close()

    def close(self) -> None:
        """Nothing to free: the server is not ours, and `run` closes its connections."""

    def revive(self, seconds: float = math.inf) -> None:
        """Takes the server that is there now for the one that died, checked anew; whoever started that one starts it
        again. Raises EngineDied while it does not answer, at the latest after `seconds`."""
        self.run([self._find_again(seconds)])

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Takes all parameters of the trainer (Hugging Face names, whole tensors); empties the prefix cache.

        Of several clients one sends them, to all servers, and none may have a call in flight until it has. Raises
        EngineError when a server cannot take them, EngineDied when it is gone.
        """
        if self._loaded:
            self._send(named_tensors)
        else:
            for _ in named_tensors:  # gathering them takes all ranks
                pass
        self.policy_version += 1

    def _send(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        if self._weights_folder is None:
            raise EngineError("weights_folder is not set: name a folder that the trainer and the vLLM server both see")
        path = self._weights_folder.resolve() / _WEIGHTS
        # Copies: a parameter that is gathered for this turn of the loop is gone after it.
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in named_tensors}
        try:
            path.unlink(missing_ok=True)  # a killed sender's, which a server may still read: it keeps what it has open
            save_file(copies, path)
            self.run([self._load_file(url, server, path) for url, server in self._loaded.items()])
        finally:
            path.unlink(missing_ok=True)

    async def _load_file(self, url: str, server: HttpServer, path: Path) -> None:
        if server is not self._server:  # whose start its own clients know: they notice another one
            server.boot = None
        root = url.removesuffix("/v1")
        load, reset = f"{root}/collective_rpc", f"{root}/reset_prefix_cache"
        body = {"method": "load_weights_file", "args": [str(path)]}
        missing = read_missing(load, await server.ask("POST", load, body))
        if missing and missing[0].startswith(REFUSED):
            why = visible(missing[0].removeprefix(REFUSED))[:200]
            raise EngineError(f"{url} cannot take the weights ({why}): does it see {path.parent}?")
        if missing:
            raise EngineError(
                f"{len(missing)} parameters were not sent, e.g. {visible(missing[0])[:100]}: send all of them"
            )
        for _ in range(_CACHE_TRIES):
            if read_success(reset, await server.ask("POST", reset)):
                return
            await asyncio.sleep(_CACHE_PAUSE)
        raise EngineError(f"{url} kept its prefix cache, which would mix old and new weights: calls in flight?")

    async def _find_again(self, seconds: float) -> None:
        root = self.url.removesuffix("/v1")
        health = f"{root}/health"
        self._server.boot = None
        try:
            async with asyncio.timeout(min(seconds, _HEALTH_SECONDS)):
                await self._server.ask("GET", health)
        except TimeoutError as error:
            raise EngineDied(f"{health} does not answer: is the server stuck?") from error
        try:
            async with asyncio.timeout(min(seconds, _CHECK_SECONDS)):
                await self._check_server(self.model)
        except (TimeoutError, EngineDied) as error:
            if isinstance(error, EngineDied) and not isinstance(error.__cause__, TimeoutError):
                raise
            with suppress(EngineDied, TimeoutError):  # it ends instead of answering
                async with asyncio.timeout(_HEALTH_SECONDS):
                    await self._server.ask("POST", f"{root}{END}")
            raise EngineDied(f"{self.url} says that it is well and serves no call: it was told to end") from error

    async def _check_server(self, model: str | None) -> None:
        url = f"{self.url}/models"
        served = read_models(url, await self._server.ask("GET", url))
        self.model = next(iter(served)) if model is None else model
        if self.model not in served:
            raise EngineError(
                f"{self.url} serves {', '.join(served)}, not {self.model}: fix rollout.urls or model.path"
            )
        longest = served[self.model]
        if longest < self.max_context:
            raise EngineError(f"{self.url} holds {longest} tokens, model.max_context is {self.max_context}: lower it")
        # With a single id allowed its probability is 1. A server that reports raw log-probs says otherwise.
        only = await self._sample([0], Sampling(max_tokens=1, stop_ids=()), {"allowed_token_ids": [0]})
        if only.logprobs != (0.0,):
            raise EngineError(f"{self.url} reports raw log-probs: start it with --logprobs-mode processed_logprobs")

    async def _sample(self, prompt_ids: list[int], sampling: Sampling, extra: dict[str, Any]) -> Completion:
        body = {
            "model": self.model,
            "prompt": prompt_ids,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "stop_token_ids": list(sampling.stop_ids),
            "ignore_eos": True,
            "seed": self._seeds.of(sampling),
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            # Said aloud, because the server may have other defaults from the model's generation_config.json.
            **{"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
            **{"presence_penalty": 0.0, "frequency_penalty": 0.0},
            **extra,
        }
        url = f"{self.url}/completions"
        return read_completion(url, await self._server.ask("POST", url, body), sampling, self._vocabulary)
