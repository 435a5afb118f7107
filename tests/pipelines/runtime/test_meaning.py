"""What of a source file counts: what it does, and not how it is explained."""

from __future__ import annotations

import pytest

from segquant_bench.pipelines.runtime.meaning import source_meaning

PLAIN = "def f(x):\n    return x\n"


@pytest.mark.parametrize(
    "same",
    [
        'def f(x):\n    """Words."""\n    return x\n',
        "def f(x: int) -> int:\n    return x  # words\n",
    ],
)
def test_words_and_annotations_do_not_count(same: str) -> None:
    assert source_meaning(same) == source_meaning(PLAIN)


def test_annotations_that_dispatch_count() -> None:
    """functools.singledispatch chooses by them."""
    ints, floats = (f"@f.register\ndef _(x: {kind}):\n    return x\n" for kind in ("int", "float"))
    assert source_meaning(ints) != source_meaning(floats)
    inner = "@cache\ndef f(x):\n    def g(y{}):\n        return y\n    return g(x)\n"
    assert source_meaning(inner.format(": int")) == source_meaning(inner.format(""))
    fields = "class A:\n    x: {}\n"
    assert source_meaning(fields.format("int")) != source_meaning(fields.format("float"))
