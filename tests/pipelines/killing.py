"""Runs `segquant` in forked processes, kills them at random moments, and notes which work was begun.

    python -m tests.pipelines.killing FOLDER KILLS SEED [KEY=VALUE …]

Every sweep is begun again after each kill until it ends, in a folder of its own (FOLDER/0, FOLDER/1 …), until there
were so many kills. FOLDER/N/work has a line for every layer and batch that was begun.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
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
from segquant_bench.pipelines.loading import assemble  # noqa: F401 - imported once, and not in every process
from segquant_bench.pipelines.sampling import generate
from segquant_bench.pipelines.stages import run as stages


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


def forked(folder: Path, arguments: list[str]) -> int:
    """A process that runs the command, with the folder's cache and output."""
    child = os.fork()
    if child:
        return child
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
    """One run that nobody kills; its seconds."""
    began = time.monotonic()
    _, status = os.waitpid(forked(folder, arguments), 0)
    assert status == 0, (folder / "log").read_text()
    return time.monotonic() - began


def killed_until_done(folder: Path, arguments: list[str], draw: random.Random, longest: float, most: int) -> int:
    """Runs that are killed, and the last one, which is not; how many were killed."""
    for kills in range(most):
        child = forked(folder, arguments)
        time.sleep(draw.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert status == 0, (folder / "log").read_text()
            return kills
    whole(folder, arguments)
    return most


def main() -> None:
    root, kills, seed, arguments = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    draw, found = random.Random(seed), list[int]()
    (root / "whole").mkdir(parents=True)
    longest = whole(root / "whole", arguments)
    while sum(found) < kills:
        folder = root / str(len(found))
        folder.mkdir()
        found.append(killed_until_done(folder, arguments, draw, longest, kills - sum(found)))
    (root / "kills.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
