"""`segquant --help`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from string import Template

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from segquant_bench.hidden import visible
from segquant_bench.pipelines.runtime.paths import CONF

QUESTIONS = {
    "model": "which denoiser",
    "quantizer": "which method",
    "precision": "which bits",
    "run": "what runs the denoiser",
    "dataset": "which prompts, which real pictures",
    "calibration": "which timesteps and prompts calibration sees",
    "correction": "what is corrected while sampling",
    "metric": "which judgement",
    "logger": "where it is logged",
    "experiment": "a sweep that is ready made (with -m)",
}
WIDTH = 118
_NAME = 22


def help_page() -> str:
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("config", return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        return Template(config.hydra.help.template).substitute()


def options_page() -> str:
    """Every group with its options, also the user's."""
    config = HydraConfig.get()
    sources = [source for source in config.runtime.config_sources if source.schema == "file"]
    folders = [Path(source.path) for source in sources]
    inside = [path for folder in folders for path in visible(folder.iterdir(), folder)]
    names = {path.name for path in inside if path.is_dir() and path.name != "hydra"}
    groups = [name for name in QUESTIONS if name in names] + sorted(names - QUESTIONS.keys())
    chosen = config.runtime.choices
    return "\n".join(line for name in groups for line in _group_lines(name, folders, chosen.get(name)))


def _group_lines(name: str, folders: list[Path], chosen: str | None) -> Iterator[str]:
    found = [path for folder in reversed(folders) for path in visible((folder / name).glob("*.yaml"), folder)]
    files = {path.stem: path for path in found}
    yield f"  {name}=".ljust(_NAME + 3) + QUESTIONS.get(name, "")
    for option, file in sorted(files.items()):
        mark = "*" if option == chosen else " "
        yield f"   {mark}{option.ljust(_NAME - 2)} {describe(file, WIDTH - _NAME - 4)}".rstrip()


def describe(file: Path, width: int) -> str:
    """The first sentence of a file's comment, cut at a clause to `width`, with an ellipsis."""
    words: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @"):
            continue
        if not line.startswith("#"):
            break
        words += line.lstrip("# ").split()
    sentence = re.split(r"(?<=[\w)])\. ", " ".join(words))[0].rstrip(".")
    if len(sentence) <= width:
        return sentence
    clause = re.match(rf"(.{{{width // 2},{width - 2}}})(?=[:;,] )", sentence)
    if clause is not None and clause[1].count("(") == clause[1].count(")"):
        return f"{clause[1]} …"
    return sentence[: width - 1].rpartition(" ")[0].rstrip(",;:") + " …"
