"""Targets: means over boxes, the scene's truth, files, and teachers with their cache."""

import numpy as np
import pytest
import torch
import transformers as hf
from chiasm.probes.boxes import box_means, divided, scaled
from chiasm.probes.targets import FileTarget, SceneDepth, SceneSegmentation
from chiasm.probes.teachers import Teacher
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.errors import UserError
from chiasm.scenes.render import render
from chiasm.scenes.sample import Sample
from PIL import Image
from safetensors.torch import save_file


def lattice(n, size):
    edges = torch.arange(n + 1) * size / n
    return torch.stack(
        [torch.stack([edges[c], edges[r], edges[c + 1], edges[r + 1]]) for r in range(n) for c in range(n)]
    )


def test_box_means_are_means():
    maps = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor(
        [[0, 0, 12, 8], [2, 1, 5, 4], [0.5, 0, 1.5, 1], [-9, -9, 3, 2], [20, 0, 30, 8], [torch.nan] * 4]
    )
    found = box_means(maps, boxes)
    torch.testing.assert_close(found[0], maps.mean((1, 2)))
    torch.testing.assert_close(found[1], maps[:, 1:4, 2:5].mean((1, 2)))
    torch.testing.assert_close(found[2], (maps[:, 0, 0] + maps[:, 0, 1]) / 2)
    torch.testing.assert_close(found[3], maps[:, :2, :3].mean((1, 2)))
    assert found[4:].isnan().all()


def test_a_target_grid_finer_equal_or_coarser_than_the_tokens():
    maps = torch.arange(16.0).view(1, 4, 4)
    equal = box_means(maps, scaled(lattice(4, 64), (64, 64), maps))
    torch.testing.assert_close(equal[:, 0], torch.arange(16.0))
    coarse = box_means(maps, scaled(lattice(2, 64), (64, 64), maps))
    torch.testing.assert_close(coarse[:, 0], torch.nn.functional.avg_pool2d(maps, 2).flatten())
    fine = box_means(maps, scaled(lattice(8, 64), (64, 64), maps))
    torch.testing.assert_close(fine.view(8, 8), maps[0].repeat_interleave(2, 0).repeat_interleave(2, 1))
    torch.testing.assert_close(divided(torch.tensor([[0.0, 0, 64, 32]]), 2)[1], torch.tensor([32.0, 0, 64, 16]))


def test_scene_truth_is_that_of_every_pixel():
    sample = next(iter(scene_samples(1, "test")))
    drawn = render(sample.truth["scene"], 64)
    boxes = lattice(8, 64)
    depth = SceneDepth().at(sample, 0, boxes)
    np.testing.assert_allclose(depth[:, 0], drawn.depth.reshape(8, 8, 8, 8).mean((1, 3)).ravel(), atol=1e-6)
    target = SceneSegmentation()
    shares = target.at(sample, 0, boxes)
    torch.testing.assert_close(shares.sum(1), torch.ones(64))
    background = (drawn.segmentation == 0).reshape(8, 8, 8, 8).mean((1, 3)).ravel()
    np.testing.assert_allclose(shares[:, 0], background, atol=1e-6)
    there = {target.labels[i] for i in torch.nonzero(shares.sum(0)).flatten().tolist()} - {"background"}
    seen = {
        thing.category for thing, share in zip(sample.truth["scene"].things, drawn.visible, strict=True) if share > 0
    }
    assert there == seen


def test_samples_without_a_scene_have_no_truth():
    plain = Sample("a", "w1", (Image.new("RGB", (8, 8)),))
    assert SceneDepth().at(plain, 0, lattice(2, 8)) is None


def test_a_file_of_maps(tmp_path):
    picture = Image.new("RGB", (40, 20))
    save_file({"a": torch.arange(8.0).view(2, 2, 2), "a#1": torch.zeros(2, 3, 3)}, tmp_path / "t.safetensors")
    target = FileTarget(tmp_path / "t.safetensors")
    whole = torch.tensor([[0.0, 0, 40, 20]])
    sample = Sample("a", "", (picture, picture))
    torch.testing.assert_close(target.at(sample, 0, whole), torch.tensor([[1.5, 5.5]]))
    assert (target.at(sample, 1, whole) == 0).all()
    with pytest.raises(UserError, match="no map for picture 's3'; its 2 ids are like 'a'"):
        target.at(Sample("s3", "", (picture,)), 0, whole)
    save_file({"a": torch.zeros(2, 2)}, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=r"holds 'a' of shape \(2, 2\)"):
        FileTarget(tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        FileTarget(tmp_path / "none.safetensors")


SMALL = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
)


def folder(path, model, processor):
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


def plain_processor():
    return hf.ViTImageProcessor(size={"height": 32, "width": 32})


def dino(path):
    torch.manual_seed(0)
    model = hf.Dinov2Model(hf.Dinov2Config(**{k: v for k, v in SMALL.items() if k != "intermediate_size"}))
    processor = hf.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    return folder(path, model, processor)


def photograph(seed=0, size=(48, 24)):
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_features_of_a_teacher_cover_the_whole_picture_and_are_cached_once(tmp_path, monkeypatch):
    teacher = Teacher(dino(tmp_path / "dino"), cache=tmp_path / "cache")
    assert teacher.kind == "features" and len(teacher.labels) == 16 and not teacher.classes
    image = photograph()
    squashed = teacher._processor(images=image.resize((32, 32), Image.Resampling.BICUBIC), do_center_crop=False, do_resize=False, return_tensors="pt")  # fmt: skip
    states = teacher._model(**squashed).last_hidden_state[0, 1:]
    torch.testing.assert_close(teacher.maps(image), states.T.reshape(16, 4, 4).half().float(), atol=0.05, rtol=0.05)
    before = sorted((tmp_path / "cache").rglob("*.safetensors"))
    monkeypatch.setattr(Teacher, "_compute", lambda *_: pytest.fail("computed twice"))
    again = teacher.maps(image)
    assert sorted((tmp_path / "cache").rglob("*.safetensors")) == before and again.shape == (16, 4, 4)


def test_a_damaged_cache_is_made_again_and_other_weights_have_another(tmp_path):
    source = dino(tmp_path / "dino")
    teacher = Teacher(source, cache=tmp_path / "cache")
    image = photograph()
    known = teacher.maps(image)
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.write_bytes(b"rubbish")
    torch.testing.assert_close(teacher.maps(image), known)
    torch.manual_seed(5)
    other = hf.Dinov2Model(teacher._model.config)
    other.save_pretrained(source)
    assert Teacher(source).told != teacher.told


def test_components_keep_the_variance_they_say(tmp_path):
    teacher = Teacher(dino(tmp_path / "dino"))
    samples = [Sample(str(i), "", (photograph(i),)) for i in range(4)]
    boxes = lattice(4, 1) * torch.tensor([48, 24, 48, 24])
    full = torch.cat([teacher.at(s, 0, boxes) for s in samples])
    teacher.fit(samples, 3)
    few = torch.cat([teacher.at(s, 0, boxes) for s in samples])
    kept = few.var(0).sum() / full.var(0).sum()
    assert (
        few.shape == (64, 3) and float(kept) == pytest.approx(teacher.retained, rel=1e-3) and len(teacher.labels) == 3
    )


def test_depth_classes_and_a_clip_tower(tmp_path):
    torch.manual_seed(0)
    backbone = hf.Dinov2Config(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14, out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True)  # fmt: skip
    config = hf.DepthAnythingConfig(backbone_config=backbone, patch_size=14, reassemble_hidden_size=16, neck_hidden_sizes=[8] * 4, fusion_hidden_size=8, head_hidden_size=8)  # fmt: skip
    processor = hf.DPTImageProcessor(size={"height": 28, "width": 28}, keep_aspect_ratio=True, ensure_multiple_of=14)
    depth = Teacher(folder(tmp_path / "depth", hf.DepthAnythingForDepthEstimation(config), processor))
    assert depth.kind == "depth" and depth.labels == ("depth",) and depth.maps(photograph()).shape == (1, 28, 56)
    config = hf.SegformerConfig(
        num_labels=5, hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8
    )
    shares = Teacher(folder(tmp_path / "seg", hf.SegformerForSemanticSegmentation(config), plain_processor()))
    found = shares.maps(photograph())
    assert shares.classes and len(shares.labels) == 5
    torch.testing.assert_close(found.sum(0), torch.ones(found.shape[1:]), atol=5e-3, rtol=0)
    clip = hf.CLIPModel(hf.CLIPConfig(vision_config=SMALL, text_config=dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=40)))  # fmt: skip
    assert Teacher(folder(tmp_path / "clip", clip, plain_processor())).maps(photograph()).shape == (16, 4, 4)


def test_a_teacher_that_cannot_be_loaded_is_one_line(tmp_path):
    for source in (str(tmp_path), "nobody/nothing"):
        with pytest.raises(UserError, match="cannot be loaded") as caught:
            Teacher(source)
        assert "\n" not in str(caught.value)
    text = hf.BertModel(
        hf.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=30)
    )
    with pytest.raises(UserError, match=r"takes no pictures|cannot be loaded"):
        Teacher(folder(tmp_path / "bert", text, plain_processor()))
