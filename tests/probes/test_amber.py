"""AMBER by hand: pooled descriptions, questions with no as the positive answer, and the release's quirks."""

import pytest
from chiasm.probes.amber import amber_metrics
from chiasm.scenes.errors import UserError

ANNOTATIONS = [
    {"id": 1, "type": "generative", "truth": ["dog", "sky", "dog"], "hallu": ["cat", "leash"]},
    {"id": 2, "type": "generative", "truth": ["car"], "hallu": ["person"]},
    {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 4, "type": "discriminative-attribute-state", "truth": "yes"},
    {"id": 5, "type": "discriminative-attribute-number", "truth": "no"},
    {"id": 6, "type": "discriminative-relation", "truth": "yes"},
    {"id": 7, "type": "relation", "truth": "no"},
]
RESPONSES = [
    {"id": 7, "response": "Yes"},
    {"id": 6, "response": "Yes."},
    {"id": 5, "response": "No"},
    {"id": 4, "response": "No"},
    {"id": 3, "response": "No."},
    {"id": 2, "response": "It is nice."},
    {"id": 1, "response": "Dogs, a puppy and kittens play by a tree and a scene; cats watch. grass"},
]
ASSOCIATIONS = {
    "dog": ["puppy"],
    "cat": ["kitten"],
    "sky": [],
    "leash": [],
    "tree": [],
    "grass": [],
    "car": [],
    "person": ["man"],
}


def score(responses=RESPONSES, annotations=ANNOTATIONS, **options):
    return amber_metrics(responses, annotations, **{"associations": ASSOCIATIONS, "safe_words": ["grass"]} | options)


def means(metrics):
    return {name: one["mean"] for name, one in metrics.items()}


def test_descriptions_by_hand():
    found = score()
    # mentioned: dog, puppy, KITTEN, TREE, CAT, grass (safe, in the denominator); scene is no object
    assert found["chair"] == pytest.approx(found["chair"] | {"mean": 3 / 6, "n": 2})
    assert found["cover"]["mean"] == pytest.approx(1 / 3)  # dog of dog, sky, car: a dog listed twice is one
    assert found["hal"]["mean"] == 1 / 2
    assert found["cog"]["mean"] == pytest.approx(1 / 3)  # cat of cat, leash, person
    assert found["cog_mentioned"]["mean"] == pytest.approx(2 / 6)  # kitten and cat


def test_questions_by_hand_and_both_spellings_of_relation():
    found = score()
    assert means(found["existence"]) == {"accuracy": 1, "precision": 1, "recall": 1, "f1": 1}
    assert means(found["state"]) == {"accuracy": 0, "precision": 0, "recall": 0, "f1": 0}
    assert means(found["number"])["f1"] == 1
    assert means(found["attribute"]) == pytest.approx({"accuracy": 0.5, "precision": 0.5, "recall": 1, "f1": 2 / 3})
    assert means(found["relation"]) == {"accuracy": 0.5, "precision": 0, "recall": 0, "f1": 0}
    assert means(found["discriminative"]) == pytest.approx(
        {"accuracy": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3}
    )
    assert found["discriminative"]["f1"]["n"] == 5 and found["relation"]["f1"]["n"] == 2
    assert found["score"]["mean"] == pytest.approx(50 * (1 - 0.5 + 2 / 3)) and found["score"]["n"] == 7
    assert "action" not in found


def test_pooled_and_not_a_mean_of_ratios():
    annotations = [{"id": i, "type": "generative", "truth": ["dog"], "hallu": []} for i in range(2)]
    found = score([{"id": 0, "response": "dog dog dog"}, {"id": 1, "response": "cat"}], annotations)
    assert found["chair"]["mean"] == 1 / 4 and found["cover"]["mean"] == 1 / 2


def test_no_objects_no_division():
    found = score([{"id": 1, "response": ""}], [{"id": 1, "type": "generative", "truth": [], "hallu": []}])
    assert set(means(found).values()) == {0.0} and "score" not in found and "discriminative" not in found


def test_quirks_of_the_release():
    found = score(compat=True)
    # "Dogs" has a capital: puppy, KITTEN, TREE, CAT, grass; the dog counts twice in truth, once as mentioned
    assert found["chair"]["mean"] == pytest.approx(3 / 5.001)
    assert found["cover"]["mean"] == pytest.approx(1 / 4.001)
    assert found["hal"]["mean"] == pytest.approx(1 - 1 / 2.001)
    assert found["cog"]["mean"] == pytest.approx(1 / 3.001)
    assert found["existence"]["accuracy"]["mean"] == 0  # "No." is not "No"
    assert found["number"]["f1"]["mean"] == pytest.approx(2 * 0.999**2 / (2 * 0.999 + 0.0001))
    one = score([{"id": 3, "response": "No"}], ANNOTATIONS[2:3], compat=True)
    assert one["existence"]["f1"]["mean"] == pytest.approx(2 * 0.999**2 / (2 * 0.999 + 0.001))


def test_similar_words_rescue_but_not_what_is_listed_as_likely():
    alike = {("tree", "sky"): 0.9, ("cat", "dog"): 0.9, ("kitten", "dog"): 0.9}

    def similar(a, b):
        return alike.get((a, b), 0.0)

    assert score(similar=similar)["chair"]["mean"] == pytest.approx(2 / 6)
    assert score(similar=similar)["cover"]["mean"] == pytest.approx(2 / 3)
    assert score(similar=similar, compat=True)["chair"]["mean"] == 0


def test_vocabulary_says_what_is_an_object():
    assert score(vocabulary=["dog", "tree"])["chair"]["mean"] == 1 / 2
    assert score(vocabulary=["DOG", "Tree"])["chair"]["mean"] == 1 / 2


def test_ids_join_as_text_and_images_are_units():
    text = [{**one, "id": str(one["id"])} for one in RESPONSES]
    assert score(text)["chair"] == score()["chair"]
    by_image = score(images={one["id"]: one["id"] % 2 for one in ANNOTATIONS})
    assert by_image["chair"]["mean"] == score()["chair"]["mean"] and by_image["chair"]["low"] >= 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"responses": RESPONSES[:-1]}, "id '1' has no response"),
        ({"responses": [*RESPONSES, RESPONSES[0]]}, "id 7 has two responses"),
        ({"annotations": [{"id": 1, "type": "other", "truth": "no"}]}, "type 'other'"),
        ({"annotations": [{"id": 3, "type": "relation", "truth": "perhaps"}]}, "'perhaps'"),
        ({"images": {1: "a"}}, "id '2' has no image"),
        ({"annotations": []}, "no answers"),
    ],
)
def test_what_is_refused(options, told):
    with pytest.raises(UserError, match=told):
        score(**options)
