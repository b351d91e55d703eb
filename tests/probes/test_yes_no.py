"""Yes and no, read by every rule from awkward answers; and from the probabilities of the first token."""

import math

import pytest
import torch
from chiasm.probes.yes_no import (
    RULES,
    parse_mme,
    parse_yes_no,
    probability_metrics,
    yes_no_ids,
    yes_no_probabilities,
)
from chiasm.scenes.errors import UserError
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

# answer: default, official, opera, vcd with label yes, vcd with label no
AWKWARD = {
    "Yes": ("yes", "yes", "yes", "yes", "yes"),
    "no": ("no", "no", "no", "no", "no"),
    "Yes.": ("yes", "yes", "yes", "yes", "yes"),
    "YES!": ("yes", "yes", "yes", "yes", "yes"),
    "NO": ("no", "yes", "no", "no", "no"),
    "  no \n": ("no", "no", "no", "no", "no"),
    "**No**": ("no", "yes", "yes", "no", "no"),
    '"Yes"': ("yes", "yes", "yes", "yes", "yes"),
    "<b>No</b>": ("no", "yes", "yes", "no", "no"),
    "No, there is a dog.": ("no", "no", "no", "no", "no"),
    "Yes, there is no doubt.": ("yes", "no", "no", "yes", "no"),
    "There is no dog.": ("no", "no", "no", "no", "no"),
    "The answer is yes": ("yes", "yes", "yes", "yes", "yes"),
    "There is a dog.": ("unparsed", "yes", "yes", "no", "yes"),
    "There is not a dog.": ("unparsed", "no", "no", "no", "no"),
    "There isn't a dog.": ("unparsed", "yes", "no", "no", "yes"),
    "I don't know": ("unparsed", "yes", "no", "no", "no"),
    "I know it": ("unparsed", "yes", "yes", "no", "no"),
    "another": ("unparsed", "yes", "yes", "no", "no"),
    "nothing": ("unparsed", "yes", "yes", "no", "no"),
    "not sure": ("unparsed", "no", "no", "no", "no"),
    "none": ("unparsed", "yes", "yes", "no", "no"),
    "yesterday": ("unparsed", "yes", "yes", "yes", "yes"),
    "nope": ("unparsed", "yes", "yes", "no", "no"),
    "snow": ("unparsed", "yes", "yes", "no", "no"),
    "A dog. No cat.": ("unparsed", "yes", "no", "no", "no"),
    "yes and no": ("yes", "no", "no", "yes", "no"),
    "no, or yes": ("no", "no", "no", "yes", "no"),
    "Yes\nNo": ("yes", "yes", "yes", "yes", "no"),
    "": ("unparsed", "yes", "yes", "no", "yes"),
    "...": ("unparsed", "yes", "yes", "no", "yes"),
    "maybe": ("unparsed", "yes", "yes", "no", "yes"),
}


@pytest.mark.parametrize(("answer", "said"), AWKWARD.items(), ids=list(AWKWARD))
def test_awkward_answers(answer, said):
    assert parse_yes_no(answer) == said[0]
    assert parse_yes_no(answer, rule="official") == said[1]
    assert parse_yes_no(answer, rule="opera") == said[2]
    assert parse_yes_no(answer, rule="vcd", label="yes") == said[3]
    assert parse_yes_no(answer, rule="vcd", label="no") == said[4]


@pytest.mark.parametrize("rule", RULES[:3])
def test_only_vcd_looks_at_the_label(rule):
    for answer in AWKWARD:
        assert len({parse_yes_no(answer, rule=rule, label=label) for label in (None, "yes", "no")}) == 1


def test_vcd_calls_both_words_right_and_neither_wrong():
    for label, other in (("yes", "no"), ("no", "yes")):
        assert parse_yes_no("yes or no", rule="vcd", label=label) == label
        assert parse_yes_no("maybe", rule="vcd", label=label) == other


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"answer": "yes", "rule": "mme"}, "default, official, opera, vcd"),
        ({"answer": "yes", "rule": "vcd"}, "label='yes'"),
        ({"answer": "yes", "rule": "vcd", "label": "maybe"}, "'maybe'"),
        ({"answer": None}, "None"),
    ],
)
def test_what_is_refused(arguments, told):
    with pytest.raises(UserError, match=told):
        parse_yes_no(**arguments)


@pytest.mark.parametrize(
    ("answer", "said"),
    [("Yes", "yes"), ("no.", "no"), ("not sure", "no"), ("Hmm yes", "unparsed"), (" Yes", "yes"), ("A no", "no"), ("", "unparsed")],
)  # fmt: skip
def test_mme_looks_at_four_characters(answer, said):
    assert parse_mme(answer) == said


class Words:
    """A tokenizer of whole words, with some as the usual ones have them: a mark for the space before."""

    words = ("<s>", "yes", " Yes", "YES", "no", " No", "not", "eyes", "cat")

    def get_vocab(self):
        return {word.replace(" ", "▁"): i for i, word in enumerate(self.words)}

    def decode(self, ids):
        return "".join(self.words[i] for i in ids)


def test_every_way_to_say_a_word_is_summed_and_no_other():
    assert yes_no_ids(Words()) == ([1, 2, 3], [4, 5])
    p = torch.tensor([[0.1, 0.1, 0.2, 0.05, 0.1, 0.05, 0.2, 0.1, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(yes_no_probabilities(p.log() + 3, Words()), torch.tensor([[0.35, 0.15]]))


def test_a_vocabulary_without_the_words_is_refused():
    class Letters(Words):
        words = ("y", "e", "s", "n", "o")

    with pytest.raises(UserError, match="no token that is 'yes'"):
        yes_no_ids(Letters())


def test_auc_and_calibration_against_torchmetrics():
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(400, len(Words.words), generator=g)
    labels = ["yes" if x else "no" for x in (logits[:, 1] - logits[:, 4] + torch.randn(400, generator=g) > 0).tolist()]
    found = probability_metrics(logits, labels, Words(), images=[i // 4 for i in range(400)])
    both = yes_no_probabilities(logits, Words())
    p, truth = both[:, 0] / both.sum(1), torch.tensor([label == "yes" for label in labels]).long()
    assert found["auc"]["mean"] == pytest.approx(float(binary_auroc(p, truth)), abs=1e-6)
    assert found["ece"]["mean"] == pytest.approx(float(binary_calibration_error(p, truth, n_bins=10)), abs=1e-5)
    assert found["accuracy"]["mean"] == pytest.approx(float(((p > 0.5) == truth).float().mean()))
    assert found["mass"]["mean"] == pytest.approx(float(both.sum(1).mean()))
    assert all(one["low"] <= one["mean"] + 0.05 and one["n"] == 400 for one in found.values())


def test_a_perfectly_sure_and_right_model_is_calibrated_and_one_kind_of_label_has_no_auc():
    logits = torch.full((2, len(Words.words)), -50.0)
    logits[0, 1] = logits[1, 4] = 50
    found = probability_metrics(logits, ["yes", "no"], Words())
    assert found["auc"]["mean"] == 1 and found["ece"]["mean"] == pytest.approx(0) and found["mass"]["mean"] == 1
    assert math.isnan(probability_metrics(logits, ["yes", "yes"], Words())["auc"]["mean"])
    with pytest.raises(UserError, match="for 3 labels"):
        probability_metrics(logits, ["yes"] * 3, Words())


def test_the_organism_says_yes_and_no_in_one_token():
    from chiasm.models import open_vlm

    yes, no = yes_no_ids(open_vlm("organism").processor.tokenizer)
    assert len(yes) == len(no) == 1
