"""`segquant-export DIR format=onnx`: a folder that save_quantized wrote, as another tool's file."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segquant_bench.hints import nearest
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.main import EXIT_FAILED, user_message
from segquant_bench.pipelines.runtime.interrupt import exit_code
from segquant_bench.pipelines.runtime.quiet import quieten_absent_gpu

if TYPE_CHECKING:
    from torch import nn

_DEFAULTS: dict[str, dict[str, Any]] = {
    "onnx": {
        "profile": "ort", "dynamic": True, "every_cpu": True, "rest": "refuse", "external_data": None,
        "attention": "float", "batches": None,
    },
}  # fmt: skip
"""Settings of each format."""
_PLACE = "out=DIRECTORY"
"""What says where the file goes."""
_PROFILES = ("ort", "openvino", "tensorrt")
_EPILOG = """\
settings:
  format=onnx                      a QDQ graph (opset 21) in DIRECTORY/model.onnx
  profile=ort|openvino|tensorrt    who is to run it
  rest=refuse|float                what becomes of layers that the profile has no form for
  every_cpu=true|false             ort: exact without VNNI too, or faster with it
  dynamic=true|false               batches and sizes of any number, or those of the example
  external_data=true|false         weights in a file of their own; by default above 1.9 GB
  attention=float|int8             openvino: int8 multiplies queries and keys as 8-bit codes; needs batches
  batches=FILE                     calls that attention's ranges are taken over, written by save_calibration
  out=DIRECTORY                    by default DIR-FORMAT-PROFILE

  segquant-export quantized format=onnx profile=openvino out=exported
"""


def settings_of(pairs: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE, checked, defaults filled in.

    Raises:
        PipelineError: no pair, an unknown key or format.
    """
    given: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise PipelineError(f"{pair!r} sets nothing; give KEY=VALUE, for example format=onnx")
        given[key] = {"true": True, "false": False}.get(value.lower(), value)
    kind = str(given.pop("format", "onnx"))
    if kind in _PROFILES:
        raise PipelineError(f"no format {kind!r}: it is a profile of ONNX; give format=onnx profile={kind}")
    if kind not in _DEFAULTS:
        raise PipelineError(f"no format {kind!r}; {nearest(kind, _DEFAULTS)}")
    known = {"out": None, **_DEFAULTS[kind]}
    for key in given:
        if key not in known:
            raise PipelineError(f"format={kind} has no setting {key!r}; {nearest(key, [*known, 'format'])}")
    found = {"format": kind, **known, **given}
    if found["attention"] != "float" and found["batches"] is None:
        raise PipelineError(
            f"attention={found['attention']} takes ranges from calls of the denoiser; give batches=FILE, which "
            "segquant.deploy.diffusers.save_calibration wrote"
        )
    if found["attention"] == "float" and found["batches"] is not None:
        raise PipelineError("batches=FILE is read with attention=int8 alone; give both, or none")
    return found


def export(directory: Path, settings: dict[str, Any]) -> str:
    """Write the file; returns a line about it.

    Raises:
        PipelineError, QuantizationError: see `pipelines.main.user_message`.
    """
    # Put off: slow to import; bad input and --help do not wait for it.
    from segquant import load_quantized

    kind, out = settings.pop("format"), settings.pop("out")
    target = Path(out) if out else directory.with_name(f"{directory.name}-{kind}-{settings['profile']}")
    writers: dict[str, Callable[..., Any]] = {"onnx": _onnx}
    return str(writers[kind](load_quantized(directory), target, settings))


def _onnx(model: nn.Module, target: Path, settings: dict[str, Any]) -> Any:
    from segquant import export_onnx  # put off as above
    from segquant.deploy.diffusers import load_calibration

    file = settings.pop("batches")
    batches = None if file is None else load_calibration(file)
    return export_onnx(model, target, (), example_of(model), **settings, attention_batches=batches)


def example_of(model: nn.Module) -> dict[str, Any]:
    """A call of the denoiser with a batch of two: of one, a graph would take no other.

    Raises:
        PipelineError: what pipelines pass to its class is not known.
    """
    import torch  # put off as above
    from torch.utils._pytree import tree_map_only

    from segquant_bench.pipelines.architectures import config_of
    from segquant_bench.pipelines.architectures.inputs import example_inputs

    given = example_inputs(type(model).__name__, config_of(model), "cpu")

    def doubled(tensor: torch.Tensor) -> torch.Tensor:
        whole = tensor.new_zeros(tensor.shape)
        return torch.cat([whole, whole]) if tensor.dim() and tensor.shape[0] == 1 else whole

    found: dict[str, Any] = tree_map_only(torch.Tensor, doubled, given)
    return found


def _quieten() -> None:
    quieten_absent_gpu()
    # Put off: slow to import; bad input and --help do not wait for it.
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")  # for those who maintain its classes
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)


def main(argv: Sequence[str] | None = None) -> None:
    """Exit 0 and a line about what was written, or 1 and one sentence on stderr."""
    parser = argparse.ArgumentParser(
        prog="segquant-export",
        description="Write a saved quantized model as a file of another tool.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="a folder that save_quantized wrote")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="see below")
    arguments = parser.parse_intermixed_args(argv)
    try:
        settings = settings_of(arguments.settings)
        _quieten()
        print(export(arguments.directory, settings))
    except KeyboardInterrupt as error:
        sys.exit(exit_code(error))
    except Exception as error:
        message = user_message(error, places=_PLACE, room=_PLACE)
        if message is None:
            raise
        print(f"segquant-export: {message}", file=sys.stderr)
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
