"""Reads what a vLLM server answered: whatever is not what was asked for is one line, never a traceback."""

import math
from typing import cast

from rollout.engine import Completion, EngineError, Sampling

_ROUNDING = 1e-6
"""How far above 0 a log-prob may lie."""

LOWEST = -1e30
"""Below any log-prob, and within a float: JSON's integers know no bounds."""

Json = dict[str, object]


def unreadable(url: str, what: str) -> EngineError:
    """The error for an answer that no vLLM server gives."""
    return EngineError(f"{url} gave an answer that cannot be used ({what}): is it a vLLM server? See its log")


def read_completion(url: str, answer: object, sampling: Sampling, vocabulary: int | None) -> Completion:
    """What one call sampled. Raises EngineError for anything but such an answer, also for impossible numbers."""
    choices = _items(url, _field(url, _object(url, answer, "it"), "choices"), "choices")
    if not choices:
        raise unreadable(url, "choices is empty")
    choice = _object(url, choices[0], "choices[0]")
    finish = _field(url, choice, "finish_reason")
    if finish not in ("stop", "length"):
        raise EngineError(f"{url} ended a call with {str(finish)[:80]!r}: see the server's log")
    told = _object(url, _field(url, choice, "logprobs"), "logprobs")
    ids = _items(url, _field(url, choice, "token_ids"), "token_ids")
    logprobs = _items(url, _field(url, told, "token_logprobs"), "token_logprobs")
    most = math.inf if vocabulary is None else vocabulary
    if not all(type(each) is int and 0 <= each < most for each in ids):
        raise unreadable(url, "token_ids holds what is no id of the vocabulary")
    if not all(isinstance(each, int | float) and LOWEST < each <= _ROUNDING for each in logprobs):
        raise unreadable(url, "token_logprobs holds what is no log-probability")
    if not 0 < len(ids) <= sampling.max_tokens or len(ids) != len(logprobs):
        raise unreadable(url, f"{len(ids)} ids and {len(logprobs)} log-probs where 1 to {sampling.max_tokens} were due")
    if finish == "stop" and ids[-1] not in sampling.stop_ids:
        raise unreadable(url, "it stopped at an id that is no stop id")
    return Completion(tuple(cast(list[int], ids)), tuple(map(float, cast(list[float], logprobs))), finish)


def read_models(url: str, answer: object) -> dict[str, int]:
    """The names that the server serves, and how many tokens each holds."""
    cards = [
        _object(url, each, "a model") for each in _items(url, _field(url, _object(url, answer, "it"), "data"), "data")
    ]
    found = {str(_field(url, card, "id")): _field(url, card, "max_model_len") for card in cards}
    if not found or not all(type(longest) is int for longest in found.values()):
        raise unreadable(url, "no model with an id and a max_model_len")
    return cast(dict[str, int], found)


def read_missing(url: str, answer: object) -> list[str]:
    """Parameters that a worker did not get, of all workers."""
    workers = _items(url, _field(url, _object(url, answer, "it"), "results"), "results")
    return [str(name) for worker in workers for name in _items(url, worker, "a worker's result")]


def read_success(url: str, answer: object) -> bool:
    """Whether the server did what it was asked."""
    return _field(url, _object(url, answer, "it"), "success") is True


def _object(url: str, value: object, name: str) -> Json:
    if not isinstance(value, dict):
        raise unreadable(url, f"{name} is no object")
    return cast(Json, value)


def _items(url: str, value: object, name: str) -> list[object]:
    if not isinstance(value, list):
        raise unreadable(url, f"{name} is no list")
    return cast(list[object], value)


def _field(url: str, value: Json, name: str) -> object:
    if name not in value:
        raise unreadable(url, f"{name} is missing")
    return value[name]
