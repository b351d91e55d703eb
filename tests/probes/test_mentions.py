"""The objects a caption mentions: words, plurals, pairs, in each mode; the rendered world's words; sentences."""

import sys
from types import ModuleType

import pytest
from chiasm.probes.coco_words import ANIMALS, COCO, NO_OBJECT, VEHICLES
from chiasm.probes.mentions import Matcher, first_sentences, same_length, scene_synonyms, singular
from chiasm.scenes.benchmarks import chair, description_set
from chiasm.scenes.errors import UserError
from chiasm.scenes.words import mentions
from chiasm.scenes.world import CATEGORIES

CAPTIONS = {
    "Two men, three women and some people with children.": ["person"] * 4,
    "Policemen and firemen": ["person", "person"],
    "skiing": [],
    "A man skiing on his skis": ["person", "skis"],
    "A dog chases a dog.": ["dog", "dog"],
    "wine glasses and a wine glass": ["wine glass", "wine glass"],
    "glasses": [],
    "He slides into home plate near the train tracks": [],
    "a train on the train track": ["train"],
    "a motor bike and two motorbikes": ["motorcycle"] * 2,
    "Traffic lights, a stop sign, hot-dogs and teddy bears": ["traffic light", "stop sign", "hot dog", "teddy bear"],
    "a baby elephant, an adult polar bear and a baby": ["elephant", "bear", "person"],
    "a passenger jet beside a passenger train with a passenger": ["airplane", "train", "person"],
    "A bow tie": ["tie"],
    "the toilet seat": ["toilet"],
    "a toilet with its seat up": ["toilet"],
    "a seat": ["chair"],
    "a man's dog": ["person", "dog"],
    "buses, benches, knives, mice, sheep, geese, vases, TVs, pizzas, taxis, couches": [
        "bus", "bench", "knife", "mouse", "sheep", "bird", "vase", "tv", "pizza", "car", "couch",
    ],
    "ponies and puppies": ["horse", "dog"],
    "tennis rackets on a tennis court": ["tennis racket"],
    "scissors": ["scissors"],
    "It is nice here.": [],
    "": [],
}  # fmt: skip


def test_places_are_where_the_words_stand():
    text = "Two Men beside a stop sign; hot-dogs."
    places = Matcher().places(text)
    assert [(name, text[start:end]) for name, start, end in places] == [
        ("person", "Men"), ("stop sign", "stop sign"), ("hot dog", "hot-dogs"),
    ]  # fmt: skip


@pytest.mark.parametrize("caption", CAPTIONS)
def test_there_is_a_place_for_every_mention(caption):
    matcher = Matcher()
    assert [name for name, start, end in matcher.places(caption) if caption[start:end]] == matcher(caption)


@pytest.mark.parametrize("mode", ["nouns", "singular"])
@pytest.mark.parametrize(("caption", "found"), CAPTIONS.items(), ids=list(CAPTIONS))
def test_hand_made_captions(caption, found, mode):
    assert Matcher(mode=mode)(caption) == found


def test_the_table_has_cocos_categories_and_each_word_means_one():
    assert len(COCO) == 80 and all(words[0] == name for name, words in COCO.items())
    assert max(COCO, key=lambda name: len(COCO[name])) == "person"
    assert {*ANIMALS, *VEHICLES} <= COCO.keys()
    matcher = Matcher()
    for name, words in COCO.items():
        for word in words:
            assert matcher(f"There is {word} here.") == [name], word
    assert all(matcher(pair) == matcher(f"{pair}s") == [] for pair in NO_OBJECT)


@pytest.mark.parametrize(
    ("plural", "one"),
    [("houses", "house"), ("glasses", "glass"), ("boxes", "box"), ("watches", "watch"), ("cities", "city"), ("ties", "tie"),
     ("bus", "bus"), ("tennis", "tennis"), ("this", "this"), ("grandchildren", "grandchild"), ("sizes", "size"),
     ("headaches", "headache"), ("dishes", "dish"), ("is", "is"), ("grass", "grass")],
)  # fmt: skip
def test_singulars(plural, one):
    assert singular(plural) == one == singular(one)


def test_modes_differ_in_what_is_left_as_written():
    rows = {"glasses": ["glasses"], "glass": ["glass"]}
    assert Matcher(rows)("glasses and glass") == ["glasses", "glass"]
    assert Matcher(rows, "singular")("glasses and glass") == ["glass", "glass"]


def test_own_synonyms():
    matcher = Matcher({"cat": ["kitten", "big cat"], "tree": []})
    assert matcher("Kittens, a big cat, trees and a dog") == ["cat", "cat", "tree"]
    with pytest.raises(UserError, match="'pet' stands for 'cat' and for 'dog'"):
        Matcher({"cat": ["pet"], "dog": ["pet"]})
    with pytest.raises(UserError, match="give a list of words"):
        Matcher({"cat": "kitten"})
    with pytest.raises(UserError, match="nouns, singular, lemma"):
        Matcher(mode="stem")
    with pytest.raises(UserError, match="None"):
        matcher(None)


def test_lemmas_without_nltk_or_its_data_are_refused_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(UserError, match=r"pip install .chiasm.lemma."):
        Matcher(mode="lemma")
    fake_nltk(monkeypatch, missing=True)
    with pytest.raises(UserError, match=r"nltk\.downloader averaged_perceptron_tagger_eng wordnet"):
        Matcher(mode="lemma")


def test_lemmas_keep_what_the_forks_got_wrong(monkeypatch):
    fake_nltk(monkeypatch)
    matcher = Matcher(mode="lemma")
    assert matcher("Men are skiing. Dogs.") == ["skis", "dog"]


def fake_nltk(monkeypatch, missing: bool = False) -> None:
    """nltk, as far as it is used: it finds no lemma of men, and the verb of skiing."""
    nltk, stem = ModuleType("nltk"), ModuleType("nltk.stem")

    def pos_tag(words):
        if missing:
            raise LookupError
        return [(word, "VBG" if word.endswith("ing") else "NNS") for word in words]

    class WordNetLemmatizer:
        def lemmatize(self, word, pos):
            return {("skiing", "v"): "ski", ("dogs", "n"): "dog"}.get((word, pos), word)

    nltk.pos_tag, stem.WordNetLemmatizer = pos_tag, WordNetLemmatizer
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    monkeypatch.setitem(sys.modules, "nltk.stem", stem)


def test_the_worlds_words_are_found_as_the_world_finds_them():
    matcher = Matcher(scene_synonyms())
    assert matcher.names == set(CATEGORIES)
    for sample in description_set(60):
        assert matcher(sample.answer) == mentions(sample.answer)
        assert chair(matcher(sample.answer), sample.truth["scene"])["hallucinated"] == 0
    assert matcher("two cups , sheep , buses and a Starfish.") == ["cup", "sheep", "bus", "starfish"]


def test_sentences_and_equal_lengths():
    assert first_sentences("A dog. Two cats! A bus?", 2) == "A dog. Two cats!"
    assert first_sentences("a cup . it is red", 1) == "a cup ."
    assert first_sentences("3.5 dogs. A cat", 1) == "3.5 dogs."
    cut = same_length({"a": ["One. Two. Three.", "One."], "b": ["Eins. Zwei.", ""]})
    assert cut == {"a": ["One. Two.", ""], "b": ["Eins. Zwei.", ""]}
    with pytest.raises(UserError, match="'b': 1"):
        same_length({"a": ["x", "y"], "b": ["x"]})
