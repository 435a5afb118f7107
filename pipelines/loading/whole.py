"""Models are loaded whole or not at all: diffusers and transformers only warn of tensors that are missing or left.

What they raise of a component's files is told with the file that it is of.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import Any

from segquant.modules.bounded import bounded_building
from segquant_bench.pipelines.config.explain import memory_message
from segquant_bench.pipelines.errors import PipelineError, one_line
from segquant_bench.pipelines.loading.files import tensors_of
from segquant_bench.pipelines.loading.json_files import read_mapping
from segquant_bench.pipelines.loading.kinds import check_kinds
from segquant_bench.pipelines.loading.settings import check_widths, largest_setting, load_failure

TABLES = 1 << 28
"""Numbers in buffers that no file stores (tables of positions)."""
_NO_WEIGHTS = ("position_ids", "rotary_emb.inv_freq")
"""Endings of tensors that files of earlier versions hold, and that are no weights."""
_Failures = dict[int, tuple[type, Path]]
"""By the id of an error, what was being loaded, and from where."""


@contextmanager
def whole_weights(folder: Path, parts: Iterable[Path], variant: str | None) -> Iterator[None]:
    """Inside, `from_pretrained` loads models whole, and builds none that is much larger than its files.

    Args:
        folder: for messages.
        parts: folders with weights.

    Raises:
        PipelineError: a tensor is missing, or is left, or has another shape; or whatever else its libraries raise.
    """
    failures: _Failures = {}
    with _bounded(folder, parts, variant, failures), ExitStack() as stack:
        for kind in _model_classes():
            stack.enter_context(_replaced(kind, _looking(kind, _loader(kind), failures)))
        for kind in _other_classes():
            stack.enter_context(_replaced(kind, _noting(_loader(kind), failures)))
        yield


@contextmanager
def built_from(kind: Any, folder: Path, variant: str | None) -> Iterator[None]:
    """Inside, one component of diffusers is built from its settings, without weights; as `whole_weights`.

    Raises:
        PipelineError: its settings are not those of its files, or cannot be built.
    """
    failures: _Failures = {}
    with _bounded(folder, [folder], variant, failures):
        try:
            _check_kinds(kind, folder)
            yield
        except Exception as error:
            failures[id(error)] = (kind, folder)
            raise


def check_tensors(model: Any, folder: Path, variant: str | None) -> None:
    """Refuse files whose tensors are not those of a model that was built without them; headers alone are read.

    Raises:
        PipelineError: as `whole_weights`.
    """
    found = {name: tuple(entry["shape"]) for name, entry in tensors_of(folder, variant).items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    unused = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    told = {
        "missing_keys": wanted.keys() - found.keys(),
        "unexpected_keys": [n for n in found.keys() - wanted.keys() if not any(re.search(each, n) for each in unused)],
        "mismatched_keys": [name for name, shape in wanted.items() if name in found and found[name] != shape],
    }
    _check(f"{type(model).__name__} in {folder}", told, True)


@contextmanager
def _bounded(folder: Path, parts: Iterable[Path], variant: str | None, failures: _Failures) -> Iterator[None]:
    found: list[list[int]] = []
    for part in parts:
        own = [entry["shape"] for entry in tensors_of(part, variant).values()]
        check_widths(part, max((size for shape in own for size in shape), default=0))
        found += own
    try:
        with bounded_building(3 * len(found), 3 * sum(map(prod, found)) + TABLES):
            yield
    except PipelineError:
        raise
    except Exception as error:  # whatever diffusers, transformers and tokenizers raise of files that they never wrote
        sizes = [size for shape in found for size in shape]
        raise PipelineError(_told(error, folder, failures, 4 * max(sizes, default=0))) from error


def _told(error: Exception, folder: Path, failures: _Failures, least: int) -> str:
    """`least`: a setting above it may be why memory is short."""
    kind, source = failures.get(id(error), (None, folder))
    memory = memory_message(error)
    if memory is not None:
        return memory + largest_setting(source, least)
    if kind is not None:
        return load_failure(kind, source, error)
    return f"diffusers cannot load {folder}: {one_line(error) or type(error).__name__}"


def _model_classes() -> tuple[Any, ...]:
    # put off: slow, and a finished run needs none of it
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    return ModelMixin, PreTrainedModel


def _other_classes() -> tuple[Any, ...]:
    # put off: as above
    from diffusers import SchedulerMixin
    from transformers import PreTrainedTokenizerBase

    return SchedulerMixin, PreTrainedTokenizerBase


def _loader(kind: Any) -> Callable[..., Any]:
    original: classmethod[Any, Any, Any] = vars(kind)["from_pretrained"]
    return original.__func__


@contextmanager
def _replaced(kind: Any, load: Callable[..., Any]) -> Iterator[None]:
    """Let `load` be `kind.from_pretrained`."""
    original = vars(kind)["from_pretrained"]
    kind.from_pretrained = classmethod(load)
    try:
        yield
    finally:
        kind.from_pretrained = original


def _noting(load: Callable[..., Any], failures: _Failures) -> Callable[..., Any]:
    """The same, of which `failures` knows what failed; errors stay what they are, as libraries look at their types."""

    def from_pretrained(cls: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            _check_kinds(cls, Path(str(source)))
            return load(cls, source, *args, **kwargs)
        except Exception as error:
            if Path(str(source)).is_dir():
                failures.setdefault(id(error), (cls, Path(str(source))))
            raise

    return from_pretrained


def _check_kinds(kind: Any, folder: Path) -> None:
    """Of what diffusers makes from settings; transformers looks at them itself."""
    file = folder / str(getattr(kind, "config_name", None))
    if hasattr(kind, "load_config") and file.is_file():
        check_kinds(kind, file, read_mapping(file))


def _looking(kind: Any, original: Callable[..., Any], failures: _Failures) -> Callable[..., Any]:
    """Looks at what loading tells, which only its warnings say otherwise."""
    load = _noting(original, failures)

    def from_pretrained(cls: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.pop("output_loading_info", False):
            return load(cls, source, *args, output_loading_info=True, **kwargs)
        model, told = load(cls, source, *args, output_loading_info=True, **kwargs)
        _check(f"{cls.__name__} in {source}", told, kind.__module__.partition(".")[0] == "diffusers")
        return model

    return from_pretrained


def _check(what: str, told: Mapping[str, Any], all_used: bool) -> None:
    """Text encoders of transformers are saved with heads that a pipeline does without; `all_used` is for the others."""
    for key, words in (
        ("missing_keys", "lacks the tensor"),
        ("unexpected_keys", "does not use the tensor"),
        ("mismatched_keys", "has another shape for"),
    ):
        if key == "unexpected_keys" and not all_used:
            continue
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in told.get(key) or ())
        names = [name for name in names if not name.endswith(_NO_WEIGHTS)]
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            raise PipelineError(
                f"{what} {words} {one_line(names[0])}{more}: its weights are those of another config.json; fetch the "
                "model again"
            )
