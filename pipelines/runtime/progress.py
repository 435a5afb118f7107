"""Where stages find their bar: a name that their code has, and their keys hash."""

from segquant_bench.bars import progress_bar

__all__ = ["progress_bar"]
