from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segquant_bench.eval import Backends, EvalError
from segquant_bench.eval.metrics.images import list_pictures
from segquant_bench.eval.metrics.networks import features
from segquant_bench.eval.metrics.networks.cache import cached_features
from segquant_bench.eval.metrics.networks.effnet import EffNetLite0
from segquant_bench.eval.metrics.networks.features import (
    check_extractor,
    extract,
    fid_extractor,
    fid_features,
    find_inception,
)
from segquant_bench.eval.metrics.networks.resize import load_resized


@pytest.fixture(scope="module")
def extractor():
    return fid_extractor(Backends(fid="effnet_lite0"))


def test_features_are_clean_fids_folder_features(extractor, images: Path) -> None:
    from cleanfid.fid import get_folder_features
    from cleanfid.resize import make_resizer

    want = get_folder_features(
        str(images), model=extractor.model, num_workers=0, batch_size=5, device=torch.device("cpu"),
        custom_fn_resize=make_resizer("PIL", False, "bicubic", (224, 224)), verbose=False,
    )  # fmt: skip
    got = extract(extractor, list_pictures(images, "generated"), batch_size=5)
    assert got.shape == (12, 1280)
    np.testing.assert_array_equal(got, want)


def test_features_directly(extractor, images: Path) -> None:
    """Resize in Pillow and run timm's network by hand."""
    path = list_pictures(images, "generated")[0]
    with Image.open(path) as picture:
        bands = [band.convert("F").resize((224, 224), Image.Resampling.BICUBIC) for band in picture.split()]
    x = np.stack([np.clip(np.asarray(band), 0, 255) for band in bands])
    net = extractor.model.net
    with torch.inference_mode():
        pooled = net.global_pool(net.forward_features((torch.from_numpy(x)[None] - 127.5) / 127.5))
    np.testing.assert_allclose(extract(extractor, [path], 1)[0], pooled[0].numpy(), rtol=1e-3, atol=1e-4)


def test_embedded_weights_have_seen_pictures(extractor) -> None:
    """A trained batch norm has statistics of its data; an untrained one has zeros and ones."""
    norm = extractor.model.net.bn1
    assert norm.running_mean.abs().max() > 0.01
    assert (norm.running_var - 1).abs().max() > 0.1


def test_features_are_cached_by_content(extractor, images: Path, tmp_path: Path) -> None:
    paths = list_pictures(images, "generated")[:3]
    first = fid_features(extractor, paths, batch_size=5, cache=tmp_path)
    (stored,) = tmp_path.iterdir()

    def refuse(_: torch.Tensor) -> torch.Tensor:
        raise AssertionError("features were computed again")

    deaf = type(extractor)(extractor.name, extractor.backend, extractor.size, refuse, extractor.device)
    np.testing.assert_array_equal(fid_features(deaf, paths, batch_size=5, cache=tmp_path), first)
    with pytest.raises(AssertionError, match="again"):
        fid_features(deaf, paths[::-1], batch_size=5, cache=tmp_path)
    stored.write_bytes(b"half a file")
    np.testing.assert_array_equal(fid_features(extractor, paths, batch_size=5, cache=tmp_path), first)


def test_a_run_that_is_killed_goes_on_behind_its_last_batch(images: Path, tmp_path: Path) -> None:
    paths, made = list_pictures(images, "generated"), list[list[Path]]()

    def compute(batch: Sequence[Path], most: int) -> np.ndarray:
        if len(made) == most:
            raise KeyboardInterrupt
        made.append(list(batch))
        return np.stack([np.frombuffer(path.read_bytes()[-12:], np.uint8).astype(np.float32) for path in batch])

    whole = cached_features("key", paths, None, lambda batch: compute(batch, 99), 2)
    batches = list(made)
    assert len(batches) == -(-len(paths) // 2) > 2
    made.clear()
    for most in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            cached_features("key", paths, tmp_path, lambda batch, most=most: compute(batch, most), 2)
    assert len(list(tmp_path.iterdir())) == 2
    next(tmp_path.iterdir()).write_bytes(b"half a file")
    found = cached_features("key", paths, tmp_path, lambda batch: compute(batch, 99), 2)
    np.testing.assert_array_equal(found, whole)
    assert len(made) == len(batches) + 1 and sorted(map(str, made[:2])) == sorted(map(str, batches[:2]))
    assert [path.name[:4] for path in tmp_path.iterdir()] == ["key-"]


def test_stages_are_at_five_strides(images: Path) -> None:
    model = EffNetLite0()
    with torch.inference_mode():
        stages = model.stages(load_resized(list_pictures(images, "generated")[:1], 224))
    assert [tuple(s.shape[1:]) for s in stages] == [
        (16, 112, 112), (24, 56, 56), (40, 28, 28), (112, 14, 14), (320, 7, 7),
    ]  # fmt: skip


def test_inception_asked_for_and_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segquant_bench.eval.metrics.networks.features.find_inception", lambda given: None)
    with pytest.raises(EvalError, match=r"inception-2015-12-05\.pt is not in .* effnet_lite0"):
        fid_extractor(Backends(fid="inception", inception=tmp_path))


def test_auto_says_what_it_chose(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("segquant_bench.eval.metrics.networks.features.find_inception", lambda given: None)
    features._tell_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="segquant_bench.eval.metrics.networks.features"):
        chosen = fid_extractor(Backends(fid="auto"))
    assert chosen.name == "effnet_lite0"
    assert "inception-2015-12-05.pt is nowhere on disk" in caplog.text


@pytest.mark.parametrize("fid", ["auto", "inception"])
def test_inception_in_a_place_where_it_is_not(fid: str, tmp_path: Path) -> None:
    """Another extractor would be another metric."""
    with pytest.raises(EvalError, match=r"is not in .*nowhere; put it there or choose the extractor effnet_lite0"):
        check_extractor(Backends(fid=fid, inception=tmp_path / "nowhere"))
    assert check_extractor(Backends(fid="effnet_lite0", inception=tmp_path / "nowhere")) is None


def test_the_temporary_folder_is_not_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []
    monkeypatch.setattr(Path, "is_file", lambda path: looked_at.append(str(path)))
    assert find_inception(None) is None
    assert looked_at and not any(path.startswith("/tmp/") for path in looked_at)


def test_another_program_under_inception_s_name_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "inception-2015-12-05.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(EvalError, match=r"is not the published file .* never run"):
        fid_extractor(Backends(fid="auto", inception=tmp_path))


def test_inception_is_found_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scripted stand-in laid out as clean-fid's file: `layers` takes normalised pictures."""

    class Layers(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(2, 3)).repeat(1, 683)[:, :2048]

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = Layers()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    with pytest.warns(FutureWarning, match="deprecated"):
        torch.jit.script(Net()).save(str(tmp_path / "inception-2015-12-05.pt"))
    weights = tmp_path / "inception-2015-12-05.pt"
    assert find_inception(tmp_path) == weights
    monkeypatch.setattr(features, "PUBLISHED", hashlib.sha256(weights.read_bytes()).hexdigest())
    picture = tmp_path / "grey.png"
    Image.new("RGB", (40, 40), (192, 128, 0)).save(picture)
    found = fid_extractor(Backends(fid="auto", inception=tmp_path))
    assert found.name == "inception"
    np.testing.assert_allclose(extract(found, [picture], 1)[0, :3], [0.5, 0.0, -1.0], atol=1e-5)


def test_unknown_extractor() -> None:
    with pytest.raises(EvalError, match="'incepton' is unknown"):
        Backends(fid="incepton")
