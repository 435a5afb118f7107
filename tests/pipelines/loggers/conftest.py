from __future__ import annotations

from pathlib import Path

import pytest

from segquant_bench.pipelines.loggers.for_wandb import mode
from segquant_bench.pipelines.loggers.members import wandb as member


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No login of this machine's user, and no host."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_TAGS", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(member, "_refused", [])
    mode._out_of_reach.cache_clear()
