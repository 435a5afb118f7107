"""The tiny pipeline and the command line of the benchmark's tests."""

from tests.pipelines.conftest import cache, command, finished_cache, tiny

__all__ = ["cache", "command", "finished_cache", "tiny"]
