"""Cached reference log-probabilities: equal to live ones, one call of the model a step, and never those of something else."""

from __future__ import annotations

import copy

import pytest
import torch
from chiasm.alignment import reference_cache
from chiasm.alignment.adapters import language_lora
from chiasm.alignment.collator import REFERENCE_COLUMNS
from chiasm.scenes.errors import UserError

from .pairs import batch_of, dataset, loss_of, moved, tiny, trainer


@pytest.fixture(scope="module")
def llava():
    return tiny()


@pytest.fixture(scope="module")
def data():
    return dataset(5)


def calls_of(model) -> list:
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def cached(folder, llava, data, **options):
    model, processor = llava
    options = dict(ref_model=copy.deepcopy(model)) | options
    return trainer(folder, moved(model), processor, data, reference_cache_dir=str(folder / "cache"), **options)


@pytest.mark.parametrize("sharing", [True, False])
def test_cached_equals_live_with_one_call_a_step(llava, data, tmp_path, sharing):
    model, processor = llava
    live = trainer(tmp_path, moved(model), processor, data, ref_model=copy.deepcopy(model), prefix_sharing=sharing)
    wanted, batch = loss_of(live).item(), batch_of(live)
    references = live.reference_logps(batch)
    made = cached(tmp_path, llava, data, prefix_sharing=sharing, max_steps=2)
    for name, values in zip(REFERENCE_COLUMNS, references, strict=True):
        torch.testing.assert_close(torch.tensor(made.train_dataset[name]), values, rtol=0, atol=1e-4)
    assert loss_of(made).item() == pytest.approx(wanted, abs=1e-5)
    policy, reference = calls_of(made.model), calls_of(made.ref_model)
    made.train()
    assert (len(policy), len(reference)) == (2, 0)


def test_the_reference_of_full_tuning_is_dropped_once_it_is_cached(llava, data, tmp_path):
    model, processor = llava
    made = trainer(
        tmp_path,
        copy.deepcopy(model),
        processor,
        data,
        precompute_ref_log_probs=True,
        eval_dataset={"held": dataset(2, seed=3)},
    )
    assert made.ref_model is None and not (tmp_path / "cache").exists()
    assert loss_of(made).item() == pytest.approx(1.386294, abs=1e-5)
    assert {"eval_held_loss", "eval_rewards/visual_margins"} <= set(made.evaluate())  # TRL's names for several sets
    with pytest.raises(UserError, match="no reference model was kept"):
        made.evaluate(dataset(2, seed=4))


def test_with_an_adapter_the_cache_is_of_the_model_without_it(llava, data, tmp_path):
    model, processor = llava
    lora = language_lora(model, rank=4, dropout=0.0)
    made = trainer(
        tmp_path, copy.deepcopy(model), processor, data, peft_config=lora, reference_cache_dir=str(tmp_path / "cache")
    )
    calls = calls_of(made.model.get_base_model())
    assert loss_of(made).item() == pytest.approx(1.386294, abs=1e-5) and len(calls) == 1
    before = reference_cache.reference_hash(made.model)
    made.train()
    assert reference_cache.reference_hash(made.model) == before


def files(folder):
    return sorted((folder / "cache").glob("*.parquet"))


def test_it_is_read_again_and_made_anew_for_other_weights_data_or_templates(llava, data, tmp_path, monkeypatch):
    model, processor = llava
    made = cached(tmp_path, llava, data)
    assert len(files(tmp_path)) == 1
    computed = []
    compute = type(made)._compute_references
    monkeypatch.setattr(type(made), "_compute_references", lambda self, *a: computed.append(1) or compute(self, *a))
    again = cached(tmp_path, llava, data)
    assert not computed and again.train_dataset[REFERENCE_COLUMNS[0]] == made.train_dataset[REFERENCE_COLUMNS[0]]
    cached(tmp_path, llava, data, ref_model=moved(model, seed=5))
    cached(tmp_path, llava, dataset(5, seed=7))
    template = processor.chat_template
    try:
        processor.chat_template = template.replace("<eos>", "yes <eos>")
        cached(tmp_path, llava, data)
    finally:
        processor.chat_template = template
    assert len(computed) == 3 and len(files(tmp_path)) == 4


def test_a_file_that_is_broken_or_holds_other_numbers_is_not_used(llava, data, tmp_path, caplog):
    made = cached(tmp_path, llava, data)
    (path,) = files(tmp_path)
    right = made.train_dataset[REFERENCE_COLUMNS[0]]
    key = path.stem.removeprefix("reference-")
    wrong = {name: [v + 0.5 for v in made.train_dataset[name]] for name in REFERENCE_COLUMNS}
    reference_cache.write_cache(path.parent, key, wrong)
    caplog.set_level("WARNING", "chiasm")
    assert cached(tmp_path, llava, data).train_dataset[REFERENCE_COLUMNS[0]] == pytest.approx(right)
    assert "are not those of this model" in caplog.text
    path.write_bytes(b"PAR1 nothing")
    assert cached(tmp_path, llava, data).train_dataset[REFERENCE_COLUMNS[0]] == pytest.approx(right)
    reference_cache.write_cache(path.parent, key, {name: v[:2] for name, v in wrong.items()})
    assert reference_cache.read_cache(path.parent, key, REFERENCE_COLUMNS, 5) is None
    assert reference_cache.read_cache(path.parent, "other", REFERENCE_COLUMNS, 5) is None


def test_columns_that_came_with_the_data_are_checked(llava, data, tmp_path):
    model, processor = llava
    made = cached(tmp_path, llava, data)
    columns = {name: made.train_dataset[name] for name in REFERENCE_COLUMNS}
    given = reference_cache.with_columns(data, columns)
    options = dict(ref_model=copy.deepcopy(model))
    good = trainer(tmp_path, moved(model), processor, given, **options)
    reference = calls_of(good.ref_model)
    loss_of(good)
    assert not reference
    stale = reference_cache.with_columns(data, columns | {REFERENCE_COLUMNS[2]: [0.0] * 5})
    with pytest.raises(UserError, match="is not that of this reference model: remove the columns"):
        trainer(tmp_path, moved(model), processor, stale, **options)
    with pytest.raises(UserError, match="lacks ref_visual_logps"):
        trainer(tmp_path, moved(model), processor, given.remove_columns(REFERENCE_COLUMNS[2]), **options)


def test_streams_are_refused(llava, data, tmp_path):
    with pytest.raises(UserError, match="cannot be cached for a IterableDataset"):
        cached(tmp_path, llava, data.to_iterable_dataset())


def test_rows_that_are_compared_are_spread():
    assert reference_cache.spread(3, 4) == [0, 1, 2]
    assert reference_cache.spread(100, 4) == [0, 33, 66, 99]
