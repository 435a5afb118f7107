from __future__ import annotations

from collections.abc import Sequence

from segquant_bench.eval.failures import Failure
from segquant_bench.eval.tables.numbers import joined
from segquant_bench.eval.tables.table import Table, heads, row

TITLE = "Failed runs"


def failed_table(failures: Sequence[Failure]) -> Table:
    named = [[failure.path.parent.name, _where(failure), " ".join(failure.overrides)] for failure in failures]
    rows = tuple(row([*keys, _why(failure)], ()) for keys, failure in zip(named, failures, strict=True))
    return Table(heads(("folder", "run", "asked for", "why it failed"), ()), (rows,), title=TITLE)


def _where(failure: Failure) -> str:
    return joined(failure.name, failure.model, failure.dataset, f"seed {failure.seed}" if failure.seed else "")


def _why(failure: Failure) -> str:
    return failure.message if failure.tries < 2 else f"{failure.message} (tried {failure.tries} times)"
