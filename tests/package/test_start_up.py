"""What `import segquant` and the benchmark's commands load before there is work to do."""

from __future__ import annotations

import subprocess
import sys


def _packages(statements: str) -> set[str]:
    """Top-level packages outside the standard library that a new process has loaded after `statements`."""
    code = f"{statements}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split()) - set(sys.stdlib_module_names)


def test_importing_the_library_loads_little_beside_torch() -> None:
    added = _packages("import segquant") - _packages("import torch")
    assert {"segquant", "safetensors"} <= added
    assert added <= {"segquant", "safetensors", "numpy"}, "put imports off that most users do not need"


def test_help_loads_no_torch() -> None:
    page = "import sys; sys.argv = ['segquant', '--help']; sys.stdout = sys.stderr\n"
    loaded = _packages(page + "from segquant_bench.commands import segquant; segquant(); sys.stdout = sys.__stdout__")
    assert "hydra" in loaded and not loaded & {"torch", "segquant", "diffusers", "matplotlib", "scipy", "wandb"}
