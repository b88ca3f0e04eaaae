"""A sampler on plain transformers models: serves any view, computes no token twice, and is the oracle of the others."""

import asyncio
import copy
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rollout.engine import Completion, EngineError, Prompt, Sampling
from rollout.engines.calls import EngineStats, Seeds, check_call, first_line, settle, together
from rollout.engines.torch_attention import Context, Ints, Part, adapt, decoding, forward, prefilling
from rollout.engines.torch_cache import Rows, State, Store
from rollout.engines.torch_sampling import Call, sample
from rollout.view import View

Result = TypeVar("Result")

_GIB = 1 << 30
_PREFILL_AREA = 1 << 24
"""Most queries x keys, padding included, that one forward prefills: the mask of as many floats is made."""


@dataclass(frozen=True, eq=False, slots=True)
class Work:
    """A part of a forward and the calls that get a token from it: one from each of its tokens, or from those in `ends`.

    `new`: of each call that begins, the slots whose keys and values nobody held.
    """

    part: Part
    calls: Sequence[Call]
    ends: Ints | None = None
    new: Sequence[list[int]] | None = None


class TorchEngine:
    """A sampler on a transformers model, on the CPU or on CUDA, for causal contexts and for any other view.

    Calls from any number of tasks are decoded together, one token each per step, as by `VllmEngine`; the first sampled
    token is predicted by the last token of the view. Keys and values stay, also those of sampled tokens: a context
    costs only the tokens that were never computed with the same id, position and visible tokens, however it is cut
    into pieces. `kv_cache_gib` bounds what is kept and, counted in rows of 64, 128, ... tokens, the longest that the
    calls in flight may become; further calls wait.

    Noise is vLLM's (`torch_sampling.exponential_noise`): with the same seeds and weights `VllmEngine` samples the same
    tokens, in any company, but where two are closer than float32 rounds.

    >>> engine = TorchEngine("outputs/quickstart/model", max_context=1024, seed=0)
    >>> engine.run([engine.complete([3, 1, 4], Sampling(max_tokens=2, stop_ids=(7,)))])
    [Completion(ids=(15, 7), logprobs=(-2.3, -1.1), finish='stop')]
    """

    def __init__(
        self,
        model_or_path: PreTrainedModel | str | Path,
        *,
        max_context: int,
        dtype: str = "float32",
        max_in_flight: int = 256,
        kv_cache_gib: float = 1.0,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        """A model is copied; the device is CUDA where there is one. Raises EngineError for what cannot be served."""
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._model = _load_model(model_or_path, dtype, where)
        longest = getattr(self._model.config, "max_position_embeddings", None) or max_context
        if longest < max_context:
            raise EngineError(f"the model holds {longest} tokens, model.max_context is {max_context}: lower it")
        self.max_context = max_context
        self.max_in_flight = max_in_flight
        self.policy_version = 0
        self.stats = EngineStats()
        self._limit = int(kv_cache_gib * _GIB)
        self._shape = adapt(self._model)
        self._vocabulary = cast(int, cast(Any, self._model.config).vocab_size)
        self._store = Store()
        self._calls = 0
        self._driver: asyncio.Task[None] | None = None
        self._reset()
        self.reseed(seed)

    def _reset(self) -> None:
        self._rows = Rows(self._shape)
        self._queue: deque[Call] = deque()
        self._waiting: dict[Call, None] = {}
        self._in_flight = self._reserved = 0

    def reseed(self, seed: int) -> None:
        """Restarts the stream that seeds calls without a seed of their own, e.g. at each training step."""
        self._seeds = Seeds(seed)

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        """Samples one continuation. Raises EngineError for a call that cannot be served."""
        view = prompt if isinstance(prompt, View) else View((tuple(prompt),), ((),), (0,))
        call = self._call(view, sampling)
        self._queue.append(call)
        self._waiting[call] = None
        self._calls += 1
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive())
        try:
            return await call.future
        finally:
            if call in self._waiting:  # the caller was cancelled
                self._drop(call)

    def run(self, coroutines: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
        """Runs coroutines that call this engine; results in order. The first exception cancels the others."""
        return asyncio.run(together(coroutines))

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Takes all parameters of the trainer (Hugging Face names, whole tensors); forgets all keys and values.

        Raises EngineError when calls are in flight, or when a parameter is unknown, missing or of another shape.
        """
        if self._waiting:
            raise EngineError(f"{len(self._waiting)} calls are being sampled: load weights between rollouts")
        self._store.clear()
        missing = dict(self._model.named_parameters())
        every = dict(self._model.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, tensor in named_tensors:
                if name not in every:
                    raise EngineError(f"the model refuses the trainer's weights: it has no parameter {name}")
                if name not in missing:  # a second name of a tied parameter
                    continue
                if every[name].shape != tensor.shape:
                    says = f"{name} is {tuple(tensor.shape)}, not {tuple(every[name].shape)}"
                    raise EngineError(f"the model refuses the trainer's weights: {says}")
                missing.pop(name).copy_(tensor)
        if missing:
            raise EngineError(f"{len(missing)} parameters were not sent, e.g. {min(missing)}: send all of them")
        self.policy_version += 1

    def close(self) -> None:
        """Frees the model and all keys and values; the engine cannot be used any more."""
        self._store.clear()
        self._reset()
        del self._model

    def _call(self, view: View, sampling: Sampling) -> Call:
        ids = view.ids
        check_call(range(view.end if ids else 0), sampling, self.max_context)
        if not 0 <= min(ids) <= max(ids) < self._vocabulary:
            raise EngineError(f"a prompt id is outside the model's vocabulary of {self._vocabulary}: wrong tokenizer?")
        needs = self._shape.token_bytes * Rows.capacity(len(ids) + sampling.max_tokens)
        if needs > self._limit:
            raise EngineError(
                f"a call of {len(ids)} + {sampling.max_tokens} tokens needs {needs / _GIB:.3g} GiB of keys and values: "
                f"raise kv_cache_gib from {self._limit / _GIB:.3g}"
            )
        generator = torch.Generator(self._shape.device)
        generator.manual_seed(self._seeds.of(sampling))
        future = asyncio.get_running_loop().create_future()
        return Call(view, sampling, generator, future, Context(view), *self._store.states(view), needs)

    def _drop(self, call: Call) -> None:
        """Forgets a call, and gives its row back."""
        del self._waiting[call]
        if call.row < 0:
            self._queue.remove(call)
            return
        call.slab.shut(call)
        self._in_flight -= 1
        self._reserved -= call.bytes

    async def _drive(self) -> None:
        """Lets callers go on until none can, decodes one token for every call in flight, hands out what is finished."""
        finished: list[tuple[Call, Completion]] = []
        first = True
        while self._waiting:
            # Nobody waits for a step that ended no call, but for what comes from elsewhere.
            await (settle(lambda: self._calls) if finished or first else asyncio.sleep(0))
            first = False
            try:
                start = time.perf_counter()
                finished = self._step()
                self.stats.step_seconds += time.perf_counter() - start
            except Exception as error:
                waiting = list(self._waiting)
                self._reset()
                for call in waiting:
                    call.future.set_exception(EngineError(f"the model failed while decoding: {first_line(error)}"))
                return
            for call, completion in finished:
                call.future.set_result(completion)

    @torch.inference_mode()
    def _step(self) -> list[tuple[Call, Completion]]:
        """One token for each call in flight, those that now begin included; the calls that ended with it."""
        self._rows.grow()
        work = [
            Work(decoding(slab, len(slab.owners)), cast(list[Call], slab.owners.copy()))
            for slab in self._rows.slabs.values()
            if slab.owners
        ]
        finished: list[tuple[Call, Completion]] = []
        while work := work + self._admit():
            finished += self._forward(work)
            work = []
        for call, completion in finished:
            known = len(call.states)
            kept = call.slab.copy(call, slice(known, known + len(completion.ids) - 1))
            self._store.keep(self._store.follow(call.begin, completion.ids[:-1]), kept)
            self._drop(call)
            self.stats.sampled_tokens += len(completion.ids)
            self.stats.prompt_tokens += known
        self._store.evict(self._limit - self._rows.bytes)
        self.stats.steps += 1
        return finished

    def _admit(self) -> list[Work]:
        """Gives rows to calls of the queue; one that needs what another is about to compute waits for its next turn."""
        begun: list[tuple[Call, list[int]]] = []
        later: list[Call] = []
        computing: set[State] = set()
        area = 0
        while self._queue and area < _PREFILL_AREA and self._has_room(self._queue[0]):
            call = self._queue.popleft()
            missing = self._store.missing(call.states)
            new = {call.states[slot] for slot in missing}
            if not computing.isdisjoint(new):
                later.append(call)
                continue
            computing |= new
            begun.append((call, missing))
            area += (len(missing) + 1) * len(call.states)
            self._in_flight += 1
            self._reserved += call.bytes
        self._queue.extendleft(reversed(later))
        # Neighbours share a padded part: alike in capacity and in what they lack.
        begun.sort(key=lambda item: (Rows.capacity(len(item[0].states)), len(item[1])))
        groups: list[list[tuple[Call, list[int]]]] = []
        for item in begun:
            first = groups[-1][0] if groups else item
            same_slab = Rows.capacity(len(item[0].states)) == Rows.capacity(len(first[0].states))
            if not groups or not same_slab or len(item[1]) > 2 * len(first[1]) + 8:
                groups.append([])
            groups[-1].append(item)
        return [self._begin(group) for group in groups]

    def _has_room(self, call: Call) -> bool:
        return self._in_flight < self.max_in_flight and self._reserved + call.bytes <= self._limit

    def _begin(self, group: Sequence[tuple[Call, list[int]]]) -> Work:
        """Opens rows with what is held; what is missing, and the last token for its output, is left to one part."""
        slab = self._rows.slab(len(group[0][0].states))
        slab.fit(len(slab.owners) + len(group), max(len(call.states) for call, _ in group))
        asked: list[tuple[Context, Ints]] = []
        for call, missing in group:
            last = len(call.states) - 1
            slab.open(call, last + 1)
            self._store.load(call.states, slab.of(call))
            slots = np.array([*missing, last] if last not in missing[-1:] else missing, dtype=np.int64)
            self.stats.prefilled_tokens += len(slots)
            self.stats.cached_tokens += last + 1 - len(slots)
            asked.append((call.context, self._shorten(call, slots)))
        part = prefilling(slab, group[0][0].row, asked)
        ends = np.cumsum([len(slots) for _, slots in asked]) - 1
        return Work(part, [call for call, _ in group], ends, [missing for _, missing in group])

    def _shorten(self, call: Call, slots: Ints) -> Ints:
        """Computes the first of many missing tokens in forwards of their own; what is left for the common one."""
        most = max(1, _PREFILL_AREA // len(call.states))
        while len(slots) > most:
            part = prefilling(call.slab, call.row, [(call.context, slots[:most])])
            forward(self._model, [part], np.zeros(1, dtype=np.int64))  # for its keys and values only
            slots = slots[most:]
        return slots

    def _forward(self, work: Sequence[Work]) -> list[tuple[Call, Completion]]:
        """One forward, and a sampled token for each call; the calls that ended."""
        calls = [call for item in work for call in item.calls]
        starts = np.cumsum([0, *(len(item.part.ids) for item in work)])
        wanted = None
        if starts[-1] > len(calls):  # the logits of other tokens are not computed
            ends = [item.ends if item.ends is not None else np.arange(len(item.calls)) for item in work]
            wanted = np.concatenate([own + start for own, start in zip(ends, starts, strict=False)])
        logits = forward(self._model, [item.part for item in work], wanted)
        tokens, logprobs = sample(logits, calls)
        done = 0
        for item in work:
            slab, part, count = item.part.slab, item.part, len(item.calls)
            for call, new in zip(item.calls, item.new, strict=True) if item.new else ():
                slab.ready(call, len(call.states), call.view.end)
                self._store.keep([call.states[slot] for slot in new], slab.copy(call, new))
            slab.last_id[part.first : part.last] = tokens[done : done + count]
            done += count
        ids, values = cast(list[int], tokens.tolist()), cast(list[float], logprobs.tolist())  # pyright: ignore[reportUnknownMemberType]
        taken = zip(calls, ids, values, strict=True)
        return [(call, ended) for call, token, logprob in taken if (ended := call.take(token, logprob))]


def _load_model(model_or_path: PreTrainedModel | str | Path, dtype: str, device: torch.device) -> PreTrainedModel:
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise EngineError(f"{dtype} is no dtype: use float32, bfloat16 or float16")
    if isinstance(model_or_path, PreTrainedModel):
        model = copy.deepcopy(model_or_path)
    elif Path(model_or_path).is_dir() and not (Path(model_or_path) / "config.json").is_file():
        raise EngineError(f"{model_or_path} is no model folder: it has no config.json (save_pretrained writes one)")
    else:
        try:
            model = cast(Any, AutoModelForCausalLM).from_pretrained(model_or_path, dtype=kind)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise EngineError(f"transformers cannot load {model_or_path}: {first_line(error)}") from error
    return cast(Any, model).to(device, kind).eval().requires_grad_(False)
