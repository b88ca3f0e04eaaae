"""A sampler on plain transformers models: serves any view, computes no token twice, and is the oracle of the others."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rollout.engine import Completion, EngineError, Prompt, Sampling
from rollout.engines import thread_vectors
from rollout.engines.calls import EngineStats, Seeds, check_call, first_line, settle, together
from rollout.engines.torch_attention import Context, Ints, Part, decoding, prefilling
from rollout.engines.torch_cache import Rows, Slab, State, Store
from rollout.engines.torch_model import adapt, forward, load_model, take_weights
from rollout.engines.torch_sampling import Call, Stream, sample
from rollout.engines.torch_together import Mode, Session, frequencies
from rollout.view import View

Result = TypeVar("Result")

_GIB = 1 << 30
_PREFILL_AREA = 1 << 24
"""Most queries x keys, padding included, that one forward prefills: the mask of as many floats is made."""


Job = Call | Session


@dataclass(frozen=True, eq=False, slots=True)
class Work:
    """A part of a forward, and the streams that get a token from it: after each of its tokens, or after those in
    `ends`. `then` is called with the sampled tokens (streams,)."""

    part: Part
    streams: Sequence[Stream]
    jobs: Sequence[Job]
    """Whose each stream is."""
    ends: Ints | None
    then: Callable[[Tensor], None]


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
        self._model = load_model(model_or_path, dtype, where)
        longest = getattr(self._model.config, "max_position_embeddings", None) or max_context
        if longest < max_context:
            raise EngineError(f"the model holds {longest} tokens, model.max_context is {max_context}: lower it")
        self.max_context = max_context
        self.max_in_flight = max_in_flight
        self.policy_version = 0
        self._whole = True  # not between two sets of weights
        self.stats = EngineStats()
        self._limit = int(kv_cache_gib * _GIB)
        self._shape = adapt(self._model)
        self._numbers = thread_vectors.count_of(self._model)
        self._vocabulary = cast(int, cast(Any, self._model.config).vocab_size)
        self._store = Store()
        self._calls = 0
        self._driver: asyncio.Task[None] | None = None
        self._reset()
        self.reseed(seed)

    def _reset(self) -> None:
        self._rows = Rows(self._shape)
        self._queue: deque[Job] = deque()
        self._waiting: dict[Job, None] = {}
        self._sessions: list[Session] = []
        self._in_flight = self._reserved = 0

    def reseed(self, seed: int) -> None:
        """Restarts the stream that seeds calls without a seed of their own, e.g. at each training step."""
        self._seeds = Seeds(seed)

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        """Samples one continuation. Raises EngineError for a call that cannot be served."""
        return await self._serve(self._call(_view(prompt), sampling))

    async def complete_together(
        self,
        prompt: Prompt,
        headers: Sequence[tuple[int, ...]],
        samplings: Sequence[Sampling],
        *,
        stride: int,
        mode: Mode,
        threads: Sequence[tuple[int, ...]] = (),
    ) -> list[Completion]:
        """Samples one continuation of each header in lockstep, one token each per step.

        A header sees the prompt and itself, and its last token predicts the thread's first. A sampled token sees the
        prompt, all headers, its own earlier tokens and what the others sampled in strictly earlier steps, their last
        tokens included. Keys and values of the prompt and the headers are kept, those of sampled tokens are not.

        group_think: header n starts at position `end of the prompt + n * stride`. hogwild (`stride` is not read): for
        each reader the prompt, the other threads' tokens so far in their order, and its own run on without a gap; a
        key that was computed under other positions is turned to where the reader finds it, and stays what it was.

        Raises EngineError for a call that cannot be served.
        """
        return await self._serve(self._session(_view(prompt), headers, samplings, stride, mode))

    async def _serve(self, job: Job) -> Any:
        if not self._whole:
            raise EngineError("the last load_weights was refused halfway: load a whole set before sampling")
        self._queue.append(job)
        self._waiting[job] = None
        self._calls += 1
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive())
        try:
            return await job.future
        finally:
            if job in self._waiting:  # the caller was cancelled
                self._drop(job)

    def run(self, coroutines: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
        """Runs coroutines that call this engine; results in order. The first exception cancels the others."""
        return asyncio.run(together(coroutines))

    def load_weights(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Takes all parameters of the trainer (Hugging Face names, whole tensors); forgets all keys and values.

        Raises EngineError when calls are in flight, or when a parameter is unknown, missing or of another shape; the
        engine then samples nothing before it has taken a whole set.
        """
        if self._waiting:
            raise EngineError(f"{len(self._waiting)} calls are being sampled: load weights between rollouts")
        self._store.clear()
        self._whole = False
        take_weights(self._model, named_tensors)
        self._whole = True
        self.policy_version += 1

    def close(self) -> None:
        """Frees the model and all keys and values; the engine cannot be used any more."""
        self._store.clear()
        self._reset()
        del self._model

    def _call(self, view: View, sampling: Sampling) -> Call:
        self._check(view.ids, view.end, sampling)
        if max(view.threads, default=0) > self._numbers:
            raise EngineError(
                f"the model has vectors for {self._numbers} threads, not for thread {max(view.threads)}: raise "
                "model.thread_vectors"
            )
        needs = self._shape.token_bytes * Rows.capacity(len(view.ids) + sampling.max_tokens)
        self._check_bytes(needs, len(view.ids) + sampling.max_tokens)
        states, begin = self._store.states(view)
        future = asyncio.get_running_loop().create_future()
        return Call(view, self._stream(sampling), future, Context(view), states, begin, needs)

    def _session(
        self, view: View, headers: Sequence[tuple[int, ...]], samplings: Sequence[Sampling], stride: int, mode: Mode
    ) -> Session:
        if view.threads:
            raise EngineError("threads that see each other while they are sampled have no vectors")
        if not headers or not all(headers):
            raise EngineError("a thread needs a header: its last token predicts the first sampled one")
        if len(headers) > self.max_in_flight:
            raise EngineError(f"{len(headers)} threads together are more than max_in_flight={self.max_in_flight}")
        for header, sampling in zip(headers, samplings, strict=True):
            self._check([*view.ids, *header], view.end + len(header), sampling)
        angles = frequencies(self._model, self._shape) if mode == "hogwild" else None
        streams = [self._stream(sampling) for sampling in samplings]
        future = asyncio.get_running_loop().create_future()
        session = Session(view, headers, streams, stride, angles, future, self._shape)
        if session.ends_at > self.max_context:
            raise EngineError(
                f"{len(headers)} threads together reach position {session.ends_at}, which does not fit "
                f"model.max_context={self.max_context}: ask for less, or raise it"
            )
        self._check_bytes(session.bytes, session.slots)
        session.states, _ = self._store.states(session.whole)
        return session

    def _stream(self, sampling: Sampling) -> Stream:
        generator = torch.Generator(self._shape.device)
        generator.manual_seed(self._seeds.of(sampling))
        return Stream(sampling, generator)

    def _check(self, ids: list[int], end: int, sampling: Sampling) -> None:
        check_call(range(end if ids else 0), sampling, self.max_context)
        if not 0 <= min(ids) <= max(ids) < self._vocabulary:
            raise EngineError(f"a prompt id is outside the model's vocabulary of {self._vocabulary}: wrong tokenizer?")

    def _check_bytes(self, needs: int, tokens: int) -> None:
        if needs > self._limit:
            raise EngineError(
                f"a call of up to {tokens} tokens needs {needs / _GIB:.3g} GiB of keys and values: "
                f"raise kv_cache_gib from {self._limit / _GIB:.3g}"
            )

    @torch.inference_mode()
    def _drop(self, job: Job) -> None:
        """Forgets a job, and gives its row back."""
        del self._waiting[job]
        if job.row < 0:
            self._queue.remove(job)
            return
        if isinstance(job, Session):
            self._sessions.remove(job)
        self._in_flight -= job.size
        self._reserved -= job.bytes
        job.slab.shut(job)

    async def _drive(self) -> None:
        """Lets callers go on until none can, decodes one token for every call in flight, hands out what is finished."""
        finished: list[Job] = []
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
                for job in waiting:
                    if not job.future.done():  # else its caller was cancelled a moment ago
                        job.future.set_exception(EngineError(f"the model failed while decoding: {first_line(error)}"))
                return
            for job in finished:
                if job.future.done():
                    continue
                if isinstance(job, Session):
                    job.future.set_result(job.completions)
                else:
                    job.future.set_result(job.stream.completion)

    @torch.inference_mode()
    def _step(self) -> list[Job]:
        """One token for each stream in flight, those that now begin included; the jobs that ended with it."""
        self._rows.grow()
        work = [self._decode(slab) for slab in self._rows.slabs.values() if slab.owners]
        for session in self._sessions:
            part, streams, ends = session.step()
            work.append(Work(part, streams, [session] * len(streams), ends, lambda _: None))
        finished: list[Job] = []
        while work := work + self._admit():
            finished += self._forward(work)
            work = []
        for job in finished:
            if isinstance(job, Call):
                known, ids = len(job.states), job.stream.ids[:-1]
                kept = job.slab.copy(job, slice(known, known + len(ids)))
                self._store.keep(self._store.follow(job.begin, tuple(ids)), kept)
            self._drop(job)
            self.stats.sampled_tokens += sum(len(stream.ids) for stream in job.streams)
            self.stats.prompt_tokens += len(job.states)
        sessions = sum(session.slab.bytes for session in self._sessions)
        self._store.evict(self._limit - self._rows.bytes - sessions)
        self.stats.steps += 1
        return finished

    def _decode(self, slab: Slab) -> Work:
        calls = cast(list[Call], slab.owners.copy())
        part = decoding(slab, len(calls))

        def then(tokens: Tensor) -> None:
            slab.last_id[: len(calls)] = tokens

        return Work(part, [call.stream for call in calls], calls, None, then)

    def _admit(self) -> list[Work]:
        """Gives rows to jobs of the queue; one that needs what another is about to compute waits for its next turn."""
        begun: list[tuple[Call, list[int]]] = []
        together: list[Work] = []
        later: list[Job] = []
        computing: set[State] = set()
        area = 0
        while self._queue and area < _PREFILL_AREA and self._has_room(self._queue[0]):
            job = self._queue.popleft()
            missing = self._store.missing(job.states)
            new = {job.states[slot] for slot in missing}
            if not computing.isdisjoint(new):
                later.append(job)
                continue
            computing |= new
            area += (len(missing) + 1) * len(job.states)
            self._in_flight += job.size
            self._reserved += job.bytes
            if isinstance(job, Session):
                together.append(self._begin_session(job, missing))
            else:
                begun.append((job, missing))
        self._queue.extendleft(reversed(later))
        return [*together, *(self._begin(group) for group in _alike(begun))]

    def _has_room(self, job: Job) -> bool:
        return self._in_flight + job.size <= self.max_in_flight and self._reserved + job.bytes <= self._limit

    def _begin(self, group: Sequence[tuple[Call, list[int]]]) -> Work:
        """Opens rows with what is held; what is missing, and the last token for its output, is left to one part."""
        calls = [call for call, _ in group]
        slab = self._rows.slab(len(calls[0].states))
        slab.fit(len(slab.owners) + len(group), max(len(call.states) for call in calls))
        asked: list[tuple[Context, Ints]] = []
        for call, missing in group:
            slab.open(call, len(call.states))
            self._store.load(call.states, slab.of(call))
            asked.append((call.context, self._to_compute(call, missing, [len(call.states) - 1])))
        part = prefilling(slab, calls[0].row, asked)

        def then(tokens: Tensor) -> None:
            for call, missing in group:
                slab.ready(call, len(call.states), call.view.end, call.view.threads[-1] if call.view.threads else 0)
                self._store.keep([call.states[slot] for slot in missing], slab.copy(call, missing))
            slab.last_id[part.first : part.last] = tokens

        ends = np.cumsum([len(slots) for _, slots in asked]) - 1
        return Work(part, [call.stream for call in calls], calls, ends, then)

    def _begin_session(self, session: Session, missing: list[int]) -> Work:
        session.open(self._store)
        self._sessions.append(session)
        slots = self._to_compute(session, missing, list(session.ends))
        part = prefilling(session.slab, 0, [(session.context, slots)])

        def then(_: Tensor) -> None:
            self._store.keep([session.states[slot] for slot in missing], session.slab.copy(session, missing))

        return Work(part, session.streams, [session] * session.size, np.searchsorted(slots, session.ends), then)

    def _to_compute(self, job: Job, missing: list[int], ends: list[int]) -> Ints:
        """The slots for the common forward: what is missing, and those whose output is needed.

        The first of very many are computed at once, in forwards of their own.
        """
        slots = np.unique(np.array([*missing, *ends], dtype=np.int64))
        self.stats.prefilled_tokens += len(slots)
        self.stats.cached_tokens += len(job.states) - len(slots)
        most = max(len(job.states) - ends[0], _PREFILL_AREA // len(job.states))
        while len(slots) > most:
            cut = min(most, len(slots) - most)
            part = prefilling(job.slab, job.row, [(job.context, slots[:cut])])
            forward(self._model, [part], np.zeros(1, dtype=np.int64))  # for its keys and values only
            slots = slots[cut:]
        return slots

    def _forward(self, work: Sequence[Work]) -> list[Job]:
        """One forward, and a sampled token for each stream; the jobs that ended."""
        streams = [stream for item in work for stream in item.streams]
        starts = np.cumsum([0, *(len(item.part.ids) for item in work)])
        wanted = None
        if starts[-1] > len(streams):  # the logits of other tokens are not computed
            ends = [np.arange(len(item.streams)) if item.ends is None else item.ends for item in work]
            wanted = np.concatenate([own + start for own, start in zip(ends, starts, strict=False)])
        logits = forward(self._model, [item.part for item in work], wanted)
        tokens, logprobs = sample(logits, streams)
        done = 0
        for item in work:
            item.then(tokens[done : done + len(item.streams)])
            done += len(item.streams)
        jobs = [job for item in work for job in item.jobs]
        ids, values = cast(list[int], tokens.tolist()), cast(list[float], logprobs.tolist())  # pyright: ignore[reportUnknownMemberType]
        finished: list[Job] = []
        for job, stream, token, logprob in zip(jobs, streams, ids, values, strict=True):
            if stream.take(token, logprob) and all(each.finish for each in job.streams):
                finished.append(job)
        return finished


def _view(prompt: Prompt) -> View:
    return prompt if isinstance(prompt, View) else View((tuple(prompt),), ((),), (0,))


def _alike(begun: list[tuple[Call, list[int]]]) -> list[list[tuple[Call, list[int]]]]:
    """Calls with what each lacks, in groups that can share a padded part: of one slab, and of similar need."""
    groups: list[list[tuple[Call, list[int]]]] = []
    least = (0, 0)
    for call, missing in sorted(begun, key=lambda item: (Rows.capacity(len(item[0].states)), len(item[1]))):
        need = (Rows.capacity(len(call.states)), len(missing))
        if not groups or need[0] != least[0] or need[1] > 2 * least[1] + 8:
            groups.append([])
            least = need
        groups[-1].append((call, missing))
    return groups
