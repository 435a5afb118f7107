"""Precisions by their fields: files that say what segquant says, names that follow the formats, refusals."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import segquant
from segquant.numerics.precisions import NAMED
from segquant_bench.eval.report.runs.known import PRECISIONS as ORDER
from segquant_bench.pipelines.config.formats import FormatConfig, PrecisionConfig
from segquant_bench.pipelines.config.precision import CUSTOM, scheme_from, shipped_precisions, with_name
from segquant_bench.pipelines.config.quantizer import build_method
from segquant_bench.pipelines.config.run_hash import config_hash
from segquant_bench.pipelines.config.schema import validate
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.main import user_message
from segquant_bench.pipelines.plan.config import compose_plan, methods_of
from segquant_bench.pipelines.runtime.paths import CONF
from tests.pipelines.conftest import Command, Tiny, compose_config

EARLIER = {
    "w8a8_tensor": "4a2a64e013d9", "w8a8": "654fd3b75bed", "w8a8_dynamic": "aabf0827fa27", "fp8": "0092dc36b69a",
    "w4a8_channel": "76623f433201", "w4a8": "6382ead55017", "w4a4": "7a9381a38fb5", "w4a16": "0b94132ff3cb",
}  # fmt: skip
"""Hashes that the eight had when their files were their names alone."""


def test_every_file_says_what_segquant_says() -> None:
    found = {}
    for name, fields in shipped_precisions().items():
        sides = {side: values and FormatConfig(**values) for side, values in fields.items()}
        found[name] = scheme_from(PrecisionConfig(name, **sides))
        text = (CONF / "precision" / f"{name}.yaml").read_text()
        assert text.startswith("# ") and f"name: ${{precision:{name}}}\n" in text
    assert found == NAMED and set(ORDER) == set(NAMED)


@pytest.mark.parametrize("name", EARLIER)
def test_the_first_eight_keep_names_and_hashes(name: str) -> None:
    run = validate(compose_config([f"precision={name}", "quantizer=rtn", "run=reference"]))
    assert (run.precision.name, run.name) == (name, f"rtn_{name}_reference")
    same = config_hash(run, "model", {"evaluation_hash": "x"}) == EARLIER[name]
    assert same == (name not in ("w4a8", "w4a4", "w4a16")), "whose scales were float32"
    assert build_method(run).scheme == segquant.PRECISIONS[name]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("precision=w8a8 precision.weight.bits=6", "w6channel_a8tensor"),
        ("precision=w4a8 precision.weight.group_size=64", "w4g64_a8token"),
        ("precision=w8a8 precision.weight.group_size=64", "w8g64_a8tensor"),
        ("precision=w4a8 precision.weight.group_size=null", "w4a8_channel"),
        ("precision.input=null", "w8tensor_a16"),
        ("precision=w4a16 precision.input.dtype=int8", "w4g64_a8token"),
        ("precision=w8a8_asym precision.weight.bits=5", "wu5channel_au8tensor"),
        ("precision=custom", "w8a8_dynamic"),
        ("precision=custom precision.weight.dtype=uint precision.weight.bits=3", "wu3channel_a8token"),
        ("precision=custom precision.input.dynamic=false", "w8a8"),
        ("precision=custom precision.weight.dtype=fp8_e4m3 precision.input.dtype=fp8", "fp8_dynamic"),
        ("precision=custom 'precision.weight={dtype: int4, group_size: 32}'", "w4a8"),
        ("precision=mxfp4 precision.weight.scale_dtype=e4m3", "wfp4e2m1g32-e4m3_afp4e2m1g32-e8m0"),
    ],
)
def test_names_follow_the_formats(line: str, name: str) -> None:
    config = compose_config(shlex.split(line))
    assert config.name == f"segquant_g_{name}"  # as the run's folder is called
    run = validate(config)
    assert run.precision.name == run.quantizer["precision"] == name
    assert segquant.presets.rtn(name).scheme == scheme_from(run.precision) == build_method(run).scheme


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("precision.weight.bits=9", "integers have 2 to 8 bits; set precision.weight.bits=8"),
        ("precision.input.bits=1", "integers have 2 to 8 bits; set precision.input.bits=2"),
        ("precision=fp8 precision.weight.bits=6", "only int and uint have a width of choice; leave bits out, or set"),
        ("precision=fp8 precision.weight.symmetric=false", "precision.weight: fp8 has no zero point; leave symmetric"),
        ("precision.weight.granularity=token", "is quantized once: .* are for inputs; choose 'channel'"),
        ("precision.weight.dynamic=true", "is quantized once"),
        ("precision.weight.granularity=group", "group_size=None; give a group_size"),
        ("precision=w4a8 precision.weight.granularity=channel", "'channel' with group_size=32; give"),
        ("precision.weight.dtype=int9", "no dtype 'int9'.*choose int2"),
        ("precision.weight.dtype=fp3", "unknown dtype 'fp3'; nearest: "),
        ("precision.weight.scale_dtype=bf16", "unknown scale_dtype 'bf16'; nearest: bfloat16"),
        ("precision.input.scale_dtype=e4m3", "a static input has one scale a piece; choose float32"),
        ("precision=w8a8_dynamic precision.input.scale_dtype=q0", "is for weights; inputs take float32"),
        ("precision=w4a16 precision.input.bits=8", "has bits=8 and no dtype; set precision.input.dtype"),
        ("precision.weight=null", "quantizes inputs alone.*set precision.weight.dtype"),
        ("precision.weight=null precision.input=null", "quantizes nothing.*choose quantizer=none"),
        ("precision.weight=int6", "takes keys of its own and no value; set precision.weight.KEY"),
        ("precision.weight.dtipe=int6", "no key 'precision.weight.dtipe'; did you mean 'dtype'"),
        ("precision.input=null precision.input.dtype=int8", "below one that is null; give both at once"),
        ("quantizer=sdnq precision=w8a8 precision.weight.bits=6", "cannot do precision=w6channel_a8tensor; it can do"),
        ("precision=w8a8 precision.weight.bits=6 precision.name=w4a8", "w4a8: there is a precision of this name"),
        ("precision.name='${precision:mine}'", "is for precisions that ship; write name: mine"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(line: str, words: str) -> None:
    with pytest.raises(Exception) as raised:  # OmegaConf's or ours, as long as a sentence comes of it
        config = compose_config(shlex.split(line))
        str(config.name)  # looked up for the run's folder, before the run
        build_method(validate(config))
    message = user_message(raised.value)
    assert message is not None and "\n" not in message
    assert re.search(words, message), message


def test_own_files_leave_out_what_follows() -> None:
    given = PrecisionConfig("mine", FormatConfig("int4", group_size=16), FormatConfig("int8"))
    assert scheme_from(given) == segquant.QuantScheme(
        segquant.QuantSpec("int4", "group", 16), segquant.QuantSpec("int8", "token", dynamic=True)
    )
    with pytest.raises(PipelineError, match="both _target_ and weight"):
        PrecisionConfig("mine", FormatConfig("int4"), None, "their_pkg.function")


def test_changed_files_of_ones_own_are_called_by_their_fields() -> None:
    added = f"precision.name=${{precision:{CUSTOM}}}"
    assert with_name(["precision=mine", "precision.weight.bits=3"])[2:] == [added]
    assert with_name(["+experiment=theirs", "precision.input=null"])[2:] == [added]
    for same in (["precision=mine"], ["precision=w8a8", "precision.weight.bits=3"], ["precision.weight.bits=3"],
                 ["precision=mine", "precision.weight.bits=3", "precision.name=x"]):  # fmt: skip
        assert with_name(same) == same


def test_a_changed_file_of_ones_own(command: Command, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "conf" / "precision").mkdir(parents=True)
    (tmp_path / "conf" / "precision" / "mine.yaml").write_text("name: mine\nweight: {dtype: int5}\n")
    own = ["--config-dir", str(tmp_path / "conf"), "precision=mine", "quantizer=nothing_of_this_name"]
    assert "nothing_of_this_name" in command(*tiny.overrides(tmp_path / "cache"), *own).sentence
    own[-1] = "quantizer=none"
    outcome = command(*tiny.overrides(tmp_path / "cache"), *own, "precision.weight.bits=3")
    assert outcome.code == 1 and "does not go with the formats w3channel_a16" in outcome.sentence
    assert not (tmp_path / "cache" / "stage").exists()


def test_groups_that_do_not_divide_are_refused_before_anything_is_computed(
    command: Command, tiny: Tiny, tmp_path: Path
) -> None:
    for quantizer in ("rtn", "segquant_g"):
        own = [f"quantizer={quantizer}", "precision=w4a8", "precision.weight.group_size=7"]
        outcome = command(*tiny.overrides(tmp_path / "cache"), *own)
        assert outcome.code == 1 and not (tmp_path / "cache" / "stage").exists()
        assert "weight groups of 7 do not divide its in_features" in outcome.sentence
        assert "leave it out with skip" in outcome.sentence and "divide it)" in outcome.sentence


def test_a_sweep_goes_on_after_formats_that_are_refused(command: Command, tiny: Tiny, cache: Path) -> None:
    given = ["quantizer=rtn", "run=reference", "report=false", "precision=w8a8", "precision.weight.bits=9,6"]
    outcome = command("-m", *tiny.overrides(cache), *given)
    assert outcome.code == 1 and "integers have 2 to 8 bits; set precision.weight.bits=8" in outcome.err
    refused, done = sorted(path for path in outcome.folder.iterdir() if path.name[0] in "01")
    assert (refused / "failure.json").is_file() and (done / "results.json").is_file()
    assert done.name == "1_rtn_w6channel_a8tensor_reference"


def test_plans_at_formats_of_the_command_line() -> None:
    config = compose_plan(["model=sd3_medium", "precision=w4a8", "precision.weight.group_size=64"])
    methods = methods_of(config)
    assert list(methods) == ["w4g64_a8token"] and methods["w4g64_a8token"].scheme.weight.group_size == 64
    config = compose_plan(["model=sd3_medium", "precisions=[w8a8,w3g16_a16,nvfp4]"])
    assert list(methods_of(config)) == ["w8a8", "w3g16_a16", "nvfp4"]
    with pytest.raises(PipelineError, match="precisions='w9g16_a16' is not known"):
        compose_plan(["model=sd3_medium", "precisions=[w9g16_a16]"])
    for line in ("precision.weight.bits=6", "precision.input=null"):
        with pytest.raises(PipelineError, match="precision has fields and no name; add precision=custom"):
            compose_plan(["model=sd3_medium", line])
