from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from segquant_bench.texts import plain


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """A callback (what, done, total) that moves a bar, on terminals only."""
    label = plain(label)
    with tqdm(desc=label, disable=None, leave=False) as bar:

        def show(what: str, done: int, total: int) -> None:
            bar.set_description(f"{label}: {plain(what)}", refresh=False)
            bar.total, bar.n = total or None, done
            bar.refresh()

        yield show
