"""A saved model, and copies of its folder to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from segquant import save_quantized
from tests.segquant.serialize.saved_net import OUTCOME, X, quantized


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    model = quantized()
    folder = save_quantized(model, tmp_path_factory.mktemp("saved") / "model", OUTCOME, extra={"note": [1]})
    with torch.no_grad():
        return folder, model(X)


@pytest.fixture
def folder(saved: tuple[Path, Tensor], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved[0], tmp_path / "model"))
