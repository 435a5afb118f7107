"""Running exported denoisers in the place of float ones."""

from __future__ import annotations

from segquant.deploy.run.load import load_exported

__all__ = ["load_exported"]
