"""Runs `segquant` in forked processes, kills them at random moments, and notes which work was begun.

    python -m tests.pipelines.killing FOLDER KILLS SEED [KEY=VALUE …]

Every sweep is begun again after each kill until it ends, in a folder of its own (FOLDER/0, FOLDER/1 …), until there
were so many kills. FOLDER/N/work has a line for every layer and batch that was begun. kills.json has, by folder, how
many lines each killed process wrote. A busy or slow machine changes no moment: they are seconds of a process's own CPU.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from segquant import keep, measure
from segquant.layers import parallel
from segquant.observers import observe
from segquant_bench.pipelines import main as commands
from segquant_bench.pipelines.sampling import generate
from segquant_bench.pipelines.stages import run as stages

HEAVY = (
    "segquant_bench.pipelines.loading.assemble", "segquant_bench.pipelines.stages.benchmark",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3", "torchmetrics.functional.image",
    "torch.export", "torch._dynamo",
)  # fmt: skip
"""What runs import late, and processes share here: else most of them are killed while they import."""


class Work:
    """What a process begins, as lines of a file that a kill leaves."""

    def __init__(self, path: Path) -> None:
        self.path, self.stage = path, ""

    def begins(self, *what: object) -> None:
        with self.path.open("a") as file:
            file.write(" ".join([self.stage, *map(str, what)]) + "\n")

    def watch(self) -> None:
        """Note what is begun in this process from now on."""
        run_stage, sampling, solve = stages.run_stage, generate.finite_output, parallel.QuantLinear.from_float

        def in_stage(name: str, cache: Path, depends: Mapping[str, Any], *args: Any) -> Any:
            outside, self.stage = self.stage, f"{name}-{stages.stage_key(name, depends)}"
            try:
                return run_stage(name, cache, depends, *args)
            finally:
                self.stage = outside

        @contextmanager
        def batch(denoiser: Any, steps: int, prompts: Any, *args: Any) -> Iterator[None]:
            self.begins("batch", *prompts)
            with sampling(denoiser, steps, prompts, *args):
                yield

        def layer(*args: Any, **kwargs: Any) -> Any:
            self.begins("layer", kwargs["name"])
            return solve(*args, **kwargs)

        stages.run_stage, generate.finite_output = in_stage, batch
        parallel.QuantLinear = SimpleNamespace(from_float=layer)  # type: ignore[misc,assignment]
        observe.call, measure.call = (self._noted(kind, call) for kind, call in self._calls())
        keep.SHARE = 1.0  # a snapshot behind every batch: what it may take is tested elsewhere

    def _calls(self) -> list[tuple[str, Any]]:
        return [("observe", observe.call), ("error", measure.call)]

    def _noted(self, kind: str, call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def noted(model: Any, inputs: Mapping[str, Any]) -> Any:
            if not any(
                isinstance(part, parallel.QuantLayer) for part in model.modules()
            ):  # of two models, the float one
                tensors = [value for value in inputs.values() if isinstance(value, torch.Tensor)]
                self.begins(kind, hashlib.sha256(b"".join(each.numpy().tobytes() for each in tensors)).hexdigest())
            return call(model, inputs)

        return noted


def forked(folder: Path, arguments: list[str], seconds: float = 0.0) -> int:
    """A process that runs the command, with the folder's cache and output; killed at so many `seconds` of its CPU."""
    child = os.fork()
    if child:
        return child
    # nobody catches SIGPROF, so that the kernel ends the process as by SIGKILL
    signal.setitimer(signal.ITIMER_PROF, seconds)
    log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 70
    try:
        Work(folder / "work").watch()
        sys.argv = ["segquant", *arguments, f"cache={folder / 'cache'}", f"hydra.sweep.dir={folder / 'sweep'}"]
        commands.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        os._exit(code)


def whole(folder: Path, arguments: list[str]) -> float:
    """One run that nobody kills; its seconds of CPU."""
    _, status, used = os.wait4(forked(folder, arguments), 0)
    assert status == 0, (folder / "log").read_text()
    return used.ru_utime + used.ru_stime


def killed_until_done(folder: Path, arguments: list[str], draw: random.Random, longest: float, most: int) -> list[int]:
    """Runs that are killed, and the last one, which is not; how much work each killed one began."""
    begun = [0]
    while len(begun) <= most:
        _, status = os.waitpid(forked(folder, arguments, draw.uniform(0.01, longest)), 0)
        if not os.WIFSIGNALED(status):
            assert status == 0, (folder / "log").read_text()
            break
        assert os.WTERMSIG(status) == signal.SIGPROF, (folder / "log").read_text()
        begun.append(len((folder / "work").read_text().splitlines()) if (folder / "work").exists() else 0)
    else:
        whole(folder, arguments)
    return [after - before for before, after in zip(begun, begun[1:], strict=False)]


def main() -> None:
    root, kills, seed, arguments = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    draw, found = random.Random(seed), list[list[int]]()
    for name in HEAVY:
        importlib.import_module(name)
    (root / "whole").mkdir(parents=True)
    longest = whole(root / "whole", arguments)
    while sum(map(len, found)) < kills:
        folder = root / str(len(found))
        folder.mkdir()
        found.append(killed_until_done(folder, arguments, draw, longest, kills - sum(map(len, found))))
    (root / "kills.json").write_text(json.dumps(found))
    at_work = sum(lines > 0 for each in found for lines in each)
    print(f"{kills} kills of {len(found)} sweeps of {longest:.1f} s of CPU; {at_work} of them had begun work")


if __name__ == "__main__":
    main()
