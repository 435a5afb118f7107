"""OpenVINO registers a signal stack that does not last; this thread's own is back behind every call of ours."""

from __future__ import annotations

import ctypes
import sys

import pytest

from segquant.deploy.run.signal_stack import _Stack, kept_signal_stack

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sigaltstack of Linux")


def _current() -> tuple[int | None, int]:
    found = _Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found.start, found.size


def _register(memory: ctypes.Array[ctypes.c_char]) -> None:
    ctypes.CDLL(None).sigaltstack(ctypes.byref(_Stack(ctypes.addressof(memory), 0, len(memory))), None)


def test_a_stack_that_another_library_registers_is_taken_back() -> None:
    before, memory = _current(), ctypes.create_string_buffer(1 << 16)
    with kept_signal_stack():
        _register(memory)
        assert _current() == (ctypes.addressof(memory), 1 << 16)
    assert _current() == before


def test_openvino_changes_none() -> None:
    pytest.importorskip("openvino")
    from segquant.deploy.run.openvino import products_are_exact

    before = _current()
    products_are_exact.cache_clear()
    products_are_exact()
    assert _current() == before
