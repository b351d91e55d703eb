"""Distillation: task tokens in their place, what predictors look at, targets on the picture, masks, gradients, files."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from chiasm.alignment.adapters import language_lora
from chiasm.alignment.distillation import (
    Distillation,
    DistillationConfig,
    embedding_spread,
    format_layers,
    parse_layers,
)
from chiasm.alignment.wings import Wings, WingsConfig
from chiasm.models import open_vlm
from chiasm.probes.embeddings import Resampler, info_nce
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.errors import UserError
from chiasm.scenes.render import pixel_truth
from chiasm.scenes.sample import Sample
from peft import get_peft_model
from torch.nn.functional import smooth_l1_loss

from ..models.families import FAMILIES, batch, build

INSIDE = [name for name in FAMILIES if name != "mllama"]
LAYERS = {"depth": (1, 3), "segmentation": (2,)}


@pytest.fixture(scope="module")
def organism():
    return open_vlm("organism")


@pytest.fixture(scope="module")
def scenes():
    return list(scene_samples(3, "test"))


def made(vlm, seed: int = 0, **options) -> Distillation:
    torch.manual_seed(seed)
    return Distillation(vlm, DistillationConfig(**{"layers": LAYERS, "tokens": 4, "grid": 4, "width": 16} | options))


def text_only(name: str = "words") -> Sample:
    return Sample(name, "describe the image in detail .", answer="a red square .")


# -- layers and settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["d8-20_s10-18", "d16-18-20", "s1", "s3-1-2-7_d4"])
def test_lists_of_layers_of_any_length_are_read_and_written(text):
    assert format_layers(parse_layers(text)) == text


def test_a_list_of_three_layers_has_three():
    assert parse_layers("d16-18-20_s10") == {"depth": (16, 18, 20), "segmentation": (10,)}


@pytest.mark.parametrize("text", ["", "d", "x4", "d8-", "d8_d9", "d8,s9", "d-8"])
def test_other_lists_are_refused(text):
    with pytest.raises(UserError, match="d8-20_s10-18"):
        parse_layers(text)


def test_settings_that_cannot_be_are_refused(organism):
    with pytest.raises(UserError, match=r"outside this model's 1\.\.4"):
        made(organism, layers={"depth": (5,)})
    with pytest.raises(UserError, match=r"outside this model's 1\.\.4"):
        made(organism, layers={"depth": (0,)})
    with pytest.raises(UserError, match="does not divide"):
        made(organism, tokens=5)
    with pytest.raises(UserError, match="no target"):
        made(organism, layers={"generation": (1,)})
    with pytest.raises(UserError, match="without a layer"):
        made(organism, layers={"depth": ()})
    model, row = build("mllama")
    vlm = open_vlm(model=model)
    with pytest.raises(UserError, match="out of the sequence"):
        made(vlm).place(vlm, vlm.from_tensors(**row))


# -- task tokens -------------------------------------------------------------------------------------------------------


def test_a_task_token_is_the_mean_of_its_run_of_rows_and_spreads_as_words_do(organism):
    module = made(organism, tokens=4, grid=8)
    table = module.tables["segmentation"]
    tokens = module.token_embeddings()
    assert tokens.shape == (8, 128)
    for g in range(4):
        assert torch.allclose(tokens[4 + g], sum(table[16 * g + i] for i in range(16)) / 16, atol=1e-6)
    assert float(tokens.detach().std()) == pytest.approx(embedding_spread(organism), rel=0.15)


def test_tokens_stand_right_behind_the_picture_and_nothing_else_moves(organism, scenes):
    module = made(organism)
    inputs = organism.prepare_samples([*scenes[:2], text_only()])
    labels = inputs.tensors["input_ids"].masked_fill(~inputs.spans.mask("answer"), -100)
    placed = module.place(organism, inputs, labels)
    for b in range(3):
        old, new = inputs.spans.labels[b] >= 0, placed.inputs.spans.labels[b] >= 0
        own = placed.numbers[b] >= 0
        kept = new & ~own
        assert torch.equal(inputs.tensors["input_ids"][b][old], placed.inputs.tensors["input_ids"][b][kept])
        assert torch.equal(inputs.spans.labels[b][old], placed.inputs.spans.labels[b][kept])
        assert torch.equal(inputs.spans.visual[b][old], placed.inputs.spans.visual[b][kept])
        assert torch.equal(labels[b][old], placed.labels[b][kept])
        assert (placed.labels[b][~kept] == -100).all()
        assert torch.equal(placed.inputs.tensors["attention_mask"][b].bool(), new)
        if b == 2:
            assert not own.any()
            continue
        at = torch.nonzero(own).flatten()
        last = int(torch.nonzero(placed.inputs.spans.visual[b]).max())
        assert at.tolist() == list(range(last + 1, last + 9)) and placed.numbers[b][at].tolist() == list(range(8))
        assert placed.inputs.spans.mask("image")[b][at].all() and not placed.inputs.spans.visual[b][at].any()


@pytest.mark.parametrize("order", [("depth", "segmentation"), ("segmentation", "depth")])
def test_a_task_looks_at_everything_but_padding_and_other_tasks_tokens(organism, scenes, order):
    module = made(organism, layers=dict.fromkeys(order, (1,)))
    placed = module.place(organism, organism.prepare_samples([scenes[0], text_only()]))
    for task in range(2):
        mask = module.context(placed, task)
        own = (placed.numbers >= 4 * task) & (placed.numbers < 4 * task + 4)
        assert torch.equal(mask, placed.inputs.spans.real & ((placed.numbers < 0) | own))
        assert mask[0].sum() == placed.inputs.spans.real[0].sum() - 4


@pytest.mark.parametrize("name", INSIDE)
def test_every_family_reads_the_tokens_where_they_stand(name):
    """Task tokens that hold the embedding of a word are that word, in logits too."""
    model, row = build(name)
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**row)
    module = made(vlm, layers={"depth": (1,)})
    placed = module.place(vlm, inputs)
    at = placed.numbers >= 0
    assert at.sum() == 4
    word = placed.inputs.tensors["input_ids"].masked_fill(at, 33)
    with torch.no_grad():
        module.tables["depth"].copy_(vlm.model.get_input_embeddings()(torch.tensor([33])).expand(16, -1))
        expected = vlm.forward(
            replace(placed.inputs, tensors=placed.inputs.tensors | {"input_ids": word}), use_cache=False
        )
        bare = vlm.forward(placed.inputs, use_cache=False).logits
        with module.reading(vlm, placed):
            found = vlm.forward(placed.inputs, use_cache=False)
        assert torch.allclose(found.logits, expected.logits, atol=1e-5)
        assert not torch.allclose(found.logits, bare, atol=1e-4)
        assert torch.equal(vlm.forward(placed.inputs, use_cache=False).logits, bare)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "paligemma"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_any_side_changes_no_row(name, side):
    model, joined, alone = batch(name, side)
    vlm = open_vlm(model=model)
    module = made(vlm, layers={"depth": (1,)})
    with torch.no_grad():
        together = module.place(vlm, vlm.from_tensors(**joined))
        with module.reading(vlm, together):
            logits = vlm.forward(together.inputs, use_cache=False).logits
        for b, row in enumerate(alone):
            own = module.place(vlm, vlm.from_tensors(**row))
            with module.reading(vlm, own):
                expected = vlm.forward(own.inputs, use_cache=False).logits[0]
            assert torch.allclose(logits[b, -len(expected) :], expected, atol=1e-4)


def test_generation_reads_them_in_the_prompt_alone(organism, scenes):
    inputs = organism.prepare([scenes[0].images, ()], [scenes[0].prompt, text_only().prompt])
    module = made(organism)
    placed = module.place(organism, inputs)
    with module.reading(organism, placed):
        cached = organism.generate(placed.inputs, max_new_tokens=5)
        full = organism.generate(placed.inputs, max_new_tokens=5, num_beams=2)
    assert len(cached) == len(full) == 2
    assert cached[1] == organism.generate(inputs, max_new_tokens=5)[1]  # a row without a picture has none


# -- targets and loss --------------------------------------------------------------------------------------------------


def test_targets_are_means_over_the_cells_of_the_picture(organism, scenes):
    module = made(organism)
    values = module.target_values(organism.prepare_samples(scenes))
    depth, valid = values["depth"]
    assert valid.all() and depth.shape == (3, 16, 1) and values["segmentation"][0].shape[:2] == (3, 16)
    assert torch.allclose(values["segmentation"][0].sum(-1), torch.ones(3, 16), atol=1e-5)
    size = scenes[1].images[0].size[0]
    truth = torch.from_numpy(pixel_truth(scenes[1].truth["scene"], size)[0])
    edge = size // 4
    by_hand = [truth[r * edge : (r + 1) * edge, c * edge : (c + 1) * edge].mean() for r in range(4) for c in range(4)]
    assert size % 4 == 0 and torch.allclose(depth[1, :, 0], torch.stack(by_hand).float(), atol=1e-5)


def test_targets_are_of_the_part_that_the_model_is_shown(organism, scenes):
    module = made(organism)
    inputs = organism.prepare_samples(scenes)
    boxes, half = inputs.spans.boxes.clone(), scenes[0].images[0].size[0] / 2
    boxes[..., 0::2] = boxes[..., 0::2].clamp(max=half)  # as if the processor had cut the right half off
    shown = replace(inputs, spans=replace(inputs.spans, boxes=boxes))
    depth = module.target_values(shown)["depth"][0]
    truth = torch.from_numpy(pixel_truth(scenes[0].truth["scene"], int(2 * half))[0])
    high, wide = int(half) // 2, int(half) // 4
    assert float(depth[0, 1, 0]) == pytest.approx(float(truth[:high, wide : 2 * wide].mean()), abs=1e-5)


def test_the_loss_is_the_sum_over_tasks_and_layers_by_hand(organism, scenes):
    module = made(organism)
    inputs = organism.prepare_samples([*scenes, text_only()])
    labels = inputs.tensors["input_ids"].masked_fill(~inputs.spans.mask("answer"), -100)
    with torch.no_grad():
        found = module(organism, inputs, labels)
        placed, total = found.placed, 0
        sites = [f"blocks.{i}.resid_post" for i in range(3)]
        with module.reading(organism, placed):
            trace = organism.trace(placed.inputs, sites)
        for task, (name, layers) in enumerate(LAYERS.items()):
            target = module.target_values(inputs)[name][0][:3]
            for layer in layers:
                preds = []
                for b in range(3):  # every row alone, its context gathered
                    see = torch.nonzero(module.context(placed, task)[b]).flatten()
                    predictor = module.predictors[name][str(layer)]
                    states = trace[f"blocks.{layer - 1}.resid_post"][b : b + 1, see]
                    preds.append(predictor(states, queries=module.tables[name])[0])
                pred = torch.stack(preds)
                smooth = smooth_l1_loss(pred, target)
                contrastive = 0.3 * info_nce(pred, target, 2.0).mean()
                part = found.parts[name, layer]
                assert float(part["smooth_l1"]) == pytest.approx(float(smooth), rel=1e-4)
                assert float(part["contrastive"]) == pytest.approx(float(contrastive), rel=1e-4)
                total += 0.5 * (smooth + contrastive)
    assert float(found.loss) == pytest.approx(float(total), rel=1e-4)
    assert found.counted == {"depth": 3, "segmentation": 3} and found.loss > 0
    assert found.output.loss > 0


def test_rows_without_a_target_neither_count_nor_learn(organism, scenes):
    module = made(organism)
    with torch.no_grad():
        alone = module(organism, organism.prepare_samples(scenes[:2]))
        plain = replace(scenes[2], truth={})
        mixed = module(organism, organism.prepare_samples([text_only(), scenes[0], plain, scenes[1]]))
    assert float(mixed.loss) == pytest.approx(float(alone.loss), rel=1e-4)
    assert mixed.counted == {"depth": 2, "segmentation": 2}
    none = module(organism, organism.prepare_samples([plain, text_only()]))
    assert none.counted == {"depth": 0, "segmentation": 0} and none.loss.item() == 0
    none.loss.backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in module.parameters())


def test_the_loss_reaches_tokens_predictors_scales_and_the_model(scenes):
    vlm = open_vlm("organism")  # opened frozen, as what is measured is
    vlm.model.requires_grad_(True)
    module = made(vlm)
    module(vlm, vlm.prepare_samples(scenes)).loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name
    reached = [layer for layer in range(4) if vlm.anatomy.attention(layer).v_proj.weight.grad is not None]
    assert reached == [0, 1, 2]  # layers up to the highest that is asked
    assert vlm.anatomy.projector.linear_1.weight.grad.abs().max() > 0


def test_frozen_tables_still_serve(organism, scenes):
    module = made(organism)
    module.tables.requires_grad_(False)
    module(organism, organism.prepare_samples(scenes)).loss.backward()
    assert all(table.grad is None for table in module.tables.values())


def test_it_can_be_learned_and_leaves_a_frozen_model_as_it_is(organism, scenes):
    module, before = made(organism), organism.fingerprint()
    inputs = organism.prepare_samples(scenes)
    optimiser, losses = torch.optim.AdamW(module.parameters(), lr=3e-3), []
    for _ in range(15):
        loss = module(organism, inputs).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert organism.fingerprint() == before


def test_adapters_wings_and_distillation_train_in_one_step(organism, scenes):
    base = open_vlm("organism")
    adapted = get_peft_model(base.model, language_lora(base.model, rank=2, projector=True))
    vlm = open_vlm(model=adapted, processor=base.processor)
    adapted.train()
    wings, module = Wings(vlm, WingsConfig(rank=2)), made(vlm)
    inputs = vlm.prepare_samples(scenes)
    labels = inputs.tensors["input_ids"].masked_fill(~inputs.spans.mask("answer"), -100)
    with wings.attached(vlm):
        found = module(vlm, inputs, labels)
        (found.output.loss + found.loss).backward()
    for part in (adapted, wings, module):
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters() if p.requires_grad)


def test_silent_failures_are_told(organism, scenes, caplog):
    with pytest.raises(UserError, match="prepare_samples"):
        made(organism)(organism, organism.prepare([scenes[0].images], [scenes[0].prompt]))
    with caplog.at_level(logging.WARNING, "chiasm"):
        made(organism)(organism, organism.prepare_samples(scenes[:1]))
    assert "contrastive term is 0" in caplog.text
    with pytest.raises(UserError, match="nothing would be learned"):
        made(organism, weight=0.0)(organism, organism.prepare_samples(scenes))


def test_a_resampler_without_queries_is_one_with_those_it_is_given():
    torch.manual_seed(0)
    own, given = Resampler(8, 5, 3, width=8), Resampler(8, 5, None, width=8)
    given.load_state_dict({k: v for k, v in own.state_dict().items() if k != "queries"})
    states, table = torch.randn(2, 4, 8), torch.randn(3, 8)
    with torch.no_grad():
        own.queries.copy_(own.proj_in(table))
        assert torch.allclose(given(states, queries=table), own(states), atol=1e-6)


# -- files -------------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_is_the_same(organism, scenes, tmp_path):
    module, inputs = made(organism), organism.prepare_samples(scenes)
    folder = module.save(tmp_path / "taught")
    loaded = Distillation.load(folder, organism)
    assert loaded.config == module.config
    with torch.no_grad():
        assert torch.equal(loaded(organism, inputs).loss, module(organism, inputs).loss)
    with pytest.raises(UserError, match="holds no distillation"):
        Distillation.load(tmp_path, organism)
    with pytest.raises(UserError, match="does not fit"):
        Distillation.load(folder, open_vlm(model=build("llava")[0]))
