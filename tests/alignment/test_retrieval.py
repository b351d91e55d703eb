"""Retrieval: exact against a search by hand, without the picture itself and its duplicates; encoders."""

from __future__ import annotations

import pytest
import torch
from chiasm.alignment.encoders import NamedEncoder, open_encoder
from chiasm.alignment.retrieval import nearest, unit_rows
from chiasm.models import open_vlm
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.errors import UserError
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, ViTConfig, ViTModel

from ..models.families import FAMILIES
from .pairs import tiny


def by_hand(vectors, k, groups):
    """Every cosine, one row at a time, sorted in plain Python."""
    unit = vectors.double() / vectors.double().norm(dim=1, keepdim=True)
    found = []
    for i in range(len(unit)):
        others = [j for j in range(len(unit)) if j != i and all(labels[j] != labels[i] for labels in groups)]
        found.append(sorted(others, key=lambda j: (-round(float(unit[i] @ unit[j]), 5), j))[:k])
    return found


@pytest.mark.parametrize("n", [40, 700])
def test_the_nearest_are_those_found_by_hand(n):
    vectors = torch.randn(n, 16, generator=torch.Generator().manual_seed(n))
    groups = [[i // 3 for i in range(n)], [i % (n // 2) for i in range(n)]]
    index, cosine = nearest(vectors, 5, groups)
    if n == 40:
        assert index.tolist() == by_hand(vectors, 5, groups)
    assert (cosine[:, :-1] >= cosine[:, 1:]).all()
    rows = torch.arange(n)[:, None]
    assert not (index == rows).any() and not (index // 3 == rows // 3).any()
    assert not (index % (n // 2) == rows % (n // 2)).any()


def test_ties_go_by_index_and_too_few_are_told():
    same = torch.ones(6, 4)
    index, cosine = nearest(same, 3)
    assert index.tolist() == [[j for j in range(6) if j != i][:3] for i in range(6)] and cosine.allclose(torch.ones(1))
    index, cosine = nearest(torch.eye(3), 5, [["a", "a", "b"]])
    assert index.tolist() == [[2, -1, -1, -1, -1], [2, -1, -1, -1, -1], [0, 1, -1, -1, -1]]
    assert cosine.isnan().sum() == 11


def test_bad_vectors_are_refused():
    for bad in (torch.zeros(1, 3), torch.full((1, 3), float("nan"))):
        with pytest.raises(UserError, match="embedding of picture 1"):
            unit_rows(torch.cat([torch.ones(1, 3), bad]))
    with pytest.raises(UserError, match="k=0"):
        nearest(torch.eye(3), 0)


def test_faiss_agrees_where_it_is_installed():
    pytest.importorskip("faiss")
    vectors = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    groups = [[i // 2 for i in range(300)]]
    (a, x), (b, y) = (nearest(vectors, 7, groups, faiss=on) for on in (False, True))
    assert torch.equal(a, b) and torch.allclose(x, y, atol=1e-5)


@pytest.fixture(scope="module")
def samples():
    return list(scene_samples(12, "test", "description"))


def test_the_tower_gives_the_mean_of_what_the_projector_reads(samples):
    vlm = open_vlm("organism", device="cpu")
    encoder = open_encoder("tower", vlm)
    images = [sample.images[0] for sample in samples[:3]]
    found = encoder(images)
    inputs = vlm.prepare([[image] for image in images], ["?"] * 3)
    with torch.no_grad():
        tower = vlm.anatomy.model.model.vision_tower(inputs.tensors["pixel_values"], output_hidden_states=True)
    wanted = tower.hidden_states[vlm.model.config.vision_feature_layer][:, 1:].mean(1)
    assert torch.allclose(found, wanted, atol=1e-5) and not vlm.anatomy.projector._forward_pre_hooks
    assert torch.allclose(encoder(images[1:2]), found[1:2], atol=1e-4)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_familys_tower_tells_pictures_apart(family, photo):
    model, processor = tiny(family, scale=1.0)
    encoder = open_encoder("tower", open_vlm(model=model, processor=processor, device="cpu"))
    images = [photo(name, 64).resize((64, 64)) for name in ("coffee.png", "chelsea.png", "rocket.jpg")]
    found = encoder(images)
    assert found.shape[0] == 3 and found.isfinite().all()
    assert torch.allclose(encoder(images[1:2]), found[1:2], atol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-6)


def test_near_scenes_have_near_graphs(samples):
    encoder = open_encoder("graph")
    images, truths = [s.images[0] for s in samples], [s.truth for s in samples]
    vectors = encoder(images, truths)
    assert torch.equal(vectors, encoder(images, truths)) and (vectors.sum(1) > 0).all()
    index, _ = nearest(vectors, 1)
    places = [truth["scene"].place for truth in truths]
    twice = [i for i in range(len(places)) if places.count(places[i]) > 1]
    assert sum(places[index[i, 0]] == places[i] for i in twice) > len(twice) / 2
    with pytest.raises(UserError, match="needs rendered scenes"):
        encoder(images[:1], [{}])


def test_encoders_by_name(tmp_path, samples):
    torch.manual_seed(0)
    small = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    vision = small | dict(image_size=32, patch_size=16)
    CLIPModel(
        CLIPConfig(text_config=small | dict(vocab_size=64), vision_config=vision, projection_dim=24)
    ).save_pretrained(tmp_path / "clip")
    ViTModel(ViTConfig(**vision)).save_pretrained(tmp_path / "vit")
    images = [sample.images[0] for sample in samples[:3]]
    for name, width in (("clip", 24), ("vit", 32)):
        CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
            tmp_path / name
        )
        encoder = NamedEncoder(str(tmp_path / name))
        assert encoder(images).shape == (3, width) and str(tmp_path) in encoder.name
    with pytest.raises(UserError, match=r"encoder 'nowhere/none' cannot be loaded .* use 'tower'"):
        open_encoder("nowhere/none")
    with pytest.raises(UserError, match="needs a model"):
        open_encoder("tower")
