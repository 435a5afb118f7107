"""What `import segquant` and the benchmark's commands load before there is work to do."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


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


@pytest.mark.parametrize(("statements", "code"), [
    ("commands.segquant()", 141), ("commands.status()", 0),  # argparse takes no notice of it
    ("with commands._read_in_part(): print(1)", 141), ("with commands._read_in_part(): print(1); sys.exit(0)", 141),
])  # fmt: skip
def test_a_reader_that_has_gone_ends_a_command_without_a_traceback(statements: str, code: int) -> None:
    closed, end = os.pipe()
    os.close(closed)
    program = f"import sys; sys.argv = ['segquant', '--help']\nfrom segquant_bench import commands\n{statements}"
    done = subprocess.run([sys.executable, "-c", program], stdout=end, stderr=subprocess.PIPE, text=True, check=False)
    os.close(end)
    assert (done.returncode, done.stderr) == (code, "")
