"""What jobs of the launchers' tests do; imported by processes that launchers start."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig


def job(config: Any) -> int:
    """Notes when it began and ended and its threads; the one of seed 1 is killed the first time, seed 2 fails."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    begun = time.time()
    if config.seed == 1 and not (folder / "begun").exists():
        (folder / "begun").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if config.seed == 2:
        raise ValueError("a sentence")
    time.sleep(0.5)
    (folder / "span").write_text(f"{begun} {time.time()} {os.environ.get('OMP_NUM_THREADS')}")
    return int(config.seed) * 10
