"""The table with the user's own stages: each behind its needs, and one sentence for one that cannot be used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.stages.benchmark import STAGES, open_run
from segquant_bench.pipelines.stages.own import with_own_stages
from segquant_bench.pipelines.stages.run import Stage

HEAD = """from segquant_bench.pipelines.stages.run import Stage
import functools

def fails(run, folder):
    return 1 / 0

def work(run, folder):
    (folder / "done").touch()

"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Any]]]:
    """Writes a module of stages and returns the settings that name them."""
    name = f"own_stages_{abs(hash(tmp_path))}"
    monkeypatch.syspath_prepend(tmp_path)

    def write(**stages: str) -> dict[str, Any]:
        body = "\n".join(f"{key} = Stage({key!r}, {value})" for key, value in stages.items())
        (tmp_path / f"{name}.py").write_text(HEAD + body)
        return {key: {"_target_": f"{name}.{key}"} for key in stages}

    yield write
    sys.modules.pop(name, None)


def _names(stages: dict[str, Any]) -> list[str]:
    return [stage.name for stage in with_own_stages(STAGES, stages)]


def test_own_ones_come_behind_what_they_need(module: Callable[..., dict[str, Any]]) -> None:
    ours = [stage.name for stage in STAGES]
    assert _names({}) == ours
    assert _names({"reference": {"setting": 1}}) == ours, "settings alone name no code"
    stages = module(last="work, needs=('middle', 'generate')", middle="work, needs=('first',)", first="work")
    assert _names(stages) == [*ours, "first", "middle", "last"]


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ({"generate": "work"}, "the benchmark has a stage generate; rename yours"),
        ({"mine": "work, needs=('generat',)"}, "needs 'generat', which is no stage; did you mean 'generate'"),
        ({"a": "work, needs=('b',)", "b": "work, needs=('a',)"}, r"need each other.*(a → b → a|b → a → b)"),
        ({"a": "work, needs=('a',)"}, "need each other.*a → a"),
        ({"mine": "functools.partial(work)"}, "its compute is a partial; give a function"),
    ],
)
def test_one_that_cannot_be_used(module: Callable[..., dict[str, Any]], stages: dict[str, str], words: str) -> None:
    with pytest.raises(PipelineError, match=words):
        with_own_stages(STAGES, module(**stages))


def test_what_it_raises_is_one_sentence(module: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (stage,) = with_own_stages((), module(mine="fails"))
    run: Any = SimpleNamespace()
    with pytest.raises(PipelineError, match=r"mine fails \(ZeroDivisionError: division by zero, in line 5 of own_"):
        stage.compute(run, tmp_path)


def test_its_module_s_code_is_in_its_key(module: Callable[..., dict[str, Any]]) -> None:
    run: Any = SimpleNamespace()

    def found(body: str) -> Any:
        settings = module(mine="work", **{body: "work"})
        (stage, _) = with_own_stages((), {"mine": settings["mine"], body: settings[body]})
        sys.modules.pop(settings["mine"]["_target_"].partition(".")[0])
        return stage.depends(run)["own_code"]

    assert found("one") == found("one") != found("two")


def test_a_stage_s_own_settings_stay(module: Callable[..., dict[str, Any]]) -> None:
    (stage,) = with_own_stages((), module(mine="work, asked=False, code=('pipelines.data',)"))
    assert isinstance(stage, Stage) and not stage.asked and stage.code == ("pipelines.data",)
    assert stage.compute.__name__ == "work"


def test_the_code_of_compute_counts_wherever_it_is(
    module: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = f"other_work_{tmp_path.name.replace('-', '_')}"
    (tmp_path / "beside").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "beside")
    file = tmp_path / "beside" / f"{other}.py"
    file.write_text("def far(run, folder):\n    return 1\n")
    settings = module(mine=f"__import__('{other}').far")
    (stage,) = with_own_stages((), settings)
    run: Any = SimpleNamespace()
    before = stage.depends(run)["own_code"]
    file.write_text("def far(run, folder):\n    return 2222\n")
    assert stage.depends(run)["own_code"] != before
    sys.modules.pop(other)


@pytest.mark.parametrize("value", [7, None, [1], {"a": 1}])
def test_a_stage_without_settings_takes_none(value: object) -> None:
    config: Any = SimpleNamespace(stages={"evaluate": value})
    with pytest.raises(PipelineError, match="stages.evaluate takes no settings; leave it out"):
        open_run(config)
    assert open_run(cast(Any, SimpleNamespace(stages={"speed": {"repeats": 3}}))).table == STAGES
