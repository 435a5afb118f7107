"""What the stages' keys hash: every code that a stage computes with, the latents' streams, and nothing idle."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.runtime import meaning
from segquant_bench.pipelines.runtime.paths import HOME
from segquant_bench.pipelines.stages.benchmark import STAGES, open_run
from segquant_bench.pipelines.stages.run import SHARED_CODE, Run, Stage
from segquant_bench.pipelines.stages.shared import inputs
from segquant_bench.pipelines.stages.shared.collecting import COLLECTING_CODE
from segquant_bench.pipelines.stages.shared.inputs import CONTROL_CODE, QUANTIZING_CODE
from tests.pipelines.conftest import Tiny, compose_config

ROOT = Path(__file__).resolve().parents[3]
BY_NAME = {stage.name: stage for stage in STAGES}

# Modules that no stage names, with the reason.
VALUES = (
    "pipelines.config",  # what it holds is in the keys as values
    "pipelines.data.datasets",  # prompts and pictures that it finds are in the keys
    "pipelines.data.files",
    "pipelines.data.layouts",
    "pipelines.data.own",
    "pipelines.runtime",  # how results are kept, not what they are
    "pipelines.sampling.share",  # which process makes a batch, not what is in it
    "pipelines.stages.shared.together",
    "pipelines.errors",
    "segquant.modules.bounded",  # refuses what is too large, and changes nothing
    "pipelines.stages.shared.own",  # hashes of the user's code, which are in the keys
    "pipelines.stages.shared.contents",  # hashes of files, which are in the keys
    "pipelines.stages.shared.judgement",  # which metrics are asked for
    "pipelines.stages.components.methods",  # which components, and their methods
    "segquant.arguments",  # the method that they make is in the keys
    "segquant.checks",  # what is refused, not what is computed
    "segquant.bounds",
    "pipelines.bounds",
    "segquant.errors",
    "segquant.files",
    "segquant.presets",  # the method that they make is in the keys
    "eval.errors",
    "eval.files",
    "eval.results",  # the form of metrics.json, not its numbers
    "eval.results_file",
    "eval.json_checks",
)
# Imports that count only for some runs, whose keys then hash that code (see `depends` of the stages).
SOMETIMES = {
    "pipelines.stages.shared.quantized": ("pipelines.peers",),
    "pipelines.stages.quantize": ("pipelines.peers", "pipelines.loading.blocks"),
    "pipelines.stages.shared.inputs": CONTROL_CODE,
    "pipelines.stages.run": ("pipelines.peers", "pipelines.loading"),  # stages that use the pipeline: see below
    "pipelines.loading.files": ("segquant.modules.memory",),  # whether there is room
    "segquant.keep": ("segquant.modules.memory",),  # likewise
    "pipelines.loading.components": ("segquant.modules",),
    "pipelines.sampling.timesteps": ("segquant",),  # timesteps=loss
    "pipelines.stages.shared.engine": ("segquant.deploy",),  # run=ort, run=openvino
    "pipelines.loading.blocks": ("segquant",),  # weights are elsewhere, their numbers are the same
}


def _file(module: str) -> Path | None:
    top, *rest = module.split(".")
    base = (ROOT / top).joinpath(*rest)
    if top not in ("segquant", "pipelines", "eval"):
        return None
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _named(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    for alias in node.names:
        inner = f"{node.module}.{alias.name}".removeprefix("segquant_bench.")
        yield inner if _file(inner) else str(node.module)


@cache
def _imports(module: str) -> frozenset[str]:
    """What a module of ours imports of ours, wherever the statement stands, but for type checkers."""
    tree = ast.parse(_file(module).read_text())
    idle = {id(each) for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for each in ast.walk(node)}  # fmt: skip
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in idle:
            found |= {name.removeprefix("segquant_bench.") for name in _named(node)}
    return frozenset(name for name in found if _file(name))


def _is_in(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def _code(stage: Stage) -> tuple[str, ...]:
    """The stage's code and that of all stages that it needs."""
    return (*stage.whole_code, *(name for need in stage.needs for name in _code(BY_NAME[need])))


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_key_hashes_all_code_that_the_stage_computes_with(stage: Stage) -> None:
    code, todo, seen = _code(stage), [stage.compute.__module__.removeprefix("segquant_bench.")], set()
    while todo:
        module = todo.pop()
        if module in seen or _is_in(module, VALUES):
            continue
        seen.add(module)
        assert _is_in(module, code), f"{stage.name} computes with {module}, which its code does not name"
        todo += [name for name in _imports(module) if not _is_in(name, SOMETIMES.get(module, ()))]
    assert len(seen) >= 3


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_that_uses_the_pipeline_names_what_loads_it(stage: Stage) -> None:
    source = _file(stage.compute.__module__.removeprefix("segquant_bench.")).read_text()
    if re.search(r"run\.(pipeline|denoiser)\b", source):
        assert "pipelines.loading" in _code(stage)


def test_code_that_counts_sometimes_is_itself_complete() -> None:
    for names in (QUANTIZING_CODE, COLLECTING_CODE):
        modules = [module for name in names for module, _ in meaning.source_files(name)]
        for module in modules:
            module = module.removesuffix(".__init__")
            for name in _imports(module):
                known = (*names, *SHARED_CODE, *VALUES, *SOMETIMES.get(module, ()))
                assert _is_in(name, known), f"{module} imports {name}, which is not named beside it"


def test_stages_stand_behind_those_that_they_need() -> None:
    names = [stage.name for stage in STAGES]
    assert len(set(names)) == len(names)
    for index, stage in enumerate(STAGES):
        assert set(stage.needs) <= set(names[:index])


ALL = [
    "quantizer=segquant_g", "quantizer.alpha=0.5", "quantize=[denoiser,text_encoder]", "correction=affine",
    "metric.metrics=[psnr,fid_gt]", "polarity=true", "speed=true",
]  # fmt: skip


@pytest.fixture
def config(tiny: Tiny, tmp_path: Path):
    return validate(compose_config([*tiny.overrides(tmp_path / "cache"), *ALL]))


def _keys(run: Run) -> dict[str, str]:
    return {stage.name: run.key(stage.name) for stage in run.table if run.has(stage.name)}


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the packages, from which the keys are made."""
    for name in ("segquant", "pipelines", "eval"):
        keep = shutil.ignore_patterns("zoo", "__pycache__", "*.json")
        shutil.copytree(HOME / name if name != "segquant" else ROOT / name, tmp_path / "home" / name, ignore=keep)
    monkeypatch.setattr(meaning, "_top_folder", lambda top: tmp_path / "home" / top)
    return tmp_path / "home"


def test_comments_docstrings_layout_and_idle_annotations_recompute_nothing(config, copied: Path) -> None:
    before = _keys(open_run(config))
    assert before.keys() == set(BY_NAME) - {"embeddings"}
    for path in copied.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and not node.args.args:
                node.returns = ast.Constant("anything")
        text = ast.unparse(tree)  # another layout, without any comment
        text = re.sub(r'^"""', '"""Said otherwise. ', text, count=1)
        path.write_text(f"# a comment\n{text}\n\n# another\n")
    (copied / "eval" / "report" / "style.css").write_text("body { color: red }")
    (copied / "eval" / "metrics" / "page.html").write_text("<p>")
    assert _keys(open_run(config)) == before


AFTER_QUANTIZE = {"quantize", "components", "correct", "generate", "evaluate", "speed"}
AFTER_GRAPH = {"graph", "polarity", "component_graphs"} | AFTER_QUANTIZE
AFTER_INPUTS = {"calibrate", "component_inputs"} | AFTER_GRAPH
EVERYTHING = AFTER_INPUTS | {"reference"}


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("segquant/graph/control_cuts.py", "< 1", "<= 1", AFTER_GRAPH),
        ("segquant/optimizers/balance.py", "return", "assert True; return", AFTER_QUANTIZE),
        ("segquant/measure.py", "** 0.5", "** 0.25", AFTER_QUANTIZE),
        ("pipelines/sampling/generate.py", "np.uint64(1)", "np.uint64(2)", EVERYTHING),
        ("pipelines/sampling/samples.py", "if total % batch", "if batch % total", AFTER_INPUTS),
        ("pipelines/loading/models.py", "local_files_only=True", "local_files_only=False", EVERYTHING),
        ("pipelines/correction/fit.py", "len(prompts)", "len(prompts) + 1",
         {"correct", "generate", "evaluate", "speed"}),
        ("pipelines/stages/components/text_inputs.py", "0, 1, self", "0, 2, self",
         {"component_inputs", "component_graphs", "components", "correct", "generate", "evaluate", "speed"}),
        ("pipelines/stages/reference.py", "stages.reference", "", set()),
        ("pipelines/data/pictures.py", "PNG", "PNM", {"real", "evaluate"}),
        ("eval/metrics/statistics.py", " - ", " + ", {"evaluate"}),
        ("eval/report/main_table/results_table.py", "return", "assert True; return", set()),
        ("eval/paper/layers.py", "return", "assert True; return", set()),
        ("eval/cli.py", "return", "assert True; return", set()),
        ("segquant/presets/rounded.py", "return", "assert True; return", set()),
        ("pipelines/data/layouts.py", "return", "assert True; return", set()),
    ],
)  # fmt: skip
def test_a_constant_or_an_operator_recomputes_what_it_changes(
    config, copied: Path, file: str, old: str, new: str, changed: set[str]
) -> None:
    before = _keys(open_run(config))
    text = (copied / file).read_text()
    assert old in text or not new
    (copied / file).write_text(text.replace(old, new) if new else text)
    after = _keys(open_run(config))
    assert {name for name in before if before[name] != after[name]} == changed


def test_another_stream_calibrates_again(tiny: Tiny, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = validate(compose_config(tiny.overrides(cache)))
    first = open_run(config).stage("calibrate")
    assert first.cached
    monkeypatch.setitem(inputs.STREAMS, "calibration", 7)
    second = open_run(config).stage("calibrate")
    assert not second.cached
    files = [stage.path / "calibration" / "inputs.safetensors" for stage in (first, second)]
    assert files[0].read_bytes() != files[1].read_bytes()
    held_out = [stage.path / "held_out" / "inputs.safetensors" for stage in (first, second)]
    assert held_out[0].read_bytes() == held_out[1].read_bytes()


def test_a_calibration_seed_leaves_reference_and_judged_latents(tiny: Tiny, cache: Path) -> None:
    """So that pictures of several calibrations compare; only what is calibrated, and what follows from it, is new."""
    found = []
    for seed in (0, 1):
        run = open_run(validate(compose_config([*tiny.overrides(cache), f"calibration.seed={seed}"])))
        found.append((_keys(run), run.dataset.evaluation, run.config.seed, run.dataset.calibration))
    (first, *judged, prompts), (second, *judged_again, others) = found
    assert judged == judged_again and prompts != others
    changed = {name for name in first if first[name] != second[name]}
    assert {"calibrate", "quantize", "generate", "evaluate"} <= changed and "reference" not in changed


def test_versions_of_the_judges_are_in_the_judgement(config, monkeypatch: pytest.MonkeyPatch) -> None:
    from segquant_bench.pipelines.stages import evaluate

    before = _keys(open_run(config))
    monkeypatch.setattr(evaluate, "versions_of", lambda names: dict.fromkeys(names, "0"))
    after = _keys(open_run(config))
    assert {name for name in before if before[name] != after[name]} == {"evaluate"}


def test_a_stage_that_reads_what_it_does_not_need_is_refused(config, cache: Path) -> None:
    def compute(run: Run, folder: Path) -> None:
        run.folder("reference")

    config.cache = str(cache)
    run = Run(config, (*STAGES, Stage("sharpness", compute, needs=("calibrate",))))
    with pytest.raises(RuntimeError, match="sharpness reads reference, which it does not need"):
        run.stage("sharpness")


def test_a_stage_of_ones_own_has_settings_and_is_computed_once(tiny: Tiny, cache: Path) -> None:
    def compute(run: Run, folder: Path) -> None:
        count = len(list((run.folder("reference") / "images").glob("*.png")))
        (folder / "count").write_text(str(count + run.config.stages["count"]["more"]))

    count = Stage(
        "count", compute, needs=("reference",), depends=lambda run: {"settings": run.config.stages["count"]},
        when=lambda config: "count" in config.stages,
    )  # fmt: skip
    found = []
    for more in (1, 1, 2):
        config = validate(compose_config([*tiny.overrides(cache), f"+stages.count.more={more}"]))
        run = Run(config, (*STAGES, count))
        found.append(run.stage("count"))
    assert [stage.cached for stage in found] == [False, True, False]
    assert [(stage.path / "count").read_text() for stage in found] == ["5", "5", "6"]
    assert not Run(validate(compose_config(tiny.overrides(cache))), (*STAGES, count)).has("count")
