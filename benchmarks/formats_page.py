"""docs/formats from the runs of `experiment=formats`: tables, comparisons, figures, and the results themselves.

    python -m benchmarks.formats_page outputs/sweeps/formats

It writes what `segquant-report` makes of each model, and fills the tables of the page; the sentences are a person's.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import pages
from benchmarks.pages import Line, figures

PAGE = Path(__file__).parents[1] / "docs" / "formats"
MODELS = {"emoji_sd3": ("table.md", "comparisons.csv", "formats.png"),
          "emoji_sdxl": ("unet.md", "unet_comparisons.csv", "unet.png")}  # fmt: skip
"""Names here of a report's table.md, comparisons.csv and formats.png."""
METHODS = ("rtn", "gptq_mse", "segquant_plus", "auto")
MIXES = "emoji_sd3"
MIXED = ("gptq_mse", "gptq_mixed", "auto")
"""Of the one model on which formats were mixed."""
OWN_BYTES = ("segquant_plus", "auto", "gptq_mixed")
"""Methods whose bytes are not those of rounding."""
PAIRS = (
    ("w8a8_dynamic", "w8a8", ("rtn", "gptq_mse")),
    ("w8a8_asym", "w8a8", ("rtn",)),
    ("w8a8", "w8a8_asym", ("segquant_plus",)),
    ("mxint8", "w8a8_dynamic", ("rtn",)),
    ("fp8_dynamic", "w8a8_dynamic", ("rtn", "gptq_mse")),
    ("q5_0", "w6a6", ("rtn", "gptq_mse")),
    ("w4a8_asym", "w4a8", ("rtn", "gptq_mse")),
    ("q4_0", "w4a8", ("rtn", "gptq_mse")),
    ("q4_1", "w4a8_asym", ("rtn",)),
    ("nvfp4", "w4a8", ("rtn", "gptq_mse")),
    ("mxfp4", "nvfp4", ("rtn", "gptq_mse")),
)
"""Formats of about the same bytes, and by which methods."""


def main(argv: Sequence[str] | None = None) -> None:
    """Report on both models, and write the page's files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="sweeps with results.json files")
    parser.add_argument("--out", type=Path, default=PAGE, help="folder of the page, with its README.md")
    options = parser.parse_args(argv)
    runs = pages.newest(options.directories, lambda result: pages.run_name(result) if result["model"] in MODELS else "")
    text, pairs = (options.out / "README.md").read_text(encoding="utf-8"), []
    for model, names in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            lines, found = _reported(_of_model(runs, model), Path(folder), options.out, names)
        text = pages.filled(text, model, methods_table(lines, METHODS))
        if model == MIXES:
            text = pages.filled(text, f"{model} mixed", methods_table(lines, MIXED, all_of=MIXED))
        pairs += [{**pair, "where": model} for pair in found]
    text = pages.filled(text, "pairs", pairs_table(pairs))
    pages.write_csv(options.out / "pairs.csv", pairs)
    pages.archive(runs, options.out / "results.tar.xz")
    (options.out / "README.md").write_text(text, encoding="utf-8")


def _of_model(runs: Mapping[str, Path], model: str) -> list[Path]:
    return [path for name, path in runs.items() if name.startswith(f"{model}/")]


def _reported(
    runs: Sequence[Path], folder: Path, out: Path, names: Sequence[str]
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Lines of the report's table and of the pairs; its files copied."""
    files = [str(run) for run in runs]
    pages.make_report([*files, "--no-grid", "--output", str(folder / "all")])
    for made, name in zip(("table.md", "comparisons.csv", "formats.png"), names, strict=True):
        shutil.copyfile(folder / "all" / made, out / name)
    wanted = [("--pairs", f"{method} at {a}:{method} at {b}") for a, b, methods in PAIRS for method in methods]
    pages.make_report(
        [*files, "--tables", "--output", str(folder / "pairs"), *(word for pair in wanted for word in pair)]
    )
    return pages.read_csv(folder / "all" / "table.csv"), pages.read_csv(folder / "pairs" / "comparisons.csv")


def methods_table(lines: Sequence[Line], methods: Sequence[str], all_of: Sequence[str] = ()) -> str:
    """Bytes, error and psnr of the methods at every precision, those of fewer bytes first.

    Args:
        all_of: leave out precisions that lack one of these methods.
    """
    best: dict[str, dict[str, Line]] = {}
    for line in lines:  # a line of several seeds comes before theirs
        if line["method"] in methods:
            best.setdefault(line["precision"], {}).setdefault(line["method"], line)
    shown = {name: found for name, found in best.items() if methods[0] in found and all(m in found for m in all_of)}
    if not shown:
        return "None has run.\n"
    heads = [part for method in methods for part in _head(method, method == methods[0])]
    rows = sorted(shown, key=lambda name: float(shown[name][methods[0]]["weight_mb"]))
    cells = [
        [name, *(part for m in methods for part in _cells(shown[name].get(m), m in OWN_BYTES or m == methods[0]))]
        for name in rows
    ]
    return _markdown(["precision", *heads], cells)


def _head(method: str, first: bool) -> list[str]:
    if first:
        return ["weights, MB", f"{method}: error", "psnr, dB"]
    return [*([f"{method}: weights, MB"] if method in OWN_BYTES else []),
            "error" if method in OWN_BYTES else f"{method}: error", "psnr, dB"]  # fmt: skip


def _cells(line: Line | None, size: bool) -> list[str]:
    if line is None:
        return ["–"] * (2 + size)
    error, spread = float(line["output_error"]), line.get("output_error.sd", "")
    return [
        *([f"{float(line['weight_mb']):.2f}"] if size else []),
        figures(error) + (f" ± {figures(float(spread), 2)}" if spread else ""),
        f"{float(line['psnr']):.1f}",
    ]


def pairs_table(pairs: Sequence[Line]) -> str:
    """One format against another by the same method; in bold what is apart."""
    found = {(p["precision"], p["a"].split(" ")[0], p["where"], p["metric"].split("[")[0]): p for p in pairs}
    columns = [(model, metric) for model in MODELS for metric in ("psnr", "output error")]
    rows = [
        [name, method, *(_pair(found.get((name, method, model, metric))) for model, metric in columns)]
        for name, method in dict.fromkeys((key[0], key[1]) for key in found)
    ]
    heads = [f"{model}: {metric}{', dB' if metric == 'psnr' else ''}" for model, metric in columns]
    return _markdown(["formats", "method", *heads], rows)


def _pair(pair: Line | None) -> str:
    if pair is None:
        return "–"
    form = "{:+.1f}" if pair["metric"] == "psnr" else "{:.2f}"
    value, low, high = (form.format(float(pair[key])).replace("-", "−") for key in ("value", "value.low", "value.high"))
    text = f"{'' if pair['metric'] == 'psnr' else '× '}{value} [{low}, {high}]"
    return f"**{text}**" if pair["verdict"] in ("better", "worse") else text


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return pages.markdown(heads, rows, lambda head: "error" in head or "MB" in head or head == "psnr, dB")


if __name__ == "__main__":
    main()
