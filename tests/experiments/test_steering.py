"""Steering: prompts read once against whole passes, outcomes and estimates by hand, controls, the experiment."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from chiasm.experiments import steering, steering_sweep
from chiasm.experiments.figures import draw_interactive, draw_picture
from chiasm.experiments.figures import steering as figures
from chiasm.experiments.prefilled import Prefilled
from chiasm.experiments.run import load_run
from chiasm.experiments.steering import study
from chiasm.experiments.steering_sweep import controls
from chiasm.experiments.steering_tasks import KINDS, TASKS, Bench, Style, Turn, repeated_trigrams
from chiasm.models import open_vlm
from chiasm.scenes.benchmarks import caption_set, skill_set
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import Sample
from chiasm.steering import AddDirection, Direction, steer

from .pages import tiny_vlm

nan = float("nan")


@pytest.fixture(scope="module")
def organism():
    return open_vlm("organism", device="cpu")


@pytest.fixture(scope="module")
def done(tmp_path_factory, organism):
    with pytest.MonkeyPatch.context() as few:
        for name, value in {"SCALES": (0.0, 0.7, 1.0), "TRIED": (0.7, 1.0), "RANDOM": 2, "SHUFFLED": 1}.items():
            few.setattr(steering_sweep, name, value)
        return study(organism, limit=8, root=tmp_path_factory.mktemp("runs"), tasks=TASKS[:3])


def pushed(vlm, positions, scale=0.5):
    v = torch.randn(vlm.anatomy.hidden_size, generator=torch.Generator().manual_seed(3))
    return AddDirection(v, layer=1, scale=scale, units="norm", norm=250.0, positions=positions)


@pytest.mark.parametrize("positions", [None, "last_prompt", "generated", -1])
def test_prompts_read_once_are_answered_and_scored_as_whole_ones(organism, positions):
    samples = [*caption_set(2, "test"), *skill_set("colour", 2), *skill_set("number", 2)]  # of several lengths: padded
    held = Prefilled(organism, samples, batch_size=4)
    texts = ["a red cup .", "no", "two", "a cup in a kitchen .", "white", "one"]
    inputs = organism.prepare([s.images for s in samples], [s.prompt for s in samples])
    changes = [] if positions is None else [pushed(organism, positions)]
    with steer(organism, *changes):
        assert held.answers(12) == organism.generate(inputs, max_new_tokens=12)
        found = held.losses(texts)
        for loss, sample, text in zip(found, samples, texts, strict=True):
            answer = organism.tokenizer(text, add_special_tokens=False).input_ids
            one = organism.prepare([sample.images], [sample.prompt], [text])
            with torch.no_grad():
                logits = organism.forward(one, use_cache=False).logits[0].log_softmax(-1)
            begin = int(one.spans.mask("answer")[0].nonzero()[0])
            told = [*answer, organism.tokenizer.eos_token_id]
            want = -sum(float(logits[begin - 1 + i, token]) for i, token in enumerate(told)) / len(told)
            assert float(loss) == pytest.approx(want, abs=1e-4)


def test_repeated_trigrams_by_hand():
    assert repeated_trigrams("a b c a b c") == pytest.approx(1 / 4)  # abc bca cab abc
    assert repeated_trigrams("red red red red") == pytest.approx(1 / 2)
    assert repeated_trigrams("a b") == repeated_trigrams("") == 0


@dataclass
class Held:
    samples: list = field(default_factory=list)


def asked(kind, answer):
    return Sample("x", "<image> ?", (), answer, {"kind": kind})


def test_what_counts_as_turned_and_as_retained():
    samples = [asked("existence", "yes"), asked("existence", "yes"), asked("existence", "no"), asked("colour", "red"), asked("colour", "white"), asked("number", "two"), asked("colour", "white")]  # fmt: skip
    kinds = ("existence", "existence", "existence", "colour", "colour", "number", "white")
    plain = ("yes", "yes", "no", "red", "white", "one", "white")
    bench = Bench(None, Held(samples), kinds, Held(), plain)
    said = ["no", "yes", "no", "red", "black", "two two", "black"]
    yes_no = Turn("", "existence", "yes", "no").outcome(bench, said)
    torch.testing.assert_close(yes_no["success"], torch.tensor([1, 0, nan, nan, nan, nan]), equal_nan=True)
    torch.testing.assert_close(yes_no["retained"], torch.tensor([nan, nan, nan, 1, 0, 1]), equal_nan=True)
    torch.testing.assert_close(yes_no["right_colour"], torch.tensor([nan, nan, nan, 1, 0, nan]), equal_nan=True)
    torch.testing.assert_close(yes_no["unparsed"], torch.tensor([0.0, 0, 0, 0, 0, 1]))
    colour = Turn("", "white", "white", "black").outcome(bench, said)
    torch.testing.assert_close(colour["success"], torch.tensor([nan, nan, nan, nan, nan, nan, 1]), equal_nan=True)
    torch.testing.assert_close(colour["other_kinds"], torch.tensor([0, 1, 1, nan, nan, 1, nan]), equal_nan=True)
    torch.testing.assert_close(colour["retained"], torch.tensor([0, 1, 1, 1, nan, 1, nan]), equal_nan=True)


def test_a_caption_is_in_style_with_a_word_of_it_and_keeps_the_things_it_names():
    scene = caption_set(1, "test")[0]
    there = scene.truth["scene"].categories()
    absent = next(c for c in ("cup", "bus", "clock") if c not in there)
    bench = Bench(None, Held(), (), Held([scene, scene]), ())
    style = Style("", "colour", frozenset({"red"}))
    found = style.outcome(bench, [f"a red {there[0]} and a red {absent}", "words"])
    assert found["success"].tolist() == [1, 0] and found["style_words"].tolist() == [2, 0]
    assert found["retained"].tolist() == pytest.approx([2 / (2 + len(there)), 0])
    assert found["invented"][0] == pytest.approx(0.5) and found["invented"][1].isnan()


def test_differences_are_paired_and_perplexities_ratios():
    outcome = {"success": torch.tensor([1.0, 1, nan]), "loss": torch.tensor([1.0, 2, 3])}
    plain = {"success": torch.tensor([0.0, 1, nan]), "loss": torch.tensor([0.5, 1.5, 2.5])}
    rows = {(row["measure"], row["what"]): row for row in steering_sweep._rows(outcome, plain, kind="steered")}
    assert rows["success", "value"]["mean"] == 1 and rows["success", "value"]["n"] == 2
    assert rows["success", "value"]["low"] == pytest.approx(2 / (2 + 1.959964**2))  # Wilson's, of 2 in 2
    assert rows["success", "minus plain"]["mean"] == 0.5
    ratio = rows["perplexity_ratio", "minus plain"]
    assert [ratio[k] for k in ("mean", "low", "high")] == pytest.approx([math.exp(0.5)] * 3)
    assert ("loss", "value") not in rows
    same = steering_sweep._rows({"success": torch.ones(10)}, {"success": torch.zeros(10)}, kind="steered")[1]
    assert same["mean"] == same["high"] == 1 and same["low"] == pytest.approx(1 - 1.959964**2 / (10 + 1.959964**2))


def test_controls_have_the_length_of_the_direction_and_nothing_of_its_labels(organism):
    base, target = torch.randn(30, 128), torch.randn(20, 128) + 5  # far apart
    card = {"model": {}, "width": 128, "state_norm": 10.0}
    direction = Direction(target.mean(0) - base.mean(0), 2, card)
    made = list(controls(direction, (base, target), 0))
    again = list(controls(direction, (base, target), 0))
    assert [kind for kind, *_ in made].count("random") == steering_sweep.RANDOM >= 5
    assert all(torch.equal(a[2].vector, b[2].vector) for a, b in zip(made, again, strict=True))
    for kind, _, control in made:
        turned = torch.cosine_similarity(control.vector, direction.vector, 0).abs()
        assert turned < 0.4 and control.layer == 2
        if kind == "shuffled":
            assert control.vector.norm() < 0.5 * direction.vector.norm()
    site = "blocks.2.resid_post"
    inputs = organism.prepare([None], ["is there a cup ?"])
    plain, moved = organism.trace(inputs, [site])[site], []
    for one in (direction, made[0][2], made[-1][2]):
        with steer(organism, AddDirection(one, scale=0.5, units="norm")):
            moved.append(float((organism.trace(inputs, [site])[site] - plain)[0, -1].norm()))
    assert moved == pytest.approx([5.0] * 3, rel=1e-3)


def test_scenes_of_directions_choice_and_test_are_apart(organism):
    test, chosen = (Bench.of(organism, split, 2, 2, start=start, turned=["white"]) for split, start in (("test", 0), ("train", 400_000)))  # fmt: skip
    seeds = [{s.truth["scene"].seed for s in (*b.questions.samples, *b.captions.samples)} for b in (test, chosen)]
    assert len(seeds[0]) == len(seeds[1]) == 2 * (len(KINDS) + 2) and not seeds[0] & seeds[1]
    assert {s.answer for s, kind in zip(test.questions.samples, test.kinds, strict=True) if kind == "white"} == {
        "white"
    }


def test_a_complete_run_with_its_directions(done, organism):
    kept = load_run(done.path)
    assert kept.finished and len(done.found) == 6 and len(done.claims) == 10
    table = kept.read_table("sweep")
    zero = table[(table["kind"] == "steered") & (table["scale"] == 0) & (table["what"] == "minus plain")]
    assert set(zero["measure"]) >= {"success", "retained", "perplexity_ratio", "repetition", "unparsed"}
    assert (zero["mean"] == zero["measure"].str.startswith("perplexity").astype(float)).all()
    assert (
        set(table["kind"]) == {"steered", "random", "shuffled", "asked"}
        and (table["n"][table["measure"].isin(["success", "retained"])] >= 1).all()
    )
    selection = kept.read_table("selection")
    assert selection.groupby("task")["chosen"].sum().tolist() == [1, 1, 1]
    for _, rows in selection.groupby("task"):
        least = rows[["success", "retained"]].min(axis=1)
        assert least[rows["chosen"]].iloc[0] == least.max()
    for name in ("yes-to-no", "white-to-black", "colour-style"):
        direction = Direction.load(done.path / "arrays" / name)
        with steer(organism, AddDirection(direction, scale=direction.card["scale"], units="norm")):
            organism.generate(organism.prepare([None], ["is there a cup ?"]), max_new_tokens=2)
    assert len(kept.read_table("examples")) > 0


def test_figures_are_drawn_from_the_table_alone(done):
    for figure in (figures.trade(done.tables["sweep"]), figures.side_effects(done.tables["sweep"])):
        assert draw_picture(figure.chart).axes and draw_interactive(figure.chart).data
        assert "n = " in figure.chart.note and "interval" in figure.chart.note


def test_other_models_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="use --model organism"):
        study(tiny_vlm(), root=tmp_path)
    with pytest.raises(UserError, match="use --model organism"):
        steering.run("some/model", root=tmp_path)
