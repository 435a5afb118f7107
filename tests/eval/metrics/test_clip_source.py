"""Weights of CLIP and the architecture that computes with them: what does not belong together is refused."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from segquant_bench.eval import Backends, EvalError
from segquant_bench.eval.metrics.networks.clip import check_scorer, load_scorer
from segquant_bench.eval.metrics.networks.clip_source import CONFIG_FILE, Source, find_source
from segquant_bench.pipelines.runtime.paths import CONF


def backends(**settings: str | Path) -> Backends:
    return Backends(**settings)  # type: ignore[arg-type]


def checkpoint(folder: Path, quick: bool | None, **preprocess: object) -> Path:
    folder.mkdir()
    if quick is not None:
        config = {"model_cfg": {"embed_dim": 768, "quick_gelu": quick}, "preprocess_cfg": preprocess}
        (folder / CONFIG_FILE).write_text(json.dumps(config))
    torch.save({"logit_scale": torch.zeros(())}, folder / "weights.pt")
    return folder / "weights.pt"


def test_openais_weights_need_quick_gelu() -> None:
    with pytest.raises(EvalError, match=r"'ViT-L-14' computes GELU, and weights 'openai' was trained with QuickGELU; "
                       r"set clip=ViT-L-14-quickgelu"):  # fmt: skip
        find_source(backends(clip="ViT-L-14", clip_pretrained="openai"))
    assert find_source(backends(clip="ViT-L-14-quickgelu")) == Source("ViT-L-14-quickgelu", "openai")
    with pytest.raises(EvalError, match=r"computes QuickGELU, and .*laion2b.* with GELU; set clip=ViT-L-14$"):
        find_source(backends(clip="ViT-L-14-quickgelu", clip_pretrained="laion2b_s32b_b82k"))
    with pytest.raises(EvalError, match=r"no weights 'laion2b' of ViT-L-14 .*laion2b_s32b_b82k"):
        find_source(backends(clip="ViT-L-14", clip_pretrained="laion2b"))


def test_every_pair_that_open_clip_warns_of_is_refused() -> None:
    """Against its own two records, for all that it lists."""
    import open_clip

    counts = {True: 0, False: 0}
    for name, tag in open_clip.list_pretrained():
        architecture = open_clip.get_model_config(name)
        trained = open_clip.get_pretrained_cfg(name, tag)
        fits = bool(architecture.get("quick_gelu", False)) == bool(trained.get("quick_gelu", False))
        counts[fits] += 1
        if fits:
            assert find_source(backends(clip=name, clip_pretrained=tag)) == Source(name, tag)
        else:
            with pytest.raises(EvalError, match="GELU"):
                find_source(backends(clip=name, clip_pretrained=tag))
    assert counts[True] > 50 and counts[False] > 10


@pytest.mark.parametrize("path", sorted((CONF / "metric").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_judges_fit(path: Path) -> None:
    settings = yaml.safe_load(path.read_text())["backends"]
    if "clip_path" not in settings and "clip" in settings:
        assert find_source(backends(clip=settings["clip"], clip_pretrained=settings["clip_pretrained"]))


def test_a_file_is_told_by_the_configuration_beside_it(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "quick", True, mean=[0.1, 0.2, 0.3], resize_mode="squash")
    found = find_source(backends(clip="ViT-L-14-quickgelu", clip_path=path))
    assert found.pretrained == str(path)
    assert found.preprocess == {"image_mean": [0.1, 0.2, 0.3], "image_resize_mode": "squash"}
    with pytest.raises(EvalError, match=r"beside it, was trained with QuickGELU; set clip=ViT-L-14-quickgelu"):
        find_source(backends(clip="ViT-L-14", clip_path=path))
    plain = checkpoint(tmp_path / "plain", False)
    with pytest.raises(EvalError, match=r"was trained with GELU; set clip=ViT-L-14$"):
        find_source(backends(clip="ViT-L-14-quickgelu", clip_path=plain))


def test_a_file_alone_must_be_told(tmp_path: Path) -> None:
    """By open_clip's tag, whose activation and pictures it then has."""
    path = checkpoint(tmp_path / "alone", None)
    for name in ("ViT-L-14", "ViT-L-14-quickgelu"):
        with pytest.raises(EvalError, match=r"does not say which activation .*beside it, or set clip_pretrained"):
            find_source(backends(clip=name, clip_path=path))
    found = find_source(backends(clip="ViT-L-14", clip_path=path, clip_pretrained="laion2b_s32b_b82k"))
    assert tuple(found.preprocess["image_mean"]) == (0.5, 0.5, 0.5), "open_clip takes OpenAI's for any file"
    with pytest.raises(EvalError, match=r"\(dfn2b\) was trained with QuickGELU"):
        find_source(backends(clip="ViT-L-14", clip_path=path, clip_pretrained="dfn2b"))


def test_a_published_file_is_known_by_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    from open_clip import pretrained

    path = checkpoint(tmp_path / "known", None)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    record = {"url": f"https://host/vit_b_32-quickgelu-x-{digest[:8]}.pt", "quick_gelu": True}
    monkeypatch.setitem(pretrained._PRETRAINED["ViT-B-32"], "published", record)
    assert find_source(backends(clip="ViT-B-32-quickgelu", clip_path=path)).pretrained == str(path)
    with pytest.raises(EvalError, match=r"\(published\) was trained with QuickGELU; set clip=ViT-B-32-quickgelu"):
        find_source(backends(clip="ViT-B-32", clip_path=path, clip_pretrained="laion2b_e16"))


def test_a_label_that_is_another_architecture(clip_folder: Path) -> None:
    with pytest.raises(EvalError, match=r"computes QuickGELU, and the model of .* was trained with GELU"):
        find_source(backends(clip="ViT-L-14-quickgelu", clip_path=clip_folder))
    with pytest.raises(EvalError, match=r"'ViT-H-14' was asked for, .* is another: its embed_dim is 16"):
        find_source(backends(clip="ViT-H-14", clip_path=clip_folder))
    assert find_source(backends(clip="any label", clip_path=clip_folder)).pretrained is None


def test_programs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ViT-L-14.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ViT-L-14/code/__torch__.py", "")
    with pytest.raises(EvalError, match="is a program of TorchScript"):
        find_source(backends(clip="ViT-L-14-quickgelu", clip_path=path))


def test_weights_of_a_tag_are_fetched_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    from open_clip import pretrained

    asked: list[object] = []

    def fails(record: object) -> None:
        asked.append(record)
        raise OSError("no network\nhere")

    monkeypatch.setattr(pretrained, "download_pretrained", fails)
    with pytest.raises(EvalError, match=r"weights 'openai', which cannot be fetched \(no network\); set clip_path"):
        check_scorer(backends(clip="ViT-L-14-quickgelu"))
    assert asked == [pretrained.get_pretrained_cfg("ViT-L-14-quickgelu", "openai")]


def test_a_file_is_read_as_its_record_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    seen: dict[str, object] = {}

    def created(name: str, **settings: object) -> tuple[torch.nn.Module, None, str]:
        seen.update(settings, name=name)
        return torch.nn.Identity(), None, "preprocess"

    monkeypatch.setattr(open_clip, "create_model_and_transforms", created)
    path = checkpoint(tmp_path / "quick", True, std=[0.3, 0.3, 0.3])
    scorer = load_scorer(backends(clip="ViT-L-14-quickgelu", clip_path=path))
    assert (seen["name"], seen["pretrained"], seen["image_std"]) == ("ViT-L-14-quickgelu", str(path), [0.3] * 3)
    other = checkpoint(tmp_path / "other", True, std=[0.5, 0.5, 0.5])
    assert load_scorer(backends(clip="ViT-L-14-quickgelu", clip_path=other)).key != scorer.key


def test_the_activation_of_a_folder_is_computed(clip_folder: Path, tmp_path: Path) -> None:
    import shutil

    from open_clip.transformer import QuickGELU

    copy = Path(shutil.copytree(clip_folder, tmp_path / "clip"))
    config = json.loads((copy / CONFIG_FILE).read_text())
    config["model_cfg"]["quick_gelu"] = True
    (copy / CONFIG_FILE).write_text(json.dumps(config))
    for folder, wanted in ((copy, True), (clip_folder, False)):
        model = load_scorer(backends(clip="tiny_clip", clip_path=folder)).model
        assert any(isinstance(module, QuickGELU) for module in model.modules()) == wanted
