"""Results stay in results.json."""

from segquant_bench.pipelines.loggers.logger import Logger

LOGGER = Logger
