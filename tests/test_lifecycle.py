"""A signal stops a run where it can be saved, and is seen wherever the run waits."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import pytest

from apr_train import lifecycle
from apr_train.lifecycle import SIGNALS, StopFlag, Stopped, watched
from rollout.engines.calls import together


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_the_second_one_acts(number: signal.Signals) -> None:
    flag = StopFlag()
    flag.listen()
    assert not flag
    os.kill(os.getpid(), number)
    assert flag and flag.reason == number.name
    assert signal.getsignal(number) == signal.SIG_DFL  # sent again, it ends the process


def test_the_first_reason_stays() -> None:
    flag = StopFlag()
    flag.set("SIGTERM")
    flag.set("another rank was told to")
    assert flag.reason == "SIGTERM"


def run(*seconds: float, stop_after: float | None = None) -> list[float | None]:
    flag = StopFlag()

    async def sample(duration: float) -> float:
        await asyncio.sleep(duration)
        return duration

    async def everything() -> list[float | None]:
        if stop_after is not None:
            asyncio.get_running_loop().call_later(stop_after, flag.set, "test")
        return await together(watched([sample(each) for each in seconds], lambda: bool(flag)))

    return asyncio.run(everything())


def test_rollouts_that_nobody_stops_do_not_wait_for_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "POLL", 30.0)
    started = time.perf_counter()
    assert run(0.01, 0.02, 0.0) == [0.01, 0.02, 0.0, None]
    assert run() == [None]
    assert time.perf_counter() - started < 15


def test_a_stop_ends_rollouts_long_before_they_would_end() -> None:
    started = time.perf_counter()
    with pytest.raises(Stopped):
        run(60.0, 0.01, stop_after=0.05)
    assert time.perf_counter() - started < 30


def test_an_error_of_a_rollout_is_not_hidden_by_the_watch() -> None:
    async def broken() -> float:
        raise ValueError("a bug")

    async def endless() -> float:
        await asyncio.sleep(60)
        return 0.0

    with pytest.raises(ValueError, match="a bug"):
        asyncio.run(together(watched([endless(), broken()], lambda: False)))
