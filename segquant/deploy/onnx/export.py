"""`export_onnx`: a quantized model as an ONNX file."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from segquant.checks import checked
from segquant.deploy.onnx.attention import CodedAttention, Ranges, attention_ranges, check_attention
from segquant.deploy.onnx.exported import Exported
from segquant.deploy.onnx.forms import FLOAT, INT8, Profile, float_bytes, form_of, profile_of, why_not
from segquant.deploy.onnx.inputs import Arguments, refuse_half
from segquant.deploy.onnx.manifest import DATA, KEY, MODEL, Manifest
from segquant.deploy.onnx.stamp import UNSTAMPED, stamp
from segquant.errors import QuantizationError
from segquant.files import make_folder_beside, publish
from segquant.layers.attention import torchs
from segquant.layers.layer import QuantLayer
from segquant.modules.wrappers import unwrapped
from segquant.serialize.save import plain

if TYPE_CHECKING:
    import onnx_ir as ir

logger = logging.getLogger(__name__)
NEEDED = ("onnx", "onnxscript")
LARGEST = 1_900_000_000
"""Bytes in one file; protobuf takes 2 GiB."""
NAMED = 3
"""Layers that a refusal names."""


@checked(args="", kwargs="", attention_batches="")
def export_onnx(
    model: nn.Module,
    directory: str | Path,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    profile: str = "ort",
    dynamic: bool = True,
    every_cpu: bool = True,
    rest: str = "refuse",
    external_data: bool | None = None,
    attention: str = FLOAT,
    attention_batches: Iterable[Any] | None = None,
) -> Exported:
    """Write a quantized model as ONNX (opset 21): `directory`/model.onnx, replacing an earlier export.

    Inputs are the example's tensors by the names of the forward's arguments, all other arguments are built in.

    Args:
        args: example arguments, and `kwargs`; tokens, heights and widths that are to vary of two at least.
        profile: "ort" (ONNX Runtime), "openvino" or "tensorrt".
        dynamic: let every dimension vary that the model lets vary.
        every_cpu: for "ort", weights that are exact on CPUs without VNNI too; False is faster on those with it.
        rest: "refuse" raises where the profile has no form for layers, "float" makes float products of their codes;
            with "float", a model without quantized layers is exported too.
        external_data: weights in a file of their own, model.onnx.data; None: where one file would be too large.
        attention: for "openvino", "int8" multiplies queries and keys as 8-bit codes, with a static scale per head.
        attention_batches: batches of the forward, as `quantize_` takes them, over which those scales are taken, beside
            the example; what lies beyond saturates.

    Raises:
        QuantizationError: packages are missing, no quantized layer, layers that the profile cannot hold, tensors that
            are not float32, a forward that torch.export does not take, or attention="int8" without attention.
    """
    chosen = profile_of(profile)
    if rest not in ("refuse", FLOAT):
        raise QuantizationError(f"rest={rest!r}; give 'refuse', or 'float' for float products where nothing else fits")
    check_attention(attention, chosen, attention_batches)
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        needed = " and ".join(missing)
        raise QuantizationError(f"export_onnx needs {needed}; run pip install '.[deploy]' in a clone of segquant")
    target = _target(Path(directory))
    with unwrapped(model) as inner, torchs(inner):
        layers = {name: module for name, module in inner.named_modules() if isinstance(module, QuantLayer)}
        forms = _forms(layers, chosen, rest)
        arguments = Arguments.of(inner, args, kwargs or {})
        refuse_half(inner, layers, arguments)
        example = arguments.call(arguments.tensors)
        ranges = attention_ranges(inner, example, attention_batches) if attention == INT8 else {}
        graph, manifest, fixed = _graph(inner, layers, forms, arguments, chosen, dynamic, every_cpu, ranges)
    size = _publish(graph, manifest, target, external_data)
    left = sum(float_bytes(layers[name], chosen) for name, form in forms.items() if form == FLOAT)
    found = Exported(target / MODEL, profile, forms, fixed, size, left, manifest.attention)
    if fixed:
        logger.warning("%s fixes %s: the file takes that size alone", type(model).__name__, ", ".join(fixed))
    return found


def _target(directory: Path) -> Path:
    if (
        directory.exists()
        and not (directory / MODEL).is_file()
        and (not directory.is_dir() or any(directory.iterdir()))
    ):
        raise QuantizationError(f"{directory} exists and is no export; give another directory")
    return directory


def _forms(layers: Mapping[str, QuantLayer], profile: Profile, rest: str) -> dict[str, str]:
    if not layers and rest != FLOAT:
        raise QuantizationError("the model has no quantized layer; run quantize_ first, or export it with rest='float'")
    reasons = {name: reason for name, layer in layers.items() if (reason := why_not(layer, profile)) is not None}
    if reasons and rest != FLOAT:
        named = ", ".join(f"{name} ({reason})" for name, reason in list(reasons.items())[:NAMED])
        more = f" and {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
        raise QuantizationError(f"{profile.name} cannot hold {named}{more}; rest='float' leaves such layers in float")
    return {name: FLOAT if name in reasons else form_of(layer, profile) for name, layer in layers.items()}


def _graph(
    model: nn.Module,
    layers: Mapping[str, QuantLayer],
    forms: Mapping[str, str],
    arguments: Arguments,
    profile: Profile,
    dynamic: bool,
    every_cpu: bool,
    ranges: Ranges,
) -> tuple[ir.Model, Manifest, tuple[str, ...]]:
    # Put off: onnx and onnxscript take seconds to import and may not be installed.
    from segquant.deploy.onnx.dimensions import unwillingly_fixed
    from segquant.deploy.onnx.free import traced_fixed, traced_free
    from segquant.deploy.onnx.write import as_onnx, write_out

    coded = CodedAttention(model, ranges)
    with coded if ranges else nullcontext():
        program, inputs = (traced_free if dynamic else traced_fixed)(model, layers, forms, arguments)
    count = len(program.graph_signature.user_outputs)
    first = "sample" if "return_dict" in arguments.parameters else "output"
    outputs = [first, *(f"{first}_{index}" for index in range(1, count))]
    graph = as_onnx(program, arguments, outputs)
    write_out(graph, layers, forms, profile, every_cpu, ranges)
    if profile.symmetric:
        _check_for_tensorrt(graph)
    config = getattr(model, "config", None)
    manifest = Manifest(
        profile=profile.name,
        kind=type(model).__name__,
        config=plain(config) if isinstance(config, Mapping) else {},
        parameters=arguments.parameters,
        constants=plain(arguments.constants),
        inputs=inputs,
        outputs=outputs,
        layers=dict(forms),
        every_cpu=INT8 not in forms.values() or (every_cpu and profile.fused),
        attention=coded.forms if ranges else {},
    )
    return graph, manifest, tuple(unwillingly_fixed(inputs)) if dynamic else ()


def _check_for_tensorrt(graph: ir.Model) -> None:
    from segquant.deploy.onnx.tensorrt import violations  # put off as above

    found = violations(graph)
    if found:
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise QuantizationError(
            f"TensorRT's parser would refuse this graph: {'; '.join(found[:NAMED])}{more}; leave the layers of these "
            "names out (skip), or use profile='ort'"
        )


def _publish(graph: ir.Model, manifest: Manifest, target: Path, external: bool | None) -> int:
    import dataclasses

    import onnx_ir as ir  # put off as above

    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value)
    apart = size > LARGEST if external is None else external
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = make_folder_beside(target)
    try:
        if apart:
            graph.metadata_props[KEY] = manifest.dumped()
            ir.save(graph, folder / MODEL, external_data=DATA)
            manifest = dataclasses.replace(manifest, data=(folder / DATA).stat().st_size, data_sha256=UNSTAMPED)
        manifest = dataclasses.replace(manifest, sha256=UNSTAMPED)
        graph.metadata_props[KEY] = manifest.dumped()
        ir.save(graph, folder / MODEL, external_data=DATA if apart else None)
        stamp(folder / MODEL, folder / DATA)
        written = sum(file.stat().st_size for file in folder.iterdir())
        publish(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return written
