from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from segquant_bench.eval import Backends
from tests.eval.support import PROMPTS, noisy, smooth_pictures, write_pictures

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    return list(PROMPTS)


@pytest.fixture(scope="session")
def reference_pictures() -> np.ndarray:
    return smooth_pictures(len(PROMPTS), 32, seed=0)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, reference_pictures: np.ndarray) -> Path:
    return write_pictures(tmp_path_factory.mktemp("reference"), reference_pictures)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory, reference_pictures: np.ndarray) -> Path:
    return write_pictures(tmp_path_factory.mktemp("images"), noisy(reference_pictures, 8.0, seed=1))


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("real"), smooth_pictures(20, 32, seed=2))


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny, randomly initialised open_clip model as a local-dir."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("tiny_clip")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def backends(clip_folder: Path) -> Backends:
    return Backends(fid="effnet_lite0", clip="tiny_clip", clip_path=clip_folder, candidates=4, batch_size=5)
