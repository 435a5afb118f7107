"""`segquant-plan model=NAME`: what quantizing would cost. Needs no weights."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segquant_bench.pipelines.main import EXIT_FAILED, user_message
from segquant_bench.pipelines.runtime.interrupt import exit_code
from segquant_bench.pipelines.runtime.quiet import quieten_absent_gpu

if TYPE_CHECKING:
    from segquant_bench.pipelines.plan.sizes import ComponentPlan

SCHEMA = 1
_EXAMPLES = """\
models:
  segquant-plan model=flux1_dev
  segquant-plan model=sd3_canny 'quantize=[denoiser,controlnet]'
  segquant-plan model.path=/data/my-pipeline          its own config.json, weights are not looked at
  segquant-plan model.repo=OWNER/NAME
  segquant-plan model.target=my.module:build          build() returns a module, or (module, keyword arguments)

methods: quantizer=NAME and quantizer.KEY=VALUE as in segquant, precisions=[w8a8_tensor,w4a8]
"""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The quantizer's name, whether it takes convolutions, and a plan per component."""

    quantizer: str
    convolutions: bool
    components: tuple[ComponentPlan, ...]


def plan(overrides: Sequence[str]) -> Plan:
    """The plan of a command line.

    Raises:
        PipelineError, QuantizationError, HydraException: see `pipelines.main.user_message`.
    """
    # Put off: slow to import; bad input and --help do not wait for it.
    from segquant_bench.pipelines.plan.config import AUTO, DTYPE, compose_plan, methods_of
    from segquant_bench.pipelines.plan.sizes import component_plan
    from segquant_bench.pipelines.plan.source import sources

    config = compose_plan(overrides)
    methods = methods_of(config)
    name = config.quantizer.get("name") or config.quantizer["_target_"].rpartition(".")[2]
    convolutions = any(method.targets.convolutions for method in methods.values() if not isinstance(method, str))
    given = None if config.model.dtype == AUTO else config.model.dtype
    plans = (component_plan(source, methods, given or source.dtype or DTYPE) for source in sources(config))
    return Plan(name, convolutions, tuple(plans))


def as_json(found: Plan) -> dict[str, Any]:
    return {"schema": SCHEMA, **dataclasses.asdict(found)}


def _search_path(folder: str | None) -> list[str]:
    return [] if folder is None else [f"hydra.searchpath=['file://{Path(folder).absolute()}']"]


def _show(arguments: argparse.Namespace) -> None:
    # Put off: slow to import; bad input and --help do not wait for it.
    from segquant_bench.pipelines.plan.text import render

    found = plan([*_search_path(arguments.config_dir), *arguments.overrides])
    if arguments.json:
        print(json.dumps(as_json(found), indent=1, allow_nan=False))
        return
    pages = (
        render(each, found.quantizer, convolutions=found.convolutions, layers=arguments.layers)
        for each in found.components
    )
    print("\n\n\n".join(pages))


def _quieten() -> None:
    quieten_absent_gpu()
    # Put off: slow to import; bad input and --help do not wait for it.
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")  # for those who maintain its classes
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)


def main() -> None:
    """Exit 0 and the plan, or 1 and one sentence on stderr."""
    parser = argparse.ArgumentParser(
        prog="segquant-plan",
        description="Print how a model's layers would be cut and quantized, from its configuration alone.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as on segquant's command line")
    parser.add_argument("--config-dir", metavar="DIR", help="a directory of configurations of your own")
    parser.add_argument("--layers", action="store_true", help="add a line for each layer")
    parser.add_argument("--json", action="store_true", help="print everything as JSON, layers included")
    arguments = parser.parse_intermixed_args()
    try:
        _quieten()
        _show(arguments)
    except KeyboardInterrupt as error:
        sys.exit(exit_code(error))
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"segquant-plan: {message}", file=sys.stderr)
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
