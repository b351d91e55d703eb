"""VisualDPOTrainer against TRL's own trainer and against three forwards by hand, and what it refuses."""

from __future__ import annotations

import copy
import math
import os

import pytest
import torch
from chiasm.alignment.adapters import language_lora
from chiasm.alignment.branches import plain_logits
from chiasm.alignment.collator import VisualPreferenceCollator
from chiasm.alignment.config import VisualDPOConfig
from chiasm.alignment.losses import sequence_logps, visual_dpo
from chiasm.alignment.trainer import VisualDPOTrainer
from chiasm.models.anatomy import find_anatomy
from chiasm.scenes.errors import UserError
from peft import get_peft_model
from torch import nn
from trl import DPOConfig, DPOTrainer

from .pairs import batch_of, config, dataset, loss_of, moved, rows, tiny, trainer

LOG2 = math.log(2)
LOSSES = {
    "sigmoid": {}, "hinge": {}, "ipo": {}, "exo_pair": dict(label_smoothing=1e-3), "nca_pair": {},
    "robust": dict(label_smoothing=0.1), "bco_pair": {}, "sppo_hard": {}, "aot": {}, "aot_unpaired": {}, "apo_zero": {},
    "apo_down": {}, "discopop": {}, "sft": {}, "sigmoid_norm": {},
}  # fmt: skip
MORE = {
    "mpo": dict(loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0]),
    "weighted": dict(use_weighting=True),
    "ld": dict(ld_alpha=0.5),
    "forward_kl": dict(f_divergence_type="forward_kl"),
}
EVERY = {name: dict(loss_type=[name], **options) for name, options in LOSSES.items()} | MORE


@pytest.fixture(scope="module")
def llava():
    return tiny()


def off_reference(llava, folder, layout="prefix", **options):
    """A trainer whose policy is off its reference, in one of the layouts."""
    model, processor = llava
    sharing = dict(prefix_sharing=layout == "prefix", share_vision_features=layout == "features")
    made = trainer(folder, moved(model), processor, ref_model=copy.deepcopy(model), **sharing | options)
    assert made.layout == layout
    return made


@pytest.fixture(params=["prefix", "rows"])
def tuned(request, llava, tmp_path):
    return off_reference(llava, tmp_path, request.param)


def gradients(model):
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def settle(made, loss_type=("sigmoid",), loss_weights=None, label_smoothing=0.0, **more):
    """Gives a trainer the settings of a loss, as its constructor would. (New arguments would reset accelerate's state.)"""
    made.loss_types, made.label_smoothing = list(loss_type), label_smoothing
    made.loss_weights = loss_weights or [1.0] * len(loss_type)
    made.ld_alpha, made.f_divergence_type = more.get("ld_alpha"), more.get("f_divergence_type", "reverse_kl")
    made.use_weighting = more.get("use_weighting", False)


def all_losses(made) -> dict:
    """Loss and gradients under every loss of TRL."""
    found, examples = {}, [dict(row) for row in made.train_dataset]
    for name, options in EVERY.items():
        settle(made, **options)
        made.model.zero_grad()
        loss = loss_of(made, batch_of(made, [dict(row) for row in examples]))
        loss.backward()
        found[name] = (loss.item(), gradients(made.model))
    return found


@pytest.fixture(scope="module")
def trls(llava, tmp_path_factory, one_thread):
    model, processor = llava
    args = DPOConfig(output_dir=str(tmp_path_factory.mktemp("stock")), report_to="none", max_length=None, use_cpu=True,
                     bf16=False, gradient_checkpointing=False, use_weighting=True)  # fmt: skip
    data = dataset().remove_columns("rejected_images")
    return all_losses(
        DPOTrainer(
            moved(model), ref_model=copy.deepcopy(model), args=args, train_dataset=data, processing_class=processor
        )
    )


@pytest.fixture(scope="module", params=["prefix", "rows", "features"])
def ours(request, llava, tmp_path_factory, trls):
    options = dict(visual_weight=0.0, use_weighting=True, visual_metrics=request.param != "rows")
    return all_losses(off_reference(llava, tmp_path_factory.mktemp("ours"), request.param, **options))


@pytest.mark.parametrize("name", EVERY)
def test_weight_zero_is_trls_loss_and_gradient_for_every_loss(trls, ours, name):
    (loss, wanted), (our_loss, found) = trls[name], ours[name]
    assert our_loss == pytest.approx(loss, abs=1e-6, rel=1e-6)
    largest = max(g.abs().max() for g in wanted.values())
    assert max((wanted[k] - found[k]).abs().max() for k in wanted) <= 1e-6 * max(1.0, largest)


def hand(model, batch):
    n = len(batch["branch"]) // 3
    found = []
    for k in range(3):
        part = {name: value[k * n : (k + 1) * n] for name, value in batch.items()}
        found.append(sequence_logps(plain_logits(model, part), part["labels"]))
    return found


@pytest.mark.parametrize("options", [{}, dict(anchor_weight=0.7, anchor_margin=0.1), dict(visual_loss_type="joint")])
def test_one_pass_is_three_separate_forwards_by_hand(tuned, llava, options, one_thread):
    model, processor = llava
    batch = VisualPreferenceCollator(processor, find_anatomy(model))(rows())
    policy, reference = moved(model), copy.deepcopy(model)
    with torch.no_grad():
        kept = hand(reference, batch)
    wanted = visual_dpo(hand(policy, batch), kept, beta=0.1, **options)[0].mean()
    wanted.backward()
    for name, value in options.items():
        setattr(tuned.args, name, value)
    got = loss_of(tuned)
    got.backward()
    assert got.item() == pytest.approx(wanted.item(), abs=1e-5)
    ours, theirs = gradients(tuned.model), gradients(policy)
    largest = max(g.abs().max() for g in theirs.values())
    assert max((ours[k] - theirs[k]).abs().max() for k in theirs) < 1e-4 * largest
    assert not any(p.grad is not None for p in tuned.ref_model.parameters())


@pytest.mark.parametrize(
    ("options", "n"),
    [(dict(visual_weight=0.0), 1), ({}, 2), (dict(anchor_weight=1.0), 3), (dict(visual_loss_type="joint"), 1)],
)
def test_loss_at_the_start_is_a_number_of_log_twos(llava, tmp_path, options, n):
    model, processor = llava
    assert loss_of(trainer(tmp_path, copy.deepcopy(model), processor, **options)).item() == pytest.approx(
        n * LOG2, abs=1e-5
    )


def test_half_precision_starts_at_two_log_twos(llava, tmp_path):
    model, processor = llava
    made = trainer(tmp_path, copy.deepcopy(model), processor, bf16=True, max_steps=1)
    made.train()
    assert made.state.log_history[0]["loss"] == pytest.approx(2 * LOG2, abs=1e-2)


def margin(made, examples):
    made._metrics["train"].clear()
    loss_of(made, batch_of(made, examples))
    return {name: values[-1] for name, values in made._metrics["train"].items()}


def test_swaps_and_equal_images(tuned, one_thread):
    pairs = rows()
    straight = margin(tuned, pairs)
    images = margin(tuned, [{**p, "images": p["rejected_images"], "rejected_images": p["images"]} for p in pairs])
    assert images["rewards/visual_margins"] == pytest.approx(-straight["rewards/visual_margins"], abs=1e-5)
    answers = margin(tuned, [{**p, "chosen": p["rejected"], "rejected": p["chosen"]} for p in pairs])
    assert answers["rewards/margins"] == pytest.approx(-straight["rewards/margins"], abs=1e-5)
    same = margin(tuned, [{**p, "rejected_images": p["images"]} for p in pairs])
    assert same["rewards/visual_margins"] == pytest.approx(0, abs=1e-5)
    assert same["loss/visual"] == pytest.approx(LOG2, abs=1e-5)


def test_padding_and_batch_mates_do_not_matter(tuned, one_thread):
    pairs, batch = rows(), batch_of(tuned)
    whole = loss_of(tuned, batch).item()
    alone = sum(loss_of(tuned, batch_of(tuned, [pair])).item() for pair in pairs) / len(pairs)
    assert alone == pytest.approx(whole, abs=1e-5)
    fill = {"labels": -100}
    per_token = ("input_ids", "attention_mask", "completion_mask", "labels")
    wider = {k: nn.functional.pad(v, (0, 9), value=fill.get(k, 0)) if k in per_token else v for k, v in batch.items()}
    assert loss_of(tuned, wider).item() == pytest.approx(whole, abs=1e-5)


def test_checkpointing_of_gradients_changes_nothing(llava, tmp_path, one_thread):
    model, processor = llava
    options = dict(ref_model=copy.deepcopy(model), max_steps=2)
    losses = []
    for checkpointing in (False, True):
        made = trainer(tmp_path, moved(model), processor, gradient_checkpointing=checkpointing, **options)
        made.train()
        losses.append([h["loss"] for h in made.state.log_history if "loss" in h])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_rows_of_two_branches_are_refused(tuned):
    batch = batch_of(tuned)
    with pytest.raises(UserError, match="use VisualPreferenceCollator"):
        loss_of(tuned, {k: v for k, v in batch.items() if k != "branch"})
    with pytest.raises(UserError, match="in the order chosen, rejected"):
        loss_of(tuned, batch | {"branch": batch["branch"].flip(0)})
    pairs = [{k: v for k, v in pair.items() if k != "rejected_images"} for pair in rows()]
    made = VisualPreferenceCollator(
        tuned.processing_class, tuned.anatomy, visual=False, distinct_images=tuned.layout != "rows"
    )
    with pytest.raises(UserError, match="this batch has no rejected images"):
        loss_of(tuned, made(pairs))


def test_rejected_images_reach_the_collator_and_evaluate_reports_every_metric(llava, tmp_path):
    model, processor = llava
    made = trainer(
        tmp_path, moved(model), processor, ref_model=copy.deepcopy(model), eval_dataset=dataset(), anchor_weight=1.0
    )
    assert made.args.remove_unused_columns
    assert "rejected_images" in made._remove_unused_columns(made.train_dataset, "training").column_names
    found = made.evaluate()
    for name in ("rewards/visual_rejected", "rewards/visual_margins", "rewards/visual_accuracies", "logps/visual_rejected",
                 "loss/visual", "loss/anchor", "kl/chosen", "rewards/displaced", "rewards/margins"):  # fmt: skip
        assert math.isfinite(found[f"eval_{name}"])


def test_trls_columns_alone_are_dpo_or_refused(llava, tmp_path, caplog):
    model, processor = llava
    data = dataset().remove_columns("rejected_images")
    with pytest.raises(UserError, match=r"visual_weight is 1 and train_dataset has no rejected_images"):
        trainer(tmp_path, copy.deepcopy(model), processor, data)
    caplog.set_level("WARNING", "chiasm")
    made = trainer(tmp_path, copy.deepcopy(model), processor, data, visual_weight=0.0)
    assert "no rejected_images: plain DPO" in caplog.text
    assert loss_of(made).item() == pytest.approx(LOG2, abs=1e-5)
    with pytest.raises(UserError, match="data_collator is a function: use VisualPreferenceCollator"):
        VisualDPOTrainer(copy.deepcopy(model), args=config(tmp_path), train_dataset=dataset(), processing_class=processor,
                         data_collator=rows)  # fmt: skip
    with pytest.raises(UserError, match="no column images"):
        trainer(tmp_path, copy.deepcopy(model), processor, data.remove_columns("images"))


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(llava, tmp_path):
    model, processor = llava
    made = trainer(tmp_path, copy.deepcopy(model), processor, save_strategy="steps", save_steps=1, max_steps=4)
    spoil = made.training_step

    def step(*args, **kwargs):
        if made.state.global_step == 2:
            with torch.no_grad():
                made.model.lm_head.weight.mul_(math.nan)
        return spoil(*args, **kwargs)

    made.training_step = step
    with pytest.raises(UserError, match=r"the loss is not a finite number after step 2.*checkpoint-2"):
        made.train()
    assert (tmp_path / "checkpoint-2" / "trainer_state.json").is_file() and not (tmp_path / "checkpoint-3").exists()


def test_a_gradient_that_is_no_number_changes_no_weight(llava, tmp_path):
    model, processor = llava
    made = trainer(tmp_path, copy.deepcopy(model), processor)
    before = [p.detach().clone() for p in made.model.parameters()]
    made.model.lm_head.weight.register_hook(lambda g: g * math.nan)
    with pytest.raises(UserError, match="a gradient is not a finite number after step 0"):
        made.train()
    assert all(torch.equal(a, b) for a, b in zip(before, made.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(visual_loss_type="chip"), "visual_loss_type 'chip' is not known"),
        (dict(visual_weight=-0.5), "visual_weight is -0.5"),
        (dict(ld_alpha=0.5), "ld_alpha does not go with"),
        (dict(use_weighting=True), "use_weighting does not go with"),
        (dict(f_divergence_type="js_divergence"), "'js_divergence' does not go with"),
        (dict(visual_loss_type="joint", loss_type=["ipo"]), "takes the place of loss_type"),
        (dict(prefix_sharing="always"), "use True, False or 'auto'"),
        (dict(beta=0.0), "beta is 0.0"),
        (dict(visual_beta=-1.0), "visual_beta is -1.0"),
        (dict(reference_cache_dir="x", sync_ref_model=True), "goes stale"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        config(tmp_path, **options)


def test_defaults(tmp_path):
    made = VisualDPOConfig(output_dir=str(tmp_path))
    assert (made.visual_weight, made.anchor_weight, made.beta, made.max_length) == (1.0, 0.0, 0.1, None)
    assert made.bf16 == (torch.cuda.is_available() and torch.cuda.is_bf16_supported())
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_families_that_trls_head_scores_wrongly_or_not_at_all_are_refused(tmp_path):
    model, processor = tiny("aya_vision")  # its language model scales logits, its own forward does not
    with pytest.raises(UserError, match="nats a token from those of its own logits"):
        trainer(tmp_path, model, processor)
    model, processor = tiny("blip2")
    with pytest.raises(UserError, match="does not work with TRL's fused language head"):
        trainer(tmp_path, model, processor, dataset(plain=True))


def test_prefix_sharing_that_is_not_possible_is_refused_or_left_out(tmp_path):
    model, processor = tiny("gemma3")
    made = trainer(tmp_path, copy.deepcopy(model), processor, max_steps=1)
    assert made.layout == "rows"
    made.train()
    assert made.state.log_history[0]["loss"] == pytest.approx(2 * LOG2, abs=1e-4)
    with pytest.raises(UserError, match="prefix_sharing is not possible: gemma3 has layers of sliding attention"):
        trainer(tmp_path, copy.deepcopy(model), processor, prefix_sharing=True)


@pytest.mark.parametrize("family", ["llava_next", "qwen2_vl"])
def test_families_whose_token_counts_depend_on_the_picture(family, tmp_path, one_thread):
    model, processor = tiny(family)
    data = dataset(sizes=((32, 32), (64, 64)))
    made = trainer(
        tmp_path, copy.deepcopy(model), processor, data, peft_config=language_lora(model, rank=4, dropout=0.0)
    )
    assert made.layout == "prefix"
    made.train()
    losses = [h["loss"] for h in made.state.log_history if "loss" in h]
    assert losses[0] == pytest.approx(2 * LOG2, abs=1e-4) and losses[-1] < losses[0]


def test_shared_features_use_each_models_own_vision_side(llava, tmp_path, one_thread):
    model, processor = llava
    losses = []
    for share in (False, True):
        options = dict(prefix_sharing=False, share_vision_features=share)
        made = trainer(tmp_path, moved(model), processor, ref_model=copy.deepcopy(model), **options)
        assert made.layout == ("features" if share else "rows")
        losses.append(loss_of(made).item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_reference_is_copied_from_a_model_in_memory_and_the_model_is_left_alone(llava, tmp_path):
    model, processor = llava
    before = copy.deepcopy(model.state_dict())
    made = trainer(tmp_path, copy.deepcopy(model), processor)
    kept = [x.clone() for x in made.reference_logps(batch_of(made))]
    made.train()
    assert all(torch.equal(a, b) for a, b in zip(kept, made.reference_logps(batch_of(made)), strict=True))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with pytest.raises(UserError, match="use reference_logps"):
        made.compute_ref_log_probs(made.model, batch_of(made))


def test_a_folder_is_loaded_with_its_processor_and_its_reference(llava, tmp_path, one_thread):
    model, processor = llava
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    made = trainer(tmp_path, str(tmp_path / "model"), None, max_steps=1)
    assert made.layout == "prefix" and loss_of(made).item() == pytest.approx(2 * LOG2, abs=1e-5)


def test_a_stream_of_pairs_is_trained_on(llava, tmp_path):
    model, processor = llava
    made = trainer(tmp_path, copy.deepcopy(model), processor, dataset().to_iterable_dataset(), max_steps=2)
    made.train()
    assert made.state.log_history[0]["loss"] == pytest.approx(2 * LOG2, abs=1e-5)


def test_what_trains_nothing_or_moves_its_own_reference_is_refused(llava, tmp_path):
    model, processor = llava
    frozen = copy.deepcopy(model).requires_grad_(False)
    with pytest.raises(UserError, match="no parameter of this model is trained"):
        trainer(tmp_path, frozen, processor)
    wrapped = get_peft_model(copy.deepcopy(model), language_lora(model, rank=4))
    wrapped.get_base_model().model.multi_modal_projector.requires_grad_(True)
    with pytest.raises(UserError, match="are trained outside the adapter"):
        trainer(tmp_path, wrapped, processor)
    with pytest.raises(UserError, match="compute_metrics"):
        VisualDPOTrainer(copy.deepcopy(model), args=config(tmp_path), train_dataset=dataset(), processing_class=processor,
                         compute_metrics=lambda x: {})  # fmt: skip
