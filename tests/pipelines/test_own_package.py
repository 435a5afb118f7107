"""A package of the user's own, outside of the repository: swept against rtn, and an edit recomputes what it must."""

from __future__ import annotations

import csv
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segquant import registry
from segquant_bench.eval import METRICS
from segquant_bench.pipelines.config.quantizer import build_method
from segquant_bench.pipelines.config.run_hash import config_hash
from segquant_bench.pipelines.config.schema import RunConfig, validate
from segquant_bench.pipelines.data.datasets import load_dataset
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.stages.benchmark import open_run
from tests.pipelines.conftest import Command, Tiny

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "examples" / "own_package"
STAGES = ("reference", "calibrate", "graph", "quantize", "generate", "evaluate", "colours")
REQUANTIZED = {"quantize", "generate", "evaluate", "colours"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with the package in it, which is not installed."""
    return Path(shutil.copytree(PACKAGE, tmp_path / "work"))


def _sweep(folder: Path, tiny: Tiny, *arguments: str) -> Path:
    """`segquant -m` in a process of its own, in that folder, which Python's path lacks as for a console script."""
    run = [f"model.path={tiny.model}", "cache=cache", "hydra.sweep.dir=sweep"]
    command = [sys.executable, "-P", "-m", "segquant_bench.pipelines.main", "-m", *arguments, *run]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder / "sweep"


def _results(sweep: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in sorted(sweep.glob("*/results.json"))]
    return {each["quantizer"]: each for each in found}


def test_everything_of_one_s_own_swept_against_rtn(folder: Path, tiny: Tiny) -> None:
    sweep = _sweep(folder, tiny, "--config-dir=their_pkg/conf", "experiment=theirs")
    results = _results(sweep)
    assert results.keys() == {"rtn", "theirs"}
    theirs, rtn = results["theirs"], results["rtn"]
    for index, (name, each) in enumerate(results.items()):
        assert (each["model"], each["dataset"], each["precision"]) == ("theirs", "theirs", "w4g32")
        assert {metric["name"] for metric in each["metrics"]} == {"psnr", "ssim", "brightness"}
        assert each["prompts"] == [f"a red round {shape}" for shape in ("circle", "square", "ring", "cross")]
        assert each["own_code"]["stages.colours._target_"]["path"] == "their_pkg.stage.COLOURS"
        colours = json.loads(
            (sweep / f"{index}_{name}_w4g32" / each["stages"]["colours"]["path"] / "colours.json").read_text()
        )
        assert np.shape(colours) == (4, 3) and np.ptp(colours) > 0
        told = [
            json.loads(line) for line in (sweep / f"{index}_{name}_w4g32" / "history.jsonl").read_text().splitlines()
        ]
        assert told[0]["id"] == each["config_hash"] and told[-1]["state"] == "finished"
        assert {"colours", "quantize"} <= {line.get("stage") for line in told}
        assert each["backend"] == "halved" and each["backend_layers"] == {"halved": len(each["layer_errors"])}
    assert theirs["layer_errors"] != rtn["layer_errors"] and theirs["config_hash"] != rtn["config_hash"]
    assert theirs["own_code"]["quantizer._target_"]["path"] == "their_pkg.methods.theirs"
    assert "quantizer._target_" not in rtn["own_code"]
    steps = json.loads(
        (folder / "sweep" / "1_theirs_w4g32" / theirs["stages"]["calibrate"]["path"] / "steps.json").read_text()
    )
    assert steps["timesteps"] == "their_pkg.timesteps.late"
    assert steps["inclusion_probabilities"] == pytest.approx([1 / 14, 4 / 14, 9 / 14, 1], abs=1e-6)  # of 1, 4, 9, 16
    with (sweep / "table.csv").open() as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["rtn", "theirs"]
    with (sweep / "comparisons.csv").open() as file:
        pairs = {(row["a"], row["b"]) for row in csv.DictReader(file)}
    assert ("theirs", "rtn") in pairs
    assert "| w4g32 | theirs |" in (sweep / "table.md").read_text()
    page = (sweep / "report.html").read_text()
    assert "theirs" in page and "brightness" in page and "of 255" in page


@pytest.fixture
def package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package, importable in this process under a name of its own."""
    name = f"lab_{os.getpid()}_{folder.parent.name}".replace("-", "_")
    (folder / "their_pkg").rename(folder / name)
    for path in (folder / name).rglob("*"):
        if path.suffix in (".py", ".yaml"):
            path.write_text(path.read_text().replace("their_pkg", name).replace('"root"', f'"root_{name}"')
                            .replace('"toward_zero"', f'"zero_{name}"').replace('"brightness"', f'"bright_{name}"')
                            .replace('"halved"', f'"halved_{name}"').replace("w4g", f"w4_{name}_"))  # fmt: skip
            path.rename(path.with_name(path.name.replace("w4g", f"w4_{name}_")))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    tables = [*map(registry.table, registry.SLOTS), METRICS]
    before = [dict(table) for table in tables]
    yield folder / name
    for table, known in zip(tables, before, strict=True):
        table.clear()
        table.update(known)
    for module in [each for each in sys.modules if each.partition(".")[0] == name]:
        del sys.modules[module]


@pytest.mark.filterwarnings("ignore:provider=hydra.searchpath")  # Hydra misses an __init__.py beside the yamls
def test_a_config_directory_in_the_package(package: Path, command: Command, tiny: Tiny, tmp_path: Path) -> None:
    package.rename(tmp_path / package.name)  # into the folder that the command works in
    importlib.invalidate_caches()
    data = ["dataset=tiny", f"dataset.archive={tiny.archive}", "metric.metrics=[psnr]", "report=false"]
    conf, model = f"hydra.searchpath=[pkg://{package.name}.conf]", ["model=theirs", f"model.path={tiny.model}"]
    precision = f"w4_{package.name}_16"
    method = ["calibration=late", "quantizer=theirs", f"precision={precision}", "quantizer.share=0.5"]
    outcome = command("-m", conf, *model, *data, *method, "logger=none", "cache=cache")
    assert outcome.code == 0, outcome.err
    (result,) = _results(outcome.folder).values()
    assert (result["quantizer"], result["precision"], result["backend"]) == ("theirs", precision, "reference")
    assert result["config"]["quantizer"]["share"] == 0.5


def _compose(package: Path, tiny: Tiny, *overrides: str) -> RunConfig:
    from hydra import compose, initialize_config_dir

    from segquant_bench.pipelines.config.resolvers import register
    from segquant_bench.pipelines.main import CONF

    register()
    search = f"hydra.searchpath=[file://{package}/conf]"
    run = [search, "experiment=theirs", f"model.path={tiny.model}", "quantizer=theirs", "logger=none"]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return validate(compose("config", overrides=[*run, *overrides]))


def _keys(package: Path, tiny: Tiny, *overrides: str) -> dict[str, str]:
    run = open_run(_compose(package, tiny, *overrides))
    return {name: run.key(name) for name in STAGES}


def _edited(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        (
            "calibrator.py",
            "self.share * scale",
            "self.share * scale / 2",
            REQUANTIZED,
        ),
        ("optimizer.py", "clamp_min(1e-3)", "clamp_min(1e-4)", REQUANTIZED),
        (
            "methods.py",
            "optimizer=",
            "bias_correction=True, optimizer=",
            REQUANTIZED,
        ),
        ("metrics.py", ".mean()", ".max()", {"evaluate"}),
        ("backend.py", ".bfloat16()", ".half()", {"generate", "evaluate", "colours"}),
        ("stage.py", "dtype=float", "dtype=int", {"colours"}),
        ("pipeline.py", "beautiful", "ugly", set(STAGES)),
        ("precisions.py", "int8", "int4", set()),
        ("calibrator.py", "Moves weights", "Pushes weights", set()),
    ],
)
def test_an_edit_recomputes_what_it_must(
    package: Path, tiny: Tiny, file: str, old: str, new: str, changed: set[str]
) -> None:
    before = _keys(package, tiny)
    _edited(package / file, old, new)
    after = _keys(package, tiny)
    assert {name for name in STAGES if before[name] != after[name]} == changed


def test_steps_and_prompts_count_by_what_they_are(package: Path, tiny: Tiny) -> None:
    before = _keys(package, tiny)
    assert _keys(package, tiny, "calibration.timesteps.power=2.0") == before
    later = _keys(package, tiny, "calibration.timesteps.power=3")
    assert {name for name in STAGES if before[name] != later[name]} == set(STAGES) - {"reference"}
    assert _keys(package, tiny, "dataset.arguments.kind=flat")["reference"] != before["reference"]


def test_what_the_configuration_hash_knows(package: Path, tiny: Tiny) -> None:
    def hashed(*overrides: str) -> str:
        return config_hash(_compose(package, tiny, *overrides), "model", {})

    before = hashed()
    assert before != hashed("backend=reference") and before != hashed("quantizer.share=0.5")
    _edited(package / "calibrator.py", "self.share * scale", "self.share * scale / 2")
    assert hashed() != before
    assert hashed("quantizer=none") == hashed("quantizer=none", "backend=reference")


def test_precisions_by_fields_and_by_function(package: Path, tiny: Tiny) -> None:
    from segquant import PRECISIONS, QuantScheme, QuantSpec

    inputs = QuantSpec("int8", "token", dynamic=True)
    for size in (32, 16):
        name = f"w4_{package.name}_{size}"
        method = build_method(_compose(package, tiny, f"precision={name}"))
        assert PRECISIONS[name] == QuantScheme(QuantSpec("int4", "group", size), inputs)
        assert method.scheme == PRECISIONS[name]
    with pytest.raises(PipelineError, match="there is a precision .* already.*set precision.name"):
        build_method(_compose(package, tiny, "precision.weight.group_size=8"))
    other = _compose(package, tiny, "precision.weight.group_size=8", f"precision.name=other_{package.name}")
    assert build_method(other).scheme.weight == QuantSpec("int4", "group", 8)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+quantizer.shaer=1"], "takes no 'shaer'.*'share'"),
        (["quantizer.share=lots"], r"fails \(QuantizationError: .*share is 'lots'; give a number"),
        (["calibration.timesteps.power=lots"], r"fails \(.*in line \d+ of"),
        (["+quantizer.dualscail=true"], "takes no 'dualscail'.*'dualscale'"),
        (["quantizer.precision=w9"], r"fails \(ValueError: unknown precision 'w9'.*in line \d+ of methods.py"),
        (["quantizer._target_=LAB.methods.Unpack"], "takes no|cannot be called|fails"),
        (["quantizer._target_=LAB.method.theirs"], "has no 'method'; did you mean 'methods'"),
        (["quantizer._target_=LAB.precisions.int4_in_groups"], "takes no .*; known are size"),
        (["quantizer._target_=LAB.methods.theirs", "+quantizer.name=none"], "called none in tables"),
        (["+quantizer.name=a/b"], "cannot name a folder"),
        (["precision.weight.dtipe=int4"], "dtipe"),
        (["+precision._target_=LAB.data.prompts"], "both _target_ and weight"),
        (["precision=w4_LAB_16", "precision._target_=LAB.data.prompts"], "takes no 'size'"),
        (["backend=halv"], "unknown backend 'halv'"),
        (["backend=LAB.calibrator.TowardZero"], "is no backend"),
        (["backend={name: reference, fallbak: x}"], "no key 'backend.fallbak'.*'fallback'"),
        (["~calibration.timesteps._target_"], "has no _target_"),
        (["metric.metrics=[LAB.metrics.BRIGHT]"], "has no 'BRIGHT'; did you mean 'BRIGHTNESS'"),
        (["metric.metrics=[LAB.data.prompts]"], "is a function"),
        (["+dataset.arguments.knid=x"], "takes no 'knid'.*'kind'"),
        (["dataset.table=x.csv"], "does not read dataset.table"),
        (["calibration.timesteps.power=inf"], "is no finite number"),
        (["stages.colours._target_=LAB.stage.COLOUR"], "has no 'COLOUR'; did you mean 'COLOURS'"),
        (["stages.colours._target_=LAB.data.prompts"], "is a function; name a value of"),
        (["stages.colours._target_=3"], "is no dotted path"),
        (["+stages.shades._target_=LAB.stage.COLOURS"], "is a stage called 'colours'; write stages.colours"),
        (["~stages.colours", "+stages.colous.x=1"], "stages.colous is no stage"),
    ],
)
def test_refusals(package: Path, tiny: Tiny, overrides: list[str], words: str) -> None:
    own = [override.replace("LAB", package.name) for override in overrides]
    with pytest.raises(Exception, match=words) as caught:
        run = open_run(_compose(package, tiny, *own))
        _ = run.method
        run.key("evaluate")
    assert type(caught.value) is PipelineError or "dtipe" in words or "name=a" in str(own)


def test_entries_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segquant_bench.pipelines.data.own import read_own

    text = {
        "prompt": "[('', None, None)]", "split": "[('a', None, 'test')]", "row": "['a']", "key": "[{'prmpt': 'a'}]",
        "mixed": "[('a', None, None), ('b', None, 'evaluation')]", "text": "'abc'", "nothing": "[]",
        "picture": "[('a', 3, None)]", "calibration": "[('a', None, 'calibration')]",
    }  # fmt: skip
    functions = "\n".join(f"def {name}():\n    return {value}" for name, value in text.items())
    (tmp_path / "odd_entries.py").write_text(functions)
    monkeypatch.syspath_prepend(tmp_path)
    for name, words in {
        "prompt": "entry 0 .*as its prompt", "split": "the split 'test'", "row": "entry 0 .* is 'a'",
        "key": "a key 'prmpt'", "mixed": "entry 0 .* has no split", "text": "returned a str", "nothing": "no entries",
        "picture": "a int as its picture", "calibration": "is for evaluation",
    }.items():  # fmt: skip
        with pytest.raises(PipelineError, match=words):
            read_own(f"odd_entries.{name}", {})


def test_evaluation_and_calibration_never_overlap(package: Path, tiny: Tiny) -> None:
    (package / "both.py").write_text("def both():\n    return [('a', None, 'evaluation'), ('a', None, 'calibration')]")
    (package / "free.py").write_text("def free():\n    return [{'prompt': f'p {n % 9}'} for n in range(12)]")
    run = _compose(package, tiny, f"dataset._target_={package.name}.both.both", "~dataset.arguments.kind")
    with pytest.raises(PipelineError, match="both for calibration and for evaluation"):
        load_dataset(run.dataset, run.calibration)
    own = [f"dataset._target_={package.name}.free.free", "~dataset.arguments.kind", "dataset.size=2"]
    run = _compose(package, tiny, *own, "calibration.prompts=2", "calibration.held_out=1")
    found = load_dataset(run.dataset, run.calibration)
    assert len(found.evaluation) == 2 and not {*found.evaluation} & {*found.calibration, *found.held_out}


def test_a_plan_of_one_s_own_method_at_one_s_own_precision(
    package: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from segquant_bench.pipelines.plan.cli import main

    name = f"w4_{package.name}_32"
    own = ["--config-dir", f"{package.name}/conf", "model=theirs", "quantizer=theirs"]
    arguments = [*own, f"precision={name}", f"model.path={tiny.model}", "--json"]
    monkeypatch.setattr(sys, "argv", ["segquant-plan", *arguments])
    main()
    plan = json.loads(capsys.readouterr().out)
    (component,) = plan["components"]
    assert plan["quantizer"] == "theirs" and [each["precision"] for each in component["estimates"]] == [name]
    monkeypatch.setattr(sys, "argv", ["segquant-plan", "--config-dir", "nowhere", "model=flux1_dev"])
    with pytest.raises(SystemExit):
        main()
    assert "there is no directory" in capsys.readouterr().err


def test_search_paths_that_are_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segquant_bench.pipelines.config.searchpath import check_search_path

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert check_search_path(["a=1", "hydra.searchpath=[pkg://their_pkg.conf]"]) == [folder / "their_pkg" / "conf"]
    for place, words in {"pkg://their_pkg.cnf": "no package", "pkg://no_lab.conf": "no package",
                         "file:///nowhere": "no directory /nowhere"}.items():  # fmt: skip
        with pytest.raises(PipelineError, match=words):
            check_search_path([f"hydra.searchpath=[{place}]"])


TOOL = """
from segquant import PRECISIONS
from segquant_bench.pipelines.peers import Peer

def apply(model, names, forward):
    pass

def tool(precision):
    return Peer("tool", "not_installed", precision, PRECISIONS[precision], apply)
"""


def test_another_tool_of_one_s_own(package: Path, tiny: Tiny) -> None:
    from segquant_bench.pipelines.peers import Peer

    (package / "tool.py").write_text(TOOL)
    (package / "conf" / "quantizer" / "tool.yaml").write_text(
        f"_target_: {package.name}.tool.tool\nprecision: ${{precision.name}}\n"
    )
    own = ["quantizer=tool", "precision=w8a8", "backend=reference"]
    peer = build_method(_compose(package, tiny, *own))
    assert isinstance(peer, Peer) and peer.to_dict()["version"] is None
    for override, words in {"quantize=[denoiser,text_encoder]": "quantizes the denoiser alone",
                            "model.offload=blocks": "needs the whole denoiser in memory",
                            "backend=halved": "runs its own layers"}.items():  # fmt: skip
        with pytest.raises(PipelineError, match=words):
            build_method(_compose(package, tiny, *own, override))
    before = _keys(package, tiny, *own)
    _edited(package / "tool.py", "pass", "raise SystemExit")
    assert {name for name in STAGES if before[name] != _keys(package, tiny, *own)[name]} == REQUANTIZED
