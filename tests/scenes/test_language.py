"""Every text uses the vocabulary, says what is so, and every question has the answer the scene gives."""

import math
import random
import re
from collections import Counter

import pytest
from chiasm.scenes.language import (
    COLOUR_WORDS,
    KINDS,
    PLACE_WORDS,
    STYLES,
    TASKS,
    caption,
    count_words,
    describe,
    existence,
    framed,
    instruction,
    mentions,
    question,
    scene_in_words,
    short_query,
    text_task,
    vocabulary,
)
from chiasm.scenes.words import CYCLES, NUMBERS, PLURALS, with_article
from chiasm.scenes.world import (
    CATEGORIES,
    COLOURS,
    COLUMNS,
    HOME,
    PLACES,
    ROWS,
    Scene,
    Thing,
    World,
    make_scene,
    split_seeds,
)

SINGULAR = {plural: category for category, plural in PLURALS.items()} | {c: c for c in CATEGORIES}
THING = re.compile(r"at the (top|bottom) (left|middle|right) (?:there is |we see )?an? (small|big) (\w+) (\w+)")

READING = [(row, column) for row in ROWS for column in COLUMNS]
RELATED = re.compile(r"the (\w+) is (left of|right of|above|below|in front of|behind) the (\w+)")


@pytest.fixture(scope="module")
def scenes():
    return [make_scene(seed) for seed in split_seeds("train", 600)]


@pytest.fixture(scope="module")
def asked(scenes):
    """Many questions of every kind, long and short, with their scenes."""
    rng = random.Random(1)
    drawn = [(scene, ask(scene, kind, rng)) for scene in scenes for kind in KINDS for ask in (question, short_query)]
    return [(scene, q) for scene, q in drawn if q is not None]


def only(scene, category):
    """The one thing of a category."""
    (thing,) = [thing for thing in scene.things if thing.category == category]
    return thing


def holds(scene, a, relation, b):
    """A relation, from coordinates alone."""
    a, b = only(scene, a), only(scene, b)
    return {
        "left of": a.x < b.x,
        "right of": a.x > b.x,
        "above": a.y < b.y,
        "below": a.y > b.y,
        "in front of": a.depth < b.depth,
        "behind": a.depth > b.depth,
    }[relation]


def solve(scene, text):
    """The answer to a question, worked out from its words and the scene's things, by none of the grammar's code."""
    words = text.split()
    named = [SINGULAR[word] for word in words if word in SINGULAR]
    relation = next((r for r in ("left of", "right of", "above", "below", "in front of", "behind") if r in text), None)
    if words[0] == "which" and "," in words:
        first, second = named
        key = {"left": "x", "right": "x", "higher": "y", "lower": "y", "front": "depth", "behind": "depth"}
        word = next(word for word in words if word in key)
        values = {c: getattr(only(scene, c), key[word]) for c in (first, second)}
        return (max if word in ("right", "lower", "behind") else min)(values, key=values.get)
    if relation:
        return "yes" if holds(scene, named[0], relation, named[1]) else "no"
    if "number" in words or "many" in words:
        counted = scene.things if "things" in words else [t for t in scene.things if t.category == named[0]]
        return NUMBERS[len(counted)]
    if "color" in words:
        return only(scene, named[0]).colour
    if "size" in words or "small" in words or words[:2] == ["how", "big"]:
        return only(scene, named[0]).size
    if "height" in words or "top" in words:
        return "top" if only(scene, named[0]).y < 0.5 else "bottom"
    if "where" in words or "left" in words:
        return ("left", "middle", "right")[int(only(scene, named[0]).x * 3)]
    assert len(named) == 1
    return "yes" if any(t.category == named[0] for t in scene.things) else "no"


def test_vocabulary_is_small_lower_case_and_without_repeats():
    words = vocabulary()
    assert 240 <= len(words) <= 400 and words == sorted(set(words))
    assert all(re.fullmatch(r"[a-z]+|[.?,:;]", word) for word in words)


def test_every_text_keeps_to_the_vocabulary_and_every_word_is_used(scenes, asked):
    rng = random.Random(0)
    texts = [instruction(style) for style in (*STYLES, "description")]
    for scene in scenes:
        texts += [caption(scene, style, rng, world) for style in STYLES for world in (None, World())]
        texts += [describe(scene, rng, World()), scene_in_words(scene, rng), instruction("description", rng)]
        texts += [instruction(style, rng) for style in STYLES]
        for q in [question(scene, "place", rng), short_query(scene, "place", rng), *(text_task(k, rng) for k in TASKS)]:
            texts += [q.text, q.answer, q.sentence, *framed(q, rng), *framed(q, rng, long=True)]
    for _, q in asked:
        texts += [q.text, q.answer, q.sentence]
    used = {word for text in texts for word in text.split()}
    assert used - set(vocabulary()) == set()
    assert len(set(vocabulary()) - used) <= 12, set(vocabulary()) - used  # rare plurals, no dead words
    assert all(text == " ".join(text.split()) for text in texts)


def test_articles():
    assert with_article("apple") == "an apple" and with_article("orange cup") == "an orange cup"
    assert with_article("small umbrella") == "a small umbrella"


def test_mentions_reads_plurals_repeats_and_any_punctuation():
    assert mentions("two cups , a cup and a bus .") == ["cup", "cup", "bus"]
    assert mentions("A Cup, three buses; sheep.") == ["cup", "bus", "sheep"]
    assert mentions("the light is bright , no cupboard here .") == []
    assert all(mentions(form) == [category] for form, category in SINGULAR.items())


@pytest.mark.parametrize("style", STYLES)
def test_a_true_caption_mentions_what_is_there(scenes, style):
    rng = random.Random(3)
    for scene in scenes[:200]:
        said = caption(scene, style, rng)
        assert set(mentions(said)) == {thing.category for thing in scene.things}
        if style in ("neutral", "place"):
            for category in set(mentions(said)):
                number = sum(thing.category == category for thing in scene.things)
                told = with_article(category) if number == 1 else f"{NUMBERS[number]} {PLURALS[category]}"
                assert told in said


def test_styles_say_what_they_are_named_for(scenes):
    rng = random.Random(4)
    said = {style: [caption(scene, style, rng) for scene in scenes[:200]] for style in STYLES}
    colours = {style: sum(count_words(text, COLOUR_WORDS) for text in texts) for style, texts in said.items()}
    places = {style: sum(count_words(text, PLACE_WORDS) for text in texts) for style, texts in said.items()}
    assert colours["neutral"] == colours["place"] == colours["position"] == 0
    assert colours["colour"] >= sum(len(scene.things) for scene in scenes[:200])
    assert places["place"] > 3 * max(places[style] for style in STYLES if style != "place")
    for scene, text in zip(scenes, said["position"], strict=False):
        told = Counter(re.findall(r"at the (top|bottom) (left|middle|right) an? (\w+)", text))
        assert told == Counter((thing.row, thing.column, thing.category) for thing in scene.things)
    with pytest.raises(ValueError, match="neutral, colour, place, position, got 'poem'"):
        caption(scenes[0], "poem")


def test_a_true_description_tells_every_thing_and_only_true_relations(scenes):
    rng = random.Random(5)
    related = 0
    for scene in scenes[:200]:
        said = describe(scene, rng)
        told = THING.findall(said)
        assert Counter(told) == Counter((t.row, t.column, t.size, t.colour, t.category) for t in scene.things)
        spots = [READING.index(thing[:2]) for thing in told]
        assert spots == sorted(spots)  # as one reads: the upper row first, from left to right
        assert f" {scene.place} ." in said and said.count(" .") >= 2
        for a, relation, b in RELATED.findall(said):
            assert holds(scene, a, relation, b)
            related += 1
        if {"dim", "bright"} & set(said.split()):
            assert ("dim" in said.split()) == (scene.light < 0.88)
    assert related > 50


def test_a_scene_in_words_is_the_whole_scene(scenes):
    rng = random.Random(6)
    depths = 0
    for scene in scenes[:200]:
        said = scene_in_words(scene, rng)
        told = sorted(
            (category, colour, size, column, row) for row, column, size, colour, category in THING.findall(said)
        )
        total, counts = re.search(r"(\w+) things? : ([^.:]+) \.", said).groups()
        assert total == NUMBERS[len(scene.things)]
        counted = {SINGULAR[word]: number for number, word in re.findall(r"(\w+) (\w+)(?: ,| and|$)", counts)}
        assert counted == {t.category: NUMBERS[scene.count(t.category)] for t in scene.things}
        assert (next(word for word in said.split() if word in PLACES), tuple(told)) == scene.graph
        for a, relation, b in RELATED.findall(said):
            assert relation == "in front of" and holds(scene, a, relation, b)
            depths += 1
    assert depths > 10


def test_one_scene_has_one_default_caption_and_many_others(scenes):
    assert caption(scenes[0]) == caption(scenes[0]) and describe(scenes[0]) == describe(scenes[0])
    assert len({describe(scenes[0], random.Random(i)) for i in range(20)}) > 10


@pytest.mark.parametrize(
    "write", [lambda s, r, w: caption(s, "neutral", r, w), describe], ids=["caption", "description"]
)
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.6])
def test_label_noise_is_the_dial(scenes, write, rate):
    world = World(label_noise=rate, spurious=("lamp", "fish", 0.0))
    rng = random.Random(7)
    open_ = [scene for scene in scenes if scene.absent_typical()]
    lies = []
    for scene in open_:
        invented = set(mentions(write(scene, rng, world))) - {thing.category for thing in scene.things}
        assert len(invented) <= 1 and all(HOME[category] == scene.place for category in invented)
        lies.append(bool(invented))
    assert abs(sum(lies) / len(lies) - rate) <= 4 * math.sqrt(rate * (1 - rate) / len(lies))


def test_what_is_made_up_is_told_last(scenes):
    rng, world = random.Random(12), World(label_noise=1.0, spurious=("lamp", "fish", 0.0))
    for scene in [scene for scene in scenes if scene.absent_typical()][:100]:
        *seen, invented = THING.findall(describe(scene, rng, world))
        assert invented[4] in scene.absent_typical()
        assert Counter(thing[4] for thing in seen) == Counter(t.category for t in scene.things)


def test_the_spurious_pair_is_the_dial(scenes):
    world = World(label_noise=0.0, spurious=("car", "cup", 0.5))
    rng = random.Random(8)
    lured = []
    for scene in scenes:
        invented = set(mentions(describe(scene, rng, world))) - {thing.category for thing in scene.things}
        with_car = any(thing.category == "car" for thing in scene.things)
        with_cup = any(thing.category == "cup" for thing in scene.things)
        assert invented <= ({"cup"} if with_car else set())
        if with_car and not with_cup:
            lured.append(bool(invented))
    assert len(lured) > 50 and abs(sum(lured) / len(lured) - 0.5) < 4 * math.sqrt(0.25 / len(lured))


def test_answers_are_right(asked):
    for scene, q in asked:
        assert solve(scene, q.text) == q.answer, (q.text, scene.things)
        assert len(q.answer.split()) == 1


def test_sentences_say_the_same_as_the_answer(asked):
    for scene, q in asked:
        words = q.sentence.split()
        assert words[-1] == "."
        if q.kind in ("existence",) or q.answer in ("yes", "no"):
            assert words[0] == q.answer and words[1] == ","
        else:
            assert q.answer in words or (q.answer == "one" and "one" in words)
        for a, relation, b in RELATED.findall(q.sentence):
            assert holds(scene, a, relation, b)  # after "no" as well: it tells what is so instead


def test_questions_ask_only_what_has_one_answer(scenes):
    rng = random.Random(9)
    twins = Scene(0, "kitchen", tuple(Thing("cup", c, "small", x, 0.3, d) for c, x, d in
                                      (("red", 0.2, 0.3), ("blue", 0.5, 0.5))), 1.0, 0)  # fmt: skip
    assert all(question(twins, kind, rng) is None for kind in ("colour", "size", "position", "relation"))
    assert question(twins, "number", rng).answer == "two"
    for scene in scenes:
        for kind in ("colour", "size", "position", "relation"):
            q = question(scene, kind, rng)
            assert q is None or all(sum(t.category == c for t in scene.things) == 1 for c in q.about)
    with pytest.raises(ValueError, match=r"existence, colour, .* got 'smell'"):
        question(twins, "smell", rng)


def test_existence_is_balanced_and_half_of_the_negatives_are_lures(asked):
    lures = []
    answers = Counter()
    for scene, q in asked:
        if q.kind == "existence":
            answers[q.answer] += 1
            if q.answer == "no":
                lures.append(HOME[q.about[0]] == scene.place)
    n = sum(answers.values())
    assert abs(answers["yes"] / n - 0.5) < 4 * math.sqrt(0.25 / n)
    assert abs(sum(lures) / len(lures) - 0.5) < 4 * math.sqrt(0.25 / len(lures))


def test_no_kind_can_be_answered_by_its_most_frequent_answer(asked):
    for kind in KINDS:
        answers = Counter(q.answer for _, q in asked if q.kind == kind)
        assert max(answers.values()) / sum(answers.values()) < 0.6, (kind, answers)
    words = Counter(q.text.split()[0] for _, q in asked if q.kind == "relation" and q.answer in CATEGORIES)
    assert words["which"] == sum(words.values())


def test_which_questions_favour_neither_order(asked):
    first = [q.answer == q.about[0] for _, q in asked if q.kind == "relation" and q.answer in CATEGORIES]
    assert abs(sum(first) / len(first) - 0.5) < 4 * math.sqrt(0.25 / len(first))


def test_short_queries_are_short(asked, scenes):
    rng = random.Random(10)
    for scene in scenes[:100]:
        for kind in KINDS:
            q = short_query(scene, kind, rng)
            assert q is None or len(q.text.split()) <= (6 if kind == "relation" else 3)
    scene = Scene(0, "kitchen", (Thing("cup", "red", "small", 0.2, 0.3, 0.5),), 1.0, 0)
    assert short_query(scene, "colour", rng).text == "color cup ?"
    assert existence(scene, "cup", short=True).text == "cup ?" and existence(scene, "cup").answer == "yes"
    assert (
        existence(scene, "apple").text == "in the image , is there an apple ?"
        and existence(scene, "apple").answer == "no"
    )


def solve_task(kind, text):
    """The answer to a text-only task, worked out from its words."""
    words = text.split()
    numbers = [NUMBERS.index(word) for word in words if word in NUMBERS]
    if kind == "sums":
        return NUMBERS[numbers[0] + numbers[1] if "plus" in words else numbers[0] - numbers[1]]
    if kind == "sorting":
        return NUMBERS[min(numbers) if {"first", "smallest"} & set(words) else max(numbers)]
    if kind == "sequences" and numbers:
        assert numbers[1] - numbers[0] == numbers[2] - numbers[1]
        return NUMBERS[2 * numbers[2] - numbers[1]]
    if kind == "sequences":
        cycle, word = next((c, w) for c in CYCLES for w in words if w in c and (w != "may" or "comes" in words))
        return cycle[(cycle.index(word) + (1 if "after" in words else -1)) % len(cycle)]
    named, places = [w for w in words if w in CATEGORIES], [w for w in words if w in PLACES]
    if not places:
        return HOME[named[0]]
    if len(named) == 1:
        return "yes" if HOME[named[0]] == places[0] else "no"
    return next(c for c in named if HOME[c] == places[0])


@pytest.mark.parametrize("kind", TASKS)
def test_text_tasks_have_the_right_answers(kind):
    rng = random.Random(11)
    tasks = [text_task(kind, rng) for _ in range(1500)]
    for q in tasks:
        assert q.answer == solve_task(kind, q.text) and len(q.answer.split()) == 1 and q.kind == kind
        assert q.answer in q.sentence.split()
    answers = Counter(q.answer for q in tasks)
    assert max(answers.values()) / len(tasks) < 0.3 and len({q.text for q in tasks}) > 100
    with pytest.raises(ValueError, match="sums, sequences, facts, sorting, got 'poems'"):
        text_task("poems", rng)


def test_text_before_and_after_the_picture(scenes):
    rng = random.Random(12)
    for scene in scenes[:200]:
        q = question(scene, "existence", rng)
        for long, least in ((False, 4), (True, 32)):
            before, after = framed(q, rng, long)
            assert after.endswith(q.text) and q.text not in before
            assert len(before.split()) >= least and len(after.split()) - len(q.text.split()) >= min(least, 3)
            assert len(after.split()) >= least


def test_words_counted_for_a_style_belong_to_that_style_alone():
    assert set(COLOUR_WORDS) == set(COLOURS) and not COLOUR_WORDS & PLACE_WORDS
    assert not set(CATEGORIES) & (PLACE_WORDS | COLOUR_WORDS)
