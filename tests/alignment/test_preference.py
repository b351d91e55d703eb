"""What tuning did to pairs: log-probabilities are those of training, quantities by hand, pictures swapped."""

import numpy as np
import pytest
import torch
from chiasm.alignment.preference import PairLogps, likelihoods, pair_logps, rewards, shown_with
from chiasm.alignment.trainer import VisualDPOTrainer
from chiasm.models import open_vlm
from chiasm.scenes.errors import UserError
from datasets import Dataset

from .pairs import config, moved, rows, tiny


def logps(chosen, rejected, visual=None, tokens=None):
    tensors = [None if x is None else torch.tensor(x, dtype=torch.float64) for x in (chosen, rejected, visual)]
    return PairLogps(*tensors, torch.tensor(tokens or [1] * len(chosen)))


def test_log_probabilities_are_those_of_the_trainer(tmp_path):
    model, processor = tiny()
    examples = rows(5)
    ours = pair_logps(open_vlm(model=moved(model), processor=processor), examples, batch_size=2)
    trainer = VisualDPOTrainer(
        model, args=config(tmp_path), train_dataset=Dataset.from_list(examples), processing_class=processor, ref_model=moved(model)
    )  # fmt: skip
    theirs = trainer.reference_logps(trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset))))
    for a, b in zip((ours.chosen, ours.rejected, ours.visual), theirs, strict=True):
        assert torch.allclose(a, b.double(), atol=1e-4)
    assert len(ours) == 5 and (ours.tokens >= 6).all()


def test_rewards_by_hand():
    policy = logps([-1.0, -4.0, -2.0], [-3.0, -2.0, -2.0], [-5.0, -9.0, -2.0], [2, 4, 1])
    reference = logps([-2.0, -2.0, -2.0], [-2.0, -2.0, -2.0], [-2.0, -8.0, -2.0], [2, 4, 1])
    found = {name: values.tolist() for name, values in rewards(policy, reference, beta=0.5).items()}
    assert found["text_margin"] == [1.0, -1.0, 0.0] and found["text_accuracy"] == [1, 0, 0.5]
    assert found["visual_margin"] == [2.0, -0.5, 0.0] and found["visual_accuracy"] == [1, 0, 0.5]
    assert found["chosen_reward"] == [0.5, -1.0, 0.0] and found["displaced"] == [0, 1, 0]
    assert found["drift"] == [0.5, -0.5, 0.0]
    own = {name: values.tolist() for name, values in likelihoods(policy).items()}
    assert own == {"prefers_chosen": [1, 0, 0.5], "prefers_image": [1, 1, 0.5], "chosen_logp_a_token": [-0.5, -1, -2]}


def test_a_model_against_itself_has_no_margin():
    model, processor = tiny()
    vlm = open_vlm(model=model, processor=processor)
    one, again = (pair_logps(vlm, rows(3)) for _ in range(2))
    found = rewards(one, again)
    assert not any(found[name].any() for name in ("text_margin", "visual_margin", "displaced", "drift"))


def test_two_branches_are_enough():
    model, processor = tiny()
    found = pair_logps(open_vlm(model=model, processor=processor), rows(2), visual=False)
    assert found.visual is None and "visual_margin" not in rewards(found, found)
    assert set(likelihoods(found)) == {"prefers_chosen", "chosen_logp_a_token"}


def test_other_pictures():
    pairs = rows(3)
    other, blank = shown_with(pairs, "other"), shown_with(pairs, "blank")
    assert other[0]["images"] is pairs[1]["images"] and other[2]["images"] is pairs[0]["images"]
    assert blank[0]["images"][0].size == pairs[0]["images"][0].size and np.ptp(np.asarray(blank[0]["images"][0])) == 0
    assert shown_with(pairs, "own")[1]["images"] is pairs[1]["images"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pair_logps(None, []), "no preference pairs"),
        (lambda: shown_with(rows(1), "other"), "two or more"),
        (lambda: shown_with(rows(1), "torn"), "own, other, blank"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_other_pairs_are_no_reference():
    with pytest.raises(ValueError, match="give the same"):
        rewards(logps([1.0], [1.0]), logps([1.0, 2.0], [1.0, 2.0]))
