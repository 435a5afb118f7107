"""The console commands. Without the benchmark's packages they end in one sentence instead of a traceback."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

READER_GONE = 141
"""What a shell calls a program that wrote to a closed pipe: 128 + SIGPIPE."""


def missing_packages() -> list[str]:
    """Distributions of the extra `bench` that are not installed; an optional one of another extra is no matter."""
    try:
        required = importlib.metadata.requires("segquant") or []
    except importlib.metadata.PackageNotFoundError:  # run from a clone that was never installed
        return []
    wanted = [line for line in required if re.search(r"""extra\s*==\s*["']bench["']""", line)]
    names = [match[0] for line in wanted if (match := re.match(r"[A-Za-z0-9._-]+", line))]
    return [name for name in names if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _require_benchmark(command: str) -> None:
    missing = missing_packages()
    if missing:
        sys.exit(
            f"{command}: this is the library alone, without {', '.join(missing)}; "
            "run pip install '.[bench]' in a clone of segquant for the benchmark"
        )


@contextmanager
def _read_in_part() -> Iterator[None]:
    """A reader that has seen enough (`| head`, `q` in a pager) ends the command, as it ends other programs."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        sys.exit(READER_GONE)


# The commands import their modules after the check: these need packages that only the benchmark installs.


def segquant() -> None:
    """One run of the benchmark, or a sweep."""
    if sys.argv[1:] == ["--version"]:  # Hydra would print its own
        print(f"segquant {importlib.metadata.version('segquant')}")
        return
    _require_benchmark("segquant")
    if sys.argv[1:] in (["--help"], ["-h"]):  # with further arguments Hydra prints the same page
        from segquant_bench.pipelines.config.help import help_page
        from segquant_bench.pipelines.config.resolvers import register

        register()
        with _read_in_part():
            print(help_page())
        return
    from segquant_bench.pipelines.main import main

    main()


def plan() -> None:
    """What the graph says of a model."""
    _require_benchmark("segquant-plan")
    from segquant_bench.pipelines.plan.cli import main

    with _read_in_part():
        main()


def export() -> None:
    """A saved quantized model as another tool's file."""
    _require_benchmark("segquant-export")
    from segquant_bench.pipelines.export.cli import main

    with _read_in_part():
        main()


def report() -> None:
    """Tables and figures again, from results on disk."""
    _require_benchmark("segquant-report")
    from segquant_bench.eval.cli import main

    with _read_in_part():
        code = main()
    sys.exit(code)


def status() -> None:
    """Which jobs of a sweep are done, run, failed or wait."""
    _require_benchmark("segquant-status")
    from segquant_bench.eval.status_cli import main

    with _read_in_part():
        code = main()
    sys.exit(code)
