"""An interrupt that somebody swallows comes again; one that was heard does not."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from segquant_bench.pipelines.runtime import interrupt
from segquant_bench.pipelines.runtime.interrupt import ENDING, exit_code, heard, insistent_interrupt, signal_name


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
def test_one_dropped_by_a_destructor_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "SECONDS", 0.3)  # not while pytest writes of the dropped one
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


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_an_alarm_that_rings_at_the_end_ends_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the handler from before, an alarm on its way would: 2,000 moments about the end, in a child."""
    monkeypatch.setattr(interrupt, "SECONDS", 3e-4)
    child = os.fork()
    if not child:
        code = 1
        try:
            _end_at_many_moments(2000)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def _end_at_many_moments(count: int) -> None:
    draw = random.Random(0)
    for _ in range(count):
        with contextlib.suppress(KeyboardInterrupt), insistent_interrupt():
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                end = time.perf_counter() + draw.uniform(2.6e-4, 3.1e-4)
                while time.perf_counter() < end:
                    pass
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


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


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_what_schedulers_send(sent: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first exception is swallowed; the next tells the same signal."""
    monkeypatch.setattr(interrupt, "SECONDS", 0.3)  # not before the second is heard
    caught: list[KeyboardInterrupt] = []
    with insistent_interrupt():
        while len(caught) < 2:
            try:
                if not caught:
                    signal.raise_signal(sent)
                time.sleep(10)
            except KeyboardInterrupt as error:
                caught.append(error)
        heard()
    for error in (*caught, pickle.loads(pickle.dumps(caught[0]))):  # as it comes from a launcher's process
        assert exit_code(error) == code and signal_name(error) == sent.name
    assert [signal.getsignal(number) for number in ENDING] == list(ENDING.values())
    assert exit_code(KeyboardInterrupt()) == 130


def test_an_inner_one_changes_nothing() -> None:
    with insistent_interrupt():
        before = [signal.getsignal(number) for number in ENDING]
        with insistent_interrupt():
            assert [signal.getsignal(number) for number in ENDING] == before
        assert [signal.getsignal(number) for number in ENDING] == before


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_ends_as_without_us() -> None:
    """Somebody's worker process, which its pool ends by SIGTERM."""
    reading, writing = os.pipe()
    with insistent_interrupt():
        child = os.fork()
        if not child:
            try:
                os.write(writing, b"!")
                time.sleep(60)
            finally:
                os._exit(7)
        assert os.read(reading, 1)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM
