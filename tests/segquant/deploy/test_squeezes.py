"""A squeeze of what is not 1 is nothing, in files as in torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from segquant import export_onnx, quantize_
from segquant.deploy.onnx.squeezes import explicit_squeezes
from segquant.deploy.run import load_exported

SHAPES = ((2, 3), (1, 5), (4, 2))
"""Batches and tokens, both free."""


class Squeezing(nn.Module):
    """Squeezes in all spellings, of tokens [batch, tokens, 4] and of rows [batch, 1, 4]."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return (
            x.squeeze(1) + 1,
            (y * 2).squeeze(),
            (y + 1).squeeze((0, -2)),
            x.clone().squeeze_(1).mul_(2),
            x.unsqueeze(0).squeeze((0, 2)),
            (x * 3).squeeze(-2),
            x.squeeze(0),
        )


class Tokens(nn.Module):
    """As PixArt squeezes what a condition may have made longer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu().squeeze(1)).squeeze()


def test_each_squeeze_names_what_it_drops() -> None:
    free = {0: Dim.AUTO, 1: Dim.AUTO}
    tokens, rows = torch.randn(2, 3, 4), torch.randn(2, 1, 4)
    program = export(Squeezing(), (tokens, rows), dynamic_shapes=(free, {0: Dim.AUTO}), strict=False)
    explicit_squeezes(program)
    left = [
        node.args[1] for node in program.graph.nodes if "squeeze" in str(node.target) and "un" not in str(node.target)
    ]
    assert left == [[1], [1], [0]]
    changed = program.module()
    for batch, count in SHAPES[:1] + SHAPES[2:]:  # torch's own bounds refuse a batch of one
        given = torch.randn(batch, count, 4), torch.randn(batch, 1, 4)
        for found, exact in zip(changed(*given), Squeezing()(*given), strict=True):
            assert torch.equal(found, exact)


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_file_runs_at_other_sizes(tmp_path: Path, dynamic: bool) -> None:
    model, example = Tokens().eval(), {"x": torch.randn(2, 3, 16)}
    quantize_(model, {"name": "rtn", "precision": "w8a8_tensor"}, [example])
    export_onnx(model, tmp_path / "file", kwargs=example, dynamic=dynamic)
    engine = load_exported(tmp_path / "file", "ort")
    for batch, count in SHAPES if dynamic else SHAPES[:1]:
        x = torch.randn(batch, count, 16)
        (found,) = engine(x=x, return_dict=False)
        with torch.no_grad():
            exact = model(x).view(batch, count, 16)  # in a file a batch is no dimension to drop, one or more
        assert found.shape == exact.shape
        assert (found - exact).norm() < 0.02 * exact.norm()
