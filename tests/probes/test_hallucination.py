"""POPE, CHAIR, MME and HallusionBench by hand; what has no denominator; what is refused; the organism against its own table."""

import math

import numpy as np
import pytest
from chiasm.probes.hallucination import (
    chair_metrics,
    hallusion_metrics,
    mme_metrics,
    pope_metrics,
    pope_splits,
    same_length,
    scene_synonyms,
)
from chiasm.scenes.benchmarks import caption_set, chair, pope_questions
from chiasm.scenes.errors import UserError
from chiasm.scenes.words import mentions
from chiasm.scenes.world import make_scene, split_seeds


def means(metrics):
    return {name: one["mean"] for name, one in metrics.items()}


def check_shape(metrics, n):
    for one in metrics.values():
        assert set(one) == {"mean", "low", "high", "n"} and one["n"] == n
        assert all(isinstance(one[key], float) for key in ("mean", "low", "high"))


def test_pope_by_hand():
    answers = ["Yes.", "Yes", "No", "Yes, a dog", "No.", "no", "perhaps", "I don't know"]
    labels = ["yes", "yes", "yes", "no", "no", "no", "yes", "no"]
    found = pope_metrics(answers, labels, images=list("aabbccdd"))
    assert means(found) == pytest.approx(
        {
            "accuracy": 4 / 8,
            "precision": 2 / 3,
            "recall": 2 / 4,
            "f1": 4 / 7,
            "yes_ratio": 3 / 8,
            "unparsed_rate": 2 / 8,
        }
    )
    check_shape(found, 8)
    assert found["accuracy"]["low"] < 0.5 < found["accuracy"]["high"]
    assert found == pope_metrics(answers, [label.title() for label in labels], images=list("aabbccdd"))


def test_an_unparsed_answer_is_wrong_whatever_the_label():
    for label in ("yes", "no"):
        assert means(pope_metrics(["another one"] * 3, [label] * 3))["accuracy"] == 0


def test_pope_rules_disagree_on_the_same_answers():
    answers, labels = ["Yes, no doubt", "another", "maybe", "no"], ["yes", "no", "no", "yes"]
    accuracy = {
        rule: means(pope_metrics(answers, labels, rule=rule))["accuracy"]
        for rule in ("default", "official", "opera", "vcd")
    }
    assert accuracy == {"default": 0.25, "official": 0, "opera": 0, "vcd": 0.5}


def test_pope_never_divides_by_zero():
    none_said = means(pope_metrics(["no", "no"], ["yes", "no"]))
    assert none_said["precision"] == none_said["recall"] == none_said["f1"] == 0
    none_true = means(pope_metrics(["yes", "no"], ["no", "no"]))
    assert none_true["recall"] == none_true["f1"] == 0 and none_true["accuracy"] == 0.5


def test_all_intervals_are_finite_and_in_order():
    rng = np.random.default_rng(0)
    labels = ["yes", "no"] * 300
    answers = [label if right else "?" for label, right in zip(labels, rng.random(600) < 0.8, strict=True)]
    for name, one in pope_metrics(answers, labels, images=np.arange(600) // 6).items():
        assert one["low"] <= one["mean"] <= one["high"], name
    assert pope_metrics(answers, labels)["accuracy"] == pope_metrics(answers, labels)["accuracy"]


def test_the_mean_over_splits_draws_images_of_all_splits_together():
    rng = np.random.default_rng(0)
    hard = np.repeat(rng.random(100) < 0.4, 2)  # an image is hard in every split
    labels = {split: ["yes", "no"] * 100 for split in ("random", "popular", "adversarial")}
    answers = {
        split: ["no" if h and y == "yes" else y for h, y in zip(hard, ys, strict=True)] for split, ys in labels.items()
    }
    images = {split: list(np.arange(200) // 2) for split in labels}
    found = pope_splits(answers, labels, images)
    assert list(found) == ["random", "popular", "adversarial", "mean"]
    assert (
        means(found["mean"])
        == pytest.approx(means(found["random"]))
        == means(pope_metrics(answers["random"], labels["random"]))
    )
    assert found["random"]["accuracy"]["n"] == 200 and found["mean"]["accuracy"]["n"] == 600
    wide, alone = (one["mean"]["accuracy"] for one in (found, pope_splits(answers, labels)))
    assert wide["high"] - wide["low"] > 1.4 * (alone["high"] - alone["low"])  # 600 answers are not 600 samples
    assert wide["high"] - wide["low"] == pytest.approx(
        found["random"]["accuracy"]["high"] - found["random"]["accuracy"]["low"], rel=0.05
    )
    with pytest.raises(UserError, match="by split"):
        pope_splits(answers, {"random": labels["random"]})


def test_chair_by_hand():
    captions = ["A dog, a dog and two cats on a couch.", "Some men with a frisbee", "It is sunny.", ""]
    truth = [["dog", "couch", "tv"], ["person"], ["car"], []]
    found = chair_metrics(captions, truth)
    mentions_said, invented = 6, 2  # dog dog CAT couch, person FRISBEE
    assert means(found) == pytest.approx({
        "chair_s": 2 / 4, "chair_i": invented / mentions_said, "recall": 3 / 5, "f1": 2 * (4 / 6) * (3 / 5) / (4 / 6 + 3 / 5),
        "mean_length": (10 + 5 + 3) / 4, "objects_per_caption": 6 / 4,
    })  # fmt: skip
    check_shape(found, 4)


def test_captions_without_mentions_add_nothing_and_divide_by_nothing():
    silent = means(chair_metrics(["", "It is nice."], [["dog"], []]))
    assert silent["chair_s"] == silent["chair_i"] == silent["recall"] == silent["f1"] == 0
    assert means(chair_metrics(["skiing"], [[]]))["chair_i"] == 0
    with_empty, without = (means(chair_metrics(["a cat"] + [""] * k, [["dog"]] + [[]] * k)) for k in (1, 0))
    assert with_empty["chair_i"] == without["chair_i"] == 1 and with_empty["chair_s"] == 0.5


def test_people_are_persons_and_repeats_count():
    assert means(chair_metrics(["men and women", "people"], [["person"], ["person"]]))["chair_i"] == 0
    assert means(chair_metrics(["cat cat cat dog"], [["dog"]]))["chair_i"] == 0.75


def test_chair_falls_with_length_and_equal_lengths_show_it():
    long = ["A dog. A cat. A bus."] * 4
    short = ["A dog."] * 4
    truth = [["dog"]] * 4
    assert means(chair_metrics(long, truth))["chair_i"] > means(chair_metrics(short, truth))["chair_i"]
    cut = same_length({"long": long, "short": short})
    assert chair_metrics(cut["long"], truth) == chair_metrics(cut["short"], truth)


def test_mme_by_hand():
    answers = ["Yes", "No", "Yes", "Yes", "not sure", "No", "well yes", "No"]
    labels = ["yes", "no", "yes", "no", "no", "no", "yes", "no"]
    found = mme_metrics(answers, labels)
    assert means(found) == pytest.approx(
        {"accuracy": 6 / 8, "accuracy_plus": 2 / 4, "score": 125, "unparsed_rate": 1 / 8}
    )
    assert found["accuracy"]["n"] == 8 and found["accuracy_plus"]["n"] == 4
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    named = mme_metrics([answers[i] for i in order], [labels[i] for i in order], images=["abcd"[i // 2] for i in order])
    assert means(named) == means(found)
    assert means(mme_metrics(["yes", "no"], ["yes", "no"]))["score"] == 200
    with pytest.raises(UserError, match="two questions an image, got 3"):
        mme_metrics(["yes"] * 3, ["yes"] * 3)


def test_hallusion_by_hand():
    #           figure 1 (orig)  figure 2 (edited)  no figure   another set
    answers = ["yes", "no", "yes", "yes", "no", "no", "eh", "yes"]
    labels = ["yes", "no", "no", "yes", "no", "no", "yes", "yes"]
    images = ["s1_1", "s1_1", "s1_2", "s1_2", None, None, "s2_1", "s2_2"]
    pairs = ["s1_a", "s1_b", "s1_a", "s1_b", "s1_a", "s1_b", "s2_a", "s2_b"]
    # s1_b: no/no, yes/yes, no/no are right; s1_a is wrong on figure 2; s2_a is unparsed
    found = hallusion_metrics(answers, labels, images=images, pairs=pairs)
    assert means(found) == pytest.approx(
        {"accuracy": 6 / 8, "figure_accuracy": 2 / 4, "pair_accuracy": 2 / 4, "unparsed_rate": 1 / 8}
    )
    assert {name: one["n"] for name, one in found.items()} == {
        "accuracy": 8, "figure_accuracy": 4, "pair_accuracy": 4, "unparsed_rate": 8,
    }  # fmt: skip
    with pytest.raises(UserError, match="3 pairs for 8 answers"):
        hallusion_metrics(answers, labels, images=images, pairs=pairs[:3])


def test_figures_that_share_a_question_are_one_unit():
    linked = hallusion_metrics(["yes", "no"], ["yes", "yes"], images=["a", "b"], pairs=["q", "q"])["accuracy"]
    apart = hallusion_metrics(["yes", "no"], ["yes", "yes"], images=["a", "b"], pairs=["q", "r"])["accuracy"]
    assert math.isnan(linked["low"]) and apart["low"] == 0 and apart["high"] == 1


@pytest.mark.parametrize(
    ("score", "told"),
    [
        (lambda: pope_metrics(["yes"], ["yes", "no"]), "1 answers, 2 labels"),
        (lambda: pope_metrics(["yes"], ["maybe"]), "'yes' or 'no', got 'maybe'"),
        (lambda: pope_metrics(["yes"], ["yes"], rule="mme"), "default, official, opera, vcd"),
        (lambda: pope_metrics(["yes"], ["yes"], images=[1, 2]), "2 images for 1"),
        (lambda: pope_metrics([], []), "no answers"),
        (lambda: chair_metrics(["a dog"], []), "1 captions, 0 truths"),
        (lambda: chair_metrics(["a dog"], [["unicorn"]]), "'unicorn'"),
        (lambda: chair_metrics([], []), "no answers"),
        (lambda: mme_metrics(["yes"] * 2, ["yes"]), "2 answers, 1 labels"),
    ],
)
def test_what_is_refused(score, told):
    with pytest.raises(UserError, match=told):
        score()


def test_the_organism_scores_as_its_own_table_counts():
    from chiasm.models.organism import load_organism
    from chiasm.models.organism.ask import answer
    from chiasm.models.organism.traits import chair_rows, first_word

    member = load_organism("tuned")
    questions = pope_questions([make_scene(seed) for seed in split_seeds("test", 40)], "adversarial")
    said, labels = answer(member, questions), [q.answer for q in questions]
    found = pope_metrics(said, labels, images=[q.truth["scene"].seed for q in questions])
    assert found["accuracy"]["mean"] == np.mean([first_word(a) == label for a, label in zip(said, labels, strict=True)])
    assert found["unparsed_rate"]["mean"] == 0 < found["f1"]["mean"]
    samples = caption_set(40)
    texts = answer(member, samples, 40)
    truth = [sample.truth["scene"].categories() for sample in samples]
    found = chair_metrics(texts, truth, synonyms=scene_synonyms())
    theirs = {row["trait"].removeprefix("x_"): row["mean"] for row in chair_rows("x", samples, texts)}
    assert {name: found[name]["mean"] for name in ("chair_i", "chair_s", "recall")} == pytest.approx(
        {name: theirs[name] for name in ("chair_i", "chair_s", "recall")}
    )
    assert found["objects_per_caption"]["mean"] == pytest.approx(
        np.mean([chair(mentions(t), s.truth["scene"])["mentioned"] for t, s in zip(texts, samples, strict=True)])
    )
