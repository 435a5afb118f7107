"""A wheel in an environment of its own: what is in it, and that its commands run in any directory."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from segquant.kernels.cpu import build
from segquant.kernels.cpu.operators import why_not_exact
from tests.tiny import tiny_dataset, tiny_sd3_pipeline

REPOSITORY = Path(__file__).parents[2]
SOURCES = ("segquant", "segquant_bench", "pipelines", "eval", "conf")
MEGABYTE = 2**20
STAGES = r"\w+: (computing|\d+\.\d s, peak memory \d+ MB)"
OURS = re.compile(
    rf"\[\d\d:\d\d:\d\d\] ({STAGES}|loading |metric |results: |quantized model, |run=auto|CPU kernels: "
    r"|the cache has no stage like )"
)
# Of the benchmark's packages those that segquant is most likely to lean on by mistake.
FOREIGN = ("diffusers", "transformers", "accelerate", "hydra", "omegaconf", "torchvision", "tqdm", "scipy", "PIL")


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel in it, and an empty directory to work in."""

    environment: Path
    directory: Path

    def run(self, *command: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """A command of the environment, without anything that this process has in its own."""
        program = str(self.environment / "bin" / command[0])
        home = self.directory.parent / "home"
        variables = {"HOME": str(home), "PATH": os.defpath, "OMP_NUM_THREADS": "1", **extra}
        return subprocess.run(
            [program, *command[1:]], cwd=self.directory, env=variables, capture_output=True, text=True
        )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, with a file in it as large and as named as shipped weights."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        shutil.copytree(REPOSITORY / name, copy / name, symlinks=True, ignore=_not_sources)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    for file in ("emoji_sd3/transformer/weights.safetensors", "emoji_sd3/model_index.json", "emoji.zip"):
        weights = copy / "pipelines" / "zoo" / file
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_bytes(os.urandom(4 * MEGABYTE))
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(copy))
    (built,) = out.glob("segquant-*.whl")
    return built


def _not_sources(folder: str, names: list[str]) -> list[str]:
    """What copytree leaves out: compiled files, and the shipped files, which take seconds to copy."""
    return [name for name in names if name == "__pycache__" or (Path(folder).name == "zoo" and "emoji" in name)]


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check", *arguments]
    done = subprocess.run([*command, "--no-index"], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _environment(wheel: Path, folder: Path, others: Sequence[str]) -> Installed:
    """The wheel in a fresh environment that sees the folders `others` for packages, after its own."""
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    python = folder / "venv" / "bin" / "python"
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    _pip("--python", str(python), "install", "--no-deps", str(wheel))
    (site / "others.pth").write_text("\n".join(others))  # plain lines: .pth files in those folders are not read
    (folder / "work").mkdir()
    return Installed(folder / "venv", folder / "work")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """With this environment's packages, but not its segquant."""
    others = [path for path in sys.path if path.endswith("site-packages")]
    return _environment(wheel, tmp_path_factory.mktemp("installed"), others)


def test_what_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    assert wheel.stat().st_size < 3 * MEGABYTE
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"segquant", "segquant_bench"}
    assert not [name for name in names if name.endswith((".safetensors", ".zip", ".png")) or "/zoo/" in name]
    for folder, pattern in (("conf", "*.yaml"), ("pipelines/architectures", "*.json"), ("eval", "*.py")):
        here = {f"segquant_bench/{file.relative_to(REPOSITORY)}" for file in (REPOSITORY / folder).rglob(pattern)}
        assert here and here <= set(names)
    assert {"segquant/py.typed", "segquant_bench/py.typed"} <= set(names)


def test_it_is_the_wheel_that_runs(installed: Installed) -> None:
    code = "import segquant, segquant_bench; print(segquant.__file__, segquant_bench.__file__, segquant.__version__)"
    done = installed.run("python", "-c", code)
    library, benchmark, version = done.stdout.split()
    assert Path(library).is_relative_to(installed.environment) and Path(benchmark).is_relative_to(installed.environment)
    code = "import importlib.metadata as m; print(m.version('segquant'))"
    assert installed.run("python", "-c", code).stdout.strip() == version
    assert installed.run("segquant", "--version").stdout == f"segquant {version}\n"


def test_the_library_needs_none_of_the_benchmarks_packages(installed: Installed) -> None:
    code = f"""
import importlib, pkgutil, sys
before = [name for name in {FOREIGN!r} if importlib.util.find_spec(name) is None]
import torch
for name in {FOREIGN!r}:
    sys.modules.setdefault(name, None)  # importing it is an error now
import segquant
for module in pkgutil.walk_packages(segquant.__path__, "segquant."):
    if not module.name.startswith("segquant.deploy.diffusers"):  # a plug-in of diffusers
        importlib.import_module(module.name)
try:
    import segquant.deploy.diffusers
except ImportError as error:
    assert "run pip install" in str(error), error
else:
    raise AssertionError("the plug-in was imported without diffusers")
print(before)
"""
    done = installed.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", "a package of FOREIGN is not installed, the test would prove nothing"


def test_the_default_run_says_where_its_model_is(installed: Installed) -> None:
    done = installed.run("segquant")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(r"model\.path \(emoji_sd3\).*set SEGQUANT_ZOO=CLONE/pipelines/zoo", done.stderr.splitlines()[-1])


def test_help(installed: Installed) -> None:
    done = installed.run("segquant", "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert "*segquant_g" in done.stdout and "experiment=" in done.stdout


def test_plan(installed: Installed) -> None:
    done = installed.run("segquant-plan", "model=dit_xl_2")  # the smallest graph of those that are shipped
    assert done.returncode == 0 and done.stderr == ""
    assert "57 of 255 layers" in done.stdout


@pytest.mark.slow
def test_the_plan_of_a_shipped_pipeline(installed: Installed) -> None:
    done = installed.run("segquant-plan", "model=emoji_sd3")
    assert done.returncode == 1 and "set SEGQUANT_ZOO=CLONE/pipelines/zoo" in done.stderr
    done = installed.run("segquant-plan", "model=emoji_sd3", SEGQUANT_ZOO=str(REPOSITORY / "pipelines" / "zoo"))
    assert done.returncode == 0 and "SegLinear" in done.stdout, done.stderr


def _kernels() -> dict[str, str]:
    """The kernels that this process has compiled are those of the wheel's sources too: half a minute less."""
    return {"SEGQUANT_CACHE": str(build.cache()), "CXX": shutil.which(os.environ.get("CXX", "c++")) or ""}


def test_a_run_and_its_report(installed: Installed, tmp_path: Path) -> None:
    model, shapes = tiny_sd3_pipeline(tmp_path / "model"), tiny_dataset(tmp_path / "shapes.zip")
    done = installed.run(
        "segquant", "model=tiny_random", f"model.path={model}", "dataset=tiny", f"dataset.archive={shapes}",
        "quantizer=rtn", "calibration.prompts=4", "calibration.held_out=2", "calibration.steps_per_prompt=2",
        "metric.metrics=[psnr,ssim]", "metric.bootstrap=20", "logger=none", "hydra.run.dir=run", **_kernels(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "without a GPU and a network there is nothing to warn of"
    foreign = [line for line in done.stdout.splitlines() if not OURS.match(line)]
    assert foreign == []
    results = json.loads((installed.directory / "run" / "results.json").read_text())
    assert {"psnr", "ssim"} <= {metric["name"] for metric in results["metrics"]}
    assert results["run"]["engine"] == ("cpu" if why_not_exact() is None else "reference"), results["run"]["reason"]
    report = installed.run("segquant-report", "run", "--output", "report")
    assert report.returncode == 0, report.stderr
    assert (installed.directory / "report" / "report.html").is_file()


def test_commands_of_the_library_alone(wheel: Path, tmp_path: Path) -> None:
    alone = _environment(wheel, tmp_path, [])
    for command in (
        ["segquant"],
        ["segquant", "--help"],
        ["segquant-plan", "model=flux1_dev"],
        ["segquant-report", "x"],
    ):
        done = alone.run(*command)
        assert done.returncode == 1 and done.stdout == ""
        (sentence,) = done.stderr.splitlines()
        assert sentence.startswith(f"{command[0]}: ") and "hydra-core" in sentence
        assert "pip install '.[bench]' in a clone of segquant" in sentence
