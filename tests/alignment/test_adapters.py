"""Adapters: on the language model only, exact at the start, a reference that training does not move, files that open_vlm reads."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from chiasm.alignment.adapters import language_lora
from chiasm.models import open_vlm
from chiasm.models.anatomy import find_anatomy
from peft import LoraConfig, get_peft_model

from ..models.families import FAMILIES, build
from .pairs import batch_of, dataset, loss_of, tiny, trainer

TWO_LOG_TWO = 1.3862943611


@pytest.fixture(scope="module")
def llava():
    return tiny()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_adapters_are_on_every_linear_layer_of_the_blocks_and_nowhere_else(family):
    model, _ = build(family)
    blocks = find_anatomy(model).layout.blocks
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.startswith(f"{blocks}.")}
    wrapped = get_peft_model(model, language_lora(model, rank=2))
    adapted = {n.removeprefix("base_model.model.") for n, m in wrapped.named_modules() if hasattr(m, "lora_A")}
    assert adapted == linear and linear


def test_a_bare_list_reaches_the_tower_and_is_told(llava, tmp_path, caplog):
    model, processor = llava
    caplog.set_level(logging.WARNING, "chiasm")
    trainer(tmp_path, copy.deepcopy(model), processor, peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    assert "layers of the vision tower carry adapters" in caplog.text


@pytest.mark.parametrize("projector", [False, True])
def test_training_leaves_the_base_and_the_reference_as_they_are(llava, tmp_path, projector, one_thread):
    model, processor = llava
    lora = language_lora(model, rank=4, projector=projector)
    made = trainer(tmp_path, copy.deepcopy(model), processor, peft_config=lora, learning_rate=2e-2, max_steps=4)
    assert made.ref_model is None
    assert loss_of(made).item() == pytest.approx(TWO_LOG_TWO, abs=1e-5)
    made.model.zero_grad()
    batch = batch_of(made)
    before = [x.clone() for x in made.reference_logps(batch)]
    frozen = {n: p.detach().clone() for n, p in made.model.named_parameters() if not p.requires_grad}
    made.train()
    assert all(torch.equal(frozen[n], p) for n, p in made.model.named_parameters() if n in frozen)
    assert all(torch.equal(a, b) for a, b in zip(before, made.reference_logps(batch), strict=True))
    losses = [h["loss"] for h in made.state.log_history if "loss" in h]
    assert losses[-1] < losses[0]
    trained = [n for n, p in made.model.named_parameters() if p.requires_grad]
    assert any("multi_modal_projector" in n for n in trained) == projector


def test_an_adapter_that_is_trained_on_gets_a_frozen_copy_as_its_reference(llava, tmp_path, one_thread):
    model, processor = llava
    wrapped = get_peft_model(copy.deepcopy(model), language_lora(model, rank=4, dropout=0.0))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    made = trainer(tmp_path, wrapped, processor)
    assert sorted(made.model.peft_config) == ["default", "ref"]
    assert loss_of(made).item() == pytest.approx(TWO_LOG_TWO, abs=1e-5)
    batch = batch_of(made)
    before = [x.clone() for x in made.reference_logps(batch)]
    made.train()
    assert all(torch.equal(a, b) for a, b in zip(before, made.reference_logps(batch), strict=True))


@pytest.mark.parametrize("projector", [False, True])
def test_open_vlm_loads_what_was_saved(tmp_path, projector, one_thread):
    organism = open_vlm("organism")
    data = dataset(2, plain=True, sizes=((64, 64), (64, 64)))
    lora = language_lora(organism.model, rank=4, projector=projector)
    made = trainer(tmp_path / "run", organism, None, data, peft_config=lora, learning_rate=1e-2, max_steps=2)
    made.train()
    made.save_model(str(tmp_path / "adapter"))
    row = data[0]
    inputs = organism.prepare([row["images"]], [row["prompt"]], [row["chosen"]])
    opened = open_vlm("organism", adapter=tmp_path / "adapter")
    with torch.no_grad():
        made.model.eval()
        tuned, read = (m(**inputs.tensors).logits for m in (made.model, opened.model))
        plain = open_vlm("organism").model(**inputs.tensors).logits
    torch.testing.assert_close(tuned, read)
    assert (tuned - plain).abs().max() > 1e-3
