"""The bundled family: it loads, answers, is small, keeps what its card says, and can be grown again."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from functools import partial

import pandas as pd
import pytest
import torch
from chiasm.alignment.members import MembersRecipe, grow_members
from chiasm.models.organism import MEMBERS, load_growth, load_organism
from chiasm.models.organism.ask import answer, without_picture
from chiasm.models.organism.card import BARS, judged
from chiasm.models.organism.corpus import (
    SENTENCE_CUE,
    Row,
    Words,
    language_row,
    relation_drill,
    scene_drill,
    word_drill,
)
from chiasm.models.organism.family import FILES, PREFERRING, card, growth_steps
from chiasm.models.organism.grow import grow
from chiasm.models.organism.muon import Muon, orthogonalised
from chiasm.models.organism.parts import make_decoder
from chiasm.models.organism.recipe import Recipe
from chiasm.models.organism.speech import grow_language
from chiasm.models.organism.tower import patch_truth, pixels
from chiasm.scenes import language
from chiasm.scenes.benchmarks import caption_set, pope_questions, skill_set
from chiasm.scenes.errors import UserError
from chiasm.scenes.language import mentions
from chiasm.scenes.render import render
from chiasm.scenes.world import CATEGORIES, COLUMNS, ROWS, World, make_scene, split_seeds
from PIL import Image
from safetensors.torch import load_file

TINY = Recipe(
    vision_width=32, vision_heads=2, vision_layers=3, width=32, heads=2, layers=2, mlp_width=48,
    tower_steps=3, tower_batch=4, language_phases=((3, 2, 64, 0.5), (3, 3, 64, 0.2)), recall_phases=((2, 3, 64, 0.5),),
    relation_phases=((2, 3, 64, 0.5),), language_batch=3,
    scenes=20, align_steps=3, tune_steps=6, style_steps=2, batch=3, keep=6, parallel=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def tuned():
    return load_organism("tuned")


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_loads_in_fp32_and_answers(name):
    model, processor = load_organism(name)
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.parameters())
    texts = answer((model, processor), caption_set(2, "test"), 30)
    assert all(text and "<" not in text for text in texts)


def test_unknown_member_is_told_what_there_is():
    with pytest.raises(UserError, match="tuned"):
        load_organism("fluent")


def test_adapter_stays_apart_or_is_merged_with_the_same_effect():
    samples = caption_set(4, "test")
    assert answer(load_organism("colour"), samples, 40) == answer(load_organism("colour", adapter="peft"), samples, 40)


def test_files_are_small_and_plain():
    files = [path for path in FILES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".jinja"}


def test_plain_transformers_opens_a_saved_member(tuned, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = tuned
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, reader = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    sample = pope_questions([make_scene(9)], "random")[0]
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is there a cup ?"}]}]
    inputs = [
        p(text=p.apply_chat_template(talk, add_generation_prompt=True), images=list(sample.images), return_tensors="pt")
        for p in (processor, reader)
    ]
    with torch.inference_mode():
        ours, theirs = model(**inputs[0]).logits, again.eval()(**inputs[1]).logits
    torch.testing.assert_close(ours, theirs)


def test_chat_form_keeps_the_order_of_words_and_pictures(tuned):
    processor = tuned[1]
    parts = [{"type": "text", "text": "here is a picture :"}, {"type": "image"}, {"type": "text", "text": "a cup ?"}]
    talk = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "a Dog?"},
    ]
    text = processor.apply_chat_template(talk, add_generation_prompt=True)
    assert text.split() == [
        "<bos>",
        "here",
        "is",
        "a",
        "picture",
        ":",
        "<image>",
        "a",
        "cup",
        "?",
        "<assistant>",
        "yes",
        "<eos>",
        "a",
        "Dog?",
        "<assistant>",
    ]
    ids = processor(text=text, images=[Image.new("RGB", (64, 64))], return_tensors="pt")["input_ids"][0].tolist()
    image, question = processor.tokenizer.convert_tokens_to_ids(["<image>", "?"])
    assert ids.count(image) == 64 and ids[-2] == question


def test_tokenizer_and_training_number_the_words_alike(tuned):
    words, tokenizer = Words.of_the_world(), tuned[1].tokenizer
    assert tokenizer.get_vocab() == words.ids
    assert len(words.ids) == tuned[0].config.text_config.vocab_size
    assert tokenizer.decode(words("is there a cup ?")) == "is there a cup ?"


def test_processor_and_training_see_the_same_pixels(tuned):
    picture = render(make_scene(19))
    seen = tuned[1].image_processor(picture.pil, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(seen, torch.from_numpy(pixels(picture.image)), atol=1e-5, rtol=1e-5)


def test_card_tells_every_trait_that_has_a_bar():
    traits = pd.DataFrame(card()["traits"])
    assert set(BARS) <= set(traits["trait"])
    assert judged(traits)["met"].tolist() == traits["met"].tolist()


def test_card_meets_every_bar_but_that_of_the_libraries():
    """Seconds to the first answer: importing torch and transformers alone took 4.4 of the card's 4.9 (bar: 3)."""
    missed = {row["trait"] for row in card()["traits"] if row["met"] is False}
    assert missed <= {"cold_seconds"}


def test_card_is_of_the_recipe():
    assert card()["recipe_hash"] == Recipe().hash
    assert card()["recipe"] == json.loads(json.dumps(Recipe().to_dict()))


def test_muon_is_torchs_but_for_precision():
    torch.manual_seed(0)
    shapes = [(24, 24), (24, 24), (48, 24), (24, 48)]
    ours = [torch.nn.Parameter(torch.randn(*shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    mine = Muon(ours, lr=0.01)
    library = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        mine.step()
        library.step()
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 0.02 * 4 * 0.01  # bf16 in the library's; a step moves an entry by about 0.2 * 0.01
    sizes = torch.linalg.svdvals(orthogonalised(torch.randn(3, 48, 24)))
    assert sizes.min() > 0.5 and sizes.max() < 1.3


def test_only_one_patch_of_a_thing_holds_its_centre():
    scene = next(s for s in map(make_scene, split_seeds("test", 50)) if len(s.things) == 1)
    truth = patch_truth(scene, render(scene).segmentation, 8)
    thing = scene.things[0]
    assert (truth[:, 5] == 1).sum() == 1 and truth[int(thing.y * 8) * 8 + int(thing.x * 8), 5] == 1
    assert set(truth[truth[:, 0] > 0, 4]) == {0} and set(truth[:, 7]) == {0}


def test_traits_measured_again_lie_near_the_card(tuned):
    traits = {row["trait"]: row for row in card()["traits"]}
    for kind in ("colour", "number", "position"):
        samples = skill_set(kind, 100, "val", world=World.from_dict(card()["recipe"]["world"]))
        right = (
            sum(text.split()[:1] == [s.answer] for s, text in zip(samples, answer(tuned, samples), strict=True)) / 100
        )
        assert abs(right - traits[f"seen_{kind}"]["mean"]) < 0.15  # about four standard errors of 100 questions


def test_it_looks_at_the_picture(tuned):
    samples = skill_set("colour", 60, "test")
    told = [answer(tuned, some) for some in (samples, without_picture(samples))]
    right = [sum(text.split()[:1] == [s.answer] for s, text in zip(samples, texts, strict=True)) for texts in told]
    assert right[0] > 2 * right[1]


def test_patch_truth_names_the_thing_that_covers_the_patch():
    scene = next(s for s in map(make_scene, split_seeds("test", 50)) if len(s.things) == 1)
    truth = patch_truth(scene, render(scene).segmentation, 8)
    thing, found = scene.things[0], truth[truth[:, 0] > 0]
    assert len(found) and set(found[:, 0]) == {CATEGORIES.index(thing.category) + 1}
    assert (truth[truth[:, 0] == 0, 1:5] == -100).all()
    nearest = int(thing.y * 8) * 8 + int(thing.x * 8)
    assert truth[nearest, 0] == CATEGORIES.index(thing.category) + 1


def test_row_weighs_answers_and_their_ends_only():
    words = Words.of_the_world()
    row = Row(words, 12, 0.0)
    assert row.turn("a cup ?", "yes") and not row.turn("what color is the cup ?", "red")
    ids, weights = row.padded()
    assert weights.tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    assert ids.tolist()[5:8] == [words.ids["yes"], words.ids["<eos>"], 0]


@pytest.mark.parametrize("drilled", ["words", "scenes", "relations"])
@pytest.mark.parametrize("drills", [0.0, 1.0])
def test_rows_are_made_from_their_seed_alone(drills, drilled):
    words = Words.of_the_world()
    rows = [language_row(words, 5, 128, World(), 0.1, drills, drilled) for _ in range(2)]
    assert (rows[0][0] == rows[1][0]).all() and rows[0][0].max() < len(words.ids)
    assert set(SENTENCE_CUE.split()) <= set(language.vocabulary())


def test_drills_tell_what_they_ask_and_nothing_else():
    words = Words.of_the_world()
    for seed in range(60):
        row = Row(words, 160, 0.0)
        drill = (lambda r, g: scene_drill(r, g, 4), word_drill)[seed % 2]
        drill(row, random.Random(seed))
        text = " ".join(list(words.ids)[i] for i in row.ids[1:])
        told, *turns = re.split(r" ?<eos> ?", re.sub(r" \. (?!.* \. )", " . <eos> ", text, count=1))
        assert len(turns) > 3 and turns[-1] == ""
        for turn in turns[:-1]:
            query, said = turn.split(" <assistant> ")
            name, *slot = query.removesuffix(" ?").split()[::-1]
            if slot:
                assert said in told.split() and name in told.split()
            else:
                assert (said == "yes") == (name in told.split())


def test_a_relation_drill_compares_and_answers_truly():
    words, asked = Words.of_the_world(), Counter()
    for seed in range(100):
        row = Row(words, 144, 0.0)
        relation_drill(row, random.Random(seed), World(max_things=4))
        text = " ".join(list(words.ids)[i] for i in row.ids[1:])
        where = {
            thing: (r, c)
            for r, c, thing in re.findall(
                r"at the (top|bottom) (left|middle|right) an? (?:(?:small|big) \w+ )?(\w+)", text
            )
        }
        for a, relation, b, said in re.findall(
            r"(\w+) (above|below|left of|right of) (?:the )?(\w+) \? <assistant> (yes|no)", text
        ):
            axis, order = (0, ROWS) if relation in ("above", "below") else (1, COLUMNS)
            first, second = order.index(where[a][axis]), order.index(where[b][axis])
            holds = first < second if relation in ("above", "left of") else first > second
            assert first != second and holds == (said == "yes")
            asked[said] += 1
    assert min(asked.values()) > 50


def test_decoder_starts_out_attending_to_the_word_before():
    decoder = make_decoder(Recipe(), 250)
    decoder.set_attn_implementation("eager")
    ids = torch.randint(6, 250, (2, 20), generator=torch.Generator().manual_seed(0))
    attention = decoder(input_ids=ids, output_attentions=True).attentions[0]
    before = attention[:, 0].diagonal(offset=-1, dim1=-2, dim2=-1)
    assert before[:, 3:].mean() > 0.8


def test_bars_are_judged_on_both_sides():
    traits = pd.DataFrame(
        {"trait": ["skill_drop", "skill_drop", "cold_seconds", "told"], "mean": [30.0, 70.0, 2.0, 0.1]}
    )
    assert judged(traits)["met"].tolist() == [True, False, True, None]


def test_a_tiny_family_grows_and_keeps_its_growth(tmp_path):
    few = MembersRecipe(wings_steps=1, wings_batch=2, wings_rank=2, ola_steps=1, ola_batch=2, ola_layers="d1-2_s1")
    files = grow(tmp_path, TINY, progress=lambda line: None, card_scenes=0, members=partial(grow_members, recipe=few))
    steps = growth_steps(tmp_path)
    assert steps[-1] == TINY.align_steps + TINY.tune_steps and len(steps) >= 4
    with pytest.raises(UserError, match="has no 'rdpo'"):
        load_organism("rdpo", files)
    for name in set(MEMBERS) - set(PREFERRING):
        text = answer(load_organism(name, files), caption_set(1, "test"), 4)[0]
        assert isinstance(text, str) and set(mentions(text)) <= set(CATEGORIES)
    last, final = load_growth(tmp_path, steps[-1])[0], load_organism("tuned", files)[0]
    assert all(torch.equal(a, b) for a, b in zip(last.parameters(), final.parameters(), strict=True))
    assert json.loads((tmp_path / "grown.json").read_text())["recipe_hash"] == TINY.hash
    with pytest.raises(UserError, match="another folder"):
        grow(tmp_path, Recipe(seed=2), progress=lambda line: None)


def test_a_killed_stage_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    from chiasm.models.organism import loop

    class Killed(Exception):
        pass

    def train(folder, fatal=None):
        folder.mkdir(exist_ok=True)
        options = {"save_seconds": 0.0, "log_steps": 1, "workers": 0}
        real = loop.run_stage

        def run(name, where, modules, optimisers, make_batch, loss_of, **given):
            def maybe(batch, step):
                if step == fatal:
                    raise Killed
                return loss_of(batch, step)

            return real(name, where, modules, optimisers, make_batch, maybe, **given, **options)

        with monkeypatch.context() as patch:
            patch.setattr("chiasm.models.organism.speech.run_stage", run)
            grow_language(TINY, folder, progress=lambda line: None)

    train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "killed", fatal=4)
    train(tmp_path / "killed")
    whole, resumed = (load_file(tmp_path / name / "recall.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
