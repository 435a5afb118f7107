"""Bars: their counts reach listeners although no terminal shows them, and they have no part in the keys of stages."""

from __future__ import annotations

import sys
import threading

import pytest

from segquant_bench.bars import Advance, listening, progress_bar, tqdm
from segquant_bench.pipelines.runtime.meaning import source_meaning


def test_a_hidden_bar_is_heard() -> None:
    assert not sys.stderr.isatty()
    heard: list[Advance] = []
    with listening(heard.append), tqdm(total=5, desc="d", unit="picture", disable=None, leave=False) as bar:
        bar.update(2)
        bar.update(3)
    with tqdm(total=5, desc="d", unit="picture", disable=None) as bar:
        bar.update(5)
    assert heard == [Advance("d", done, 5, "picture") for done in (0, 2, 5)]


def test_every_listener_hears_every_thread() -> None:
    first: list[Advance] = []
    second: list[Advance] = []
    with listening(first.append), listening(second.append), progress_bar("rtn\x1b") as show:
        worker = threading.Thread(target=show, args=("quantize", 3, 7))
        worker.start()
        worker.join()
    assert first == second == [Advance("quantize", 3, 7, "")]


def test_a_shown_bar_counts_too(capsys: pytest.CaptureFixture[str]) -> None:
    with tqdm(total=4, desc="shown", unit="picture", file=sys.stdout, mininterval=0) as bar:
        bar.update(4)
    assert "shown: 100%" in capsys.readouterr().out


def test_where_a_bar_comes_from_is_no_meaning() -> None:
    ours, theirs = (source_meaning(f"from {name} import tqdm\n") for name in ("segquant_bench.bars", "tqdm"))
    assert ours == theirs
    assert source_meaning("from segquant_bench.bars import progress_bar\n") != theirs
    assert source_meaning("from segquant_bench.bars import tqdm, tell\n") != theirs
