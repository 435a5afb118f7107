"""An interrupt that somebody swallows comes again; one that was heard does not."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator

import pytest

from segquant_bench.pipelines.runtime import interrupt
from segquant_bench.pipelines.runtime.interrupt import heard, insistent_interrupt


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(interrupt, "SECONDS", 0.02)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class _Swallows:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_dropped_by_a_destructor_comes_again() -> None:
    with pytest.raises(KeyboardInterrupt), insistent_interrupt():
        _Swallows()
        time.sleep(10)


def test_one_that_is_caught_comes_again_until_heard() -> None:
    caught = 0
    with insistent_interrupt():
        for _ in range(3):
            try:
                if not caught:
                    signal.raise_signal(signal.SIGINT)
                time.sleep(10)
            except KeyboardInterrupt:
                caught += 1
        heard()
        time.sleep(0.1)
    assert caught == 3


def test_the_handlers_are_those_from_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(KeyboardInterrupt), insistent_interrupt():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGALRM) is before
    time.sleep(0.1)


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with insistent_interrupt():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_somebody_elses_alarm_handler_is_back_afterwards() -> None:
    def theirs(*_: object) -> None:
        raise AssertionError("nothing rings here")

    before = signal.signal(signal.SIGALRM, theirs)
    try:
        with insistent_interrupt():
            assert signal.getsignal(signal.SIGALRM) is interrupt._insist
        assert signal.getsignal(signal.SIGALRM) is theirs
        with pytest.raises(KeyboardInterrupt), insistent_interrupt():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGALRM) is theirs
        time.sleep(0.05)  # an alarm still set would ring now
    finally:
        signal.signal(signal.SIGALRM, before)


def test_nothing_changes_in_another_thread() -> None:
    """Only the main thread may set handlers: elsewhere Python raises."""
    found: list[object] = []

    def work() -> None:
        with insistent_interrupt():
            found.extend(map(signal.getsignal, (signal.SIGINT, signal.SIGALRM)))

    before = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == before
