"""An engine that remembers what it has answered, so that after its death only the other calls are asked again."""

from array import array
from collections.abc import Generator
from contextlib import contextmanager
from hashlib import blake2b

from rollout.engine import Completion, Engine, Prompt, Sampling
from rollout.view import View


class Memo:
    """Finished calls by what was asked: the prompt, how it was sampled, and the seed, which is each call's own.

    >>> with memo.kept():  # with the same weights
    ...     engine = memo.over(engine)  # a call that the memo holds is answered from it, any other is asked and kept
    """

    def __init__(self) -> None:
        self._found: dict[bytes, Completion] | None = None

    def __len__(self) -> int:
        return len(self._found or ())

    @contextmanager
    def kept(self) -> Generator[None, None, None]:
        """Remembers until it is left: other weights would answer otherwise."""
        self._found = {}
        try:
            yield
        finally:
            self._found = None

    def over(self, engine: Engine) -> Engine:
        """The engine with this memory; the engine itself where nothing is kept."""
        return engine if self._found is None else _Remembering(engine, self._found)


class _Remembering:
    def __init__(self, engine: Engine, found: dict[bytes, Completion]) -> None:
        self.max_context, self._engine, self._found = engine.max_context, engine, found

    async def complete(self, prompt: Prompt, sampling: Sampling, thread: tuple[int, ...] = ()) -> Completion:
        """See Engine. Without a seed a call is asked each time: it would not be answered alike."""
        if sampling.seed is None:
            return await self._engine.complete(prompt, sampling, thread)
        asked = _named(prompt, sampling, thread)
        if asked not in self._found:
            self._found[asked] = await self._engine.complete(prompt, sampling, thread)
        return self._found[asked]


def _named(prompt: Prompt, sampling: Sampling, thread: tuple[int, ...]) -> bytes:
    """A digest: contexts are long, and a rollout has thousands. What a race cuts is cut again by what asks."""
    how = (sampling.max_tokens, sampling.stop_ids, sampling.temperature, sampling.seed, sampling.banned_ids)
    if isinstance(prompt, View):
        seen = repr((prompt.pieces, prompt.sees, prompt.starts, prompt.threads)).encode()
    else:
        seen = array("q", prompt).tobytes()  # a fifth of the time that text takes
    digest = blake2b(repr((isinstance(prompt, View), how, thread)).encode(), digest_size=16)
    digest.update(seen)
    return digest.digest()
