"""vLLM over HTTP: token ids in, token ids and log-probs out, from a server that `server_command` starts."""

import asyncio
import os
import sys
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import torch
from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

from rollout.engine import Completion, EngineError, Prompt, Sampling, causal_ids
from rollout.engines.bearer import VARIABLE, EveryRoute, TokenError, is_loopback, token_of
from rollout.engines.calls import Seeds, check_call, check_stock, first_line, together

Result = TypeVar("Result")

_CONNECT_RETRIES = 2
"""Only connections that never came up are tried again; a request that was sent is not."""
_KEEP_ALIVE_SECONDS = 2.0
"""Shorter than the server's 5 s, so that no request goes out on a connection that the server is closing."""


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
    if token is None and not is_loopback(host):
        raise TokenError(f"other machines reach {host}: set {VARIABLE} to a token, here and where you train")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_path)]
    command += ["--host", host, "--port", str(port), "--dtype", dtype, "--max-model-len", str(max_context)]
    command += ["--skip-tokenizer-init", "--logprobs-mode", "processed_logprobs"]
    command += ["--worker-extension-cls", "rollout.engines.vllm_worker.WeightLoader"]
    if token is not None:  # vLLM's own check leaves out the routes that load weights
        command += ["--middleware", f"{EveryRoute.__module__}.{EveryRoute.__qualname__}"]
    if cpu_kv_cache_gib is not None:  # the rest for the reasons given in vllm_inprocess
        command += ["--kv-cache-memory-bytes", str(int(cpu_kv_cache_gib * (1 << 30)))]
        command += ["--enforce-eager", "--block-size", "32", "--no-enable-chunked-prefill"]
        command += ["--max-num-batched-tokens", str(max(8192, max_context))]
    return command


class VllmHttpEngine:
    """A running vLLM server, checked when the engine is made: that it is there, fits, and reports exact log-probs.

    Weights go through a file in `weights_folder`, which the server must see under the same path. Every request carries
    VLLM_API_KEY, where it is set, as a bearer token.

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
        seed: int = 0,
    ) -> None:
        """`model` may be left out when the server serves one. Raises EngineError when the server is not as needed,
        TokenError for a token that no header can carry."""
        self.url = url.rstrip("/")
        self.max_context = max_context
        self.policy_version = 0
        self.timeout_seconds = timeout_seconds
        self._weights_folder = None if weights_folder is None else Path(weights_folder)
        self._limits = httpx.Limits(max_connections=max_in_flight, keepalive_expiry=_KEEP_ALIVE_SECONDS)
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        token = token_of()
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.model = ""
        self.reseed(seed)
        self.run([self._check_server(model)])

    def reseed(self, seed: int) -> None:
        """Restarts the stream that seeds calls without a seed of their own, e.g. at each training step."""
        self._seeds = Seeds(seed)

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        """Samples one continuation. Raises EngineError for a dead or refusing server, or a call that does not fit."""
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
        if self._client is not None:
            await self._client.aclose()
        self._client = self._loop = None

    def close(self) -> None:
        """Nothing to free: the server is not ours, and `run` closes its connections."""

    def load_weights(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Takes all parameters of the trainer (Hugging Face names, whole tensors); empties the prefix cache.

        One process may call it, with no call in flight. Raises EngineError when the server cannot take them.
        """
        if self._weights_folder is None:
            raise EngineError("weights_folder is not set: name a folder that the trainer and the vLLM server both see")
        path = self._weights_folder.resolve() / f"weights-{os.getpid()}.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in named_tensors}, path)
        try:
            self.run([self._load_file(path)])
        finally:
            path.unlink()
        self.policy_version += 1

    async def _load_file(self, path: Path) -> None:
        root = self.url.removesuffix("/v1")
        answer = await self._request(
            "POST", f"{root}/collective_rpc", {"method": "load_weights_file", "args": [str(path)]}
        )
        missing = [name for worker in answer["results"] for name in worker]
        if missing:
            raise EngineError(f"{len(missing)} parameters were not sent, e.g. {missing[0]}: send all of them")
        if not (await self._request("POST", f"{root}/reset_prefix_cache", None))["success"]:
            raise EngineError(
                f"{self.url} kept its prefix cache, which would mix old and new weights: calls in flight?"
            )

    async def _check_server(self, model: str | None) -> None:
        served = {card["id"]: card for card in (await self._request("GET", f"{self.url}/models", None))["data"]}
        self.model = next(iter(served)) if model is None else model
        if self.model not in served:
            raise EngineError(f"{self.url} serves {', '.join(served)}, not {self.model}: fix rollout.url or model.path")
        longest = served[self.model]["max_model_len"]
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
        choice = (await self._request("POST", f"{self.url}/completions", body))["choices"][0]
        ids, logprobs = tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"])
        if choice["finish_reason"] not in ("stop", "length") or len(ids) != len(logprobs):
            raise EngineError(f"{self.url} ended a call with {choice['finish_reason']!r}: see the server's log")
        return Completion(ids, logprobs, choice["finish_reason"])

    async def _request(self, method: str, url: str, body: dict[str, Any] | None) -> Any:
        try:
            async with asyncio.timeout(self.timeout_seconds):
                response = await self._here().request(method, url, json=body)
        except TimeoutError as error:
            raise EngineError(
                f"{url} gave no answer within {self.timeout_seconds:g} s: is the server stuck?"
            ) from error
        except httpx.ConnectError as error:
            raise EngineError(f"no vLLM server at {url}: start one, or correct rollout.url") from error
        except httpx.HTTPError as error:
            raise EngineError(f"{url} broke off ({first_line(error)}): see the server's log") from error
        if response.status_code == 401:
            raise EngineError(f"{url} wants a bearer token, or another one: set {VARIABLE} to the server's, here too")
        if not response.is_success:
            raise EngineError(f"{url} answered {response.status_code}: {_reason(response)}")
        return response.json() if response.content else None

    def _here(self) -> httpx.AsyncClient:
        """The client of the running event loop: connections cannot move from one loop to another."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            transport = httpx.AsyncHTTPTransport(retries=_CONNECT_RETRIES, limits=self._limits)
            # No deadline here: `_request` holds one over the whole exchange. Redirects are not followed, so that the
            # token goes to this server alone.
            client = httpx.AsyncClient(transport=transport, timeout=None, headers=self._headers)
            self._client, self._loop = client, loop
        return self._client


def _reason(response: httpx.Response) -> str:
    """What the server says went wrong: `error.message` of its JSON where there is one, else the text; one line."""
    text = response.text
    if response.headers.get("content-type", "").startswith("application/json"):
        answer: dict[str, Any] = response.json()
        text = str(answer["error"]["message"]) if "error" in answer else text
    return next(iter(text.strip().splitlines()), "no reason given")[:300]
