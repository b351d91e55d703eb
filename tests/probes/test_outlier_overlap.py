"""The probe on models of every family, against maps and sets worked out from eager attention."""

import math

import pytest
import torch
from chiasm.models import Spans, open_vlm
from chiasm.models.inputs import Inputs
from chiasm.models.patch_scores import picture_scores, score_kinds
from chiasm.models.spans import FEW
from chiasm.probes.measure import measure
from chiasm.probes.outlier_overlap import OutlierOverlap, spread_queries
from chiasm.probes.outlier_words import DIAGNOSTICS, Mention, OutlierWords
from chiasm.probes.outliers import select_outliers
from chiasm.scenes.benchmarks import description_set
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import Sample

from ..models.families import FAMILIES, batch, build
from ..models.test_families import eager
from .fakes import state_size
from .measuring import Stream, sample, tiny_vlm

EVERY = pytest.mark.parametrize("name", FAMILIES)


def read(vlm, inputs, **options):
    probe = OutlierOverlap(**options)
    probe.attach(vlm.anatomy)
    with torch.no_grad():
        probe.update(vlm.trace(inputs, probe.sites), inputs)
    return probe


def at(table, quantity, layer=None, head=None):
    rows = table[table["quantity"] == quantity]
    rows = rows[rows["layer"].isna() if layer is None else (rows["layer"] == layer).fillna(False)]
    rows = rows[rows["head"].isna() if head is None else (rows["head"] == head).fillna(False)]
    assert len(rows) == 1
    return rows.iloc[0]


@EVERY
@pytest.mark.parametrize("side", ["left", "right"])
def test_every_family_is_measured(name, side):
    model, joined, _ = batch(name, side)
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**joined)
    table = read(vlm, inputs).compute()
    row = at(table, "overlap")
    assert row["n"] == 2 and 0 <= row["mean"] <= 1 and 0 < row["chance"] < 1
    assert at(table, "excess")["mean"] == pytest.approx(row["mean"] - row["chance"], abs=1e-6)
    assert 0 < at(table, "image_share")["mean"] <= 1 and 0 < at(table, "entropy")["mean"] <= 1
    assert at(table, "skipped")["n"] == 0 and at(table, "k")["mean"] >= 1
    kinds = score_kinds(vlm.anatomy)
    pairs = table[table["quantity"] == "score_spearman"]
    assert len(pairs) == len(kinds) * (len(kinds) - 1) // 2 and pairs["mean"].between(-1, 1).all()
    heads = table[(table["quantity"] == "overlap") & table["head"].notna()]
    layers = heads["layer"].nunique()
    assert len(heads) == 4 * layers and layers == {"qwen3_5": 1, "mllama": 2}.get(name, 3)


@pytest.mark.parametrize("name", ["llava", "internvl", "gemma3", "qwen2_5_vl"])
def test_overlap_equals_that_of_eager_maps(name):
    """By the long way: eager attention, mean over heads, top k of the columns at the visual tokens."""
    model, tensors = build(name)
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    probe = read(vlm, inputs, rule="fixed", value=2)
    table = probe.compute()
    trace = vlm.trace(inputs, probe.sites)
    (picture,) = picture_scores(trace, inputs, vlm.anatomy, score_kinds(vlm.anatomy)[0])
    k = 2 if vlm.anatomy.merge == 1 else 1  # max(1, round(2 / 4 * 2))
    chosen = set(select_outliers(picture.scores, k=k).tolist())
    maps = torch.stack(eager(model, tensors).attentions)[:, 0, :, -1]  # (L, H, T) of the last token
    seen = maps[..., inputs.spans.visual[0]]

    def expected(values):
        return len(chosen & set(values.argsort(descending=True)[:k].tolist())) / k

    for layer in range(3):
        assert at(table, "overlap", layer)["mean"] == pytest.approx(expected(seen[layer].mean(0)))
        for head in range(4):
            assert at(table, "overlap", layer, head)["mean"] == pytest.approx(expected(seen[layer, head]))
            share = at(table, "image_share", layer, head)["mean"]
            assert share == pytest.approx(float(seen[layer, head].sum()), abs=1e-5)
    late = seen[2].mean(0)  # blocks 2 to the last of three
    assert at(table, "overlap")["mean"] == pytest.approx(expected(late))
    lift = float(late[list(chosen)].sum() / late.sum()) / (k / seen.shape[-1])
    assert at(table, "lift")["mean"] == pytest.approx(lift, rel=1e-4)


def test_query_tokens_push_attention_to_the_patches():
    model, tensors = build("blip2")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    probe = read(vlm, inputs)
    trace = vlm.trace(inputs, probe.sites)
    (picture,) = picture_scores(trace, inputs, vlm.anatomy, "cls")
    rows = trace["blocks.1.attn_few"][0]
    visual = torch.nonzero(inputs.spans.visual[0]).flatten()
    by_hand = torch.zeros(4, 1, 16)
    for q, position in enumerate(visual.tolist()):
        by_hand += rows[..., position, None] * trace["resampler.attention"][0, q]
    torch.testing.assert_close(picture.attention(rows), by_hand, atol=1e-6, rtol=0)
    # of all attention, that on the query tokens is on the picture: not the smaller part that reaches patches and not CLS
    share = at(probe.compute(), "image_share", 1)["mean"]
    assert share == pytest.approx(float(rows[..., visual].sum(-1).mean()), abs=1e-6)


def test_a_decoder_that_looks_at_the_outliers_is_seen_to():
    """Scores and attention made equal by hand: overlap 1, lift as large as can be."""
    vlm = tiny_vlm()
    inputs = vlm.prepare_samples([sample(i) for i in range(3)])
    probe = OutlierOverlap(rule="fixed", value=3, agreement=False)
    probe.attach(vlm.anatomy)
    trace = vlm.trace(inputs, probe.sites)
    scores = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
    site = next(s for s in probe.sites if s.startswith("vision"))
    trace.tensors[site] = torch.cat([torch.ones(3, 1), scores], 1).log()[:, None].expand(-1, 4, -1)
    for layer in range(3):
        rows = torch.zeros_like(trace[f"blocks.{layer}.attn_few"])
        for b in range(3):
            rows[b, :, :, inputs.spans.visual[b]] = scores[b]
        trace.tensors[f"blocks.{layer}.attn_few"] = rows
    probe.update(trace, inputs)
    table = probe.compute()
    assert at(table, "overlap")["mean"] == 1 and at(table, "spearman")["mean"] == pytest.approx(1)
    assert at(table, "jensen_shannon")["mean"] == pytest.approx(0, abs=1e-3)
    deviation = math.sqrt(3 / 16 * 13 / 16 * 13 / 15 / 3)
    assert at(table, "z")["mean"] == pytest.approx((1 - 3 / 16) / deviation, rel=1e-4)
    assert at(table, "overlap_other")["mean"] < 1


def test_a_padded_batch_gives_what_each_row_gives_alone():
    model, joined, rows = batch("llava", "left")
    vlm = open_vlm(model=model)
    both = read(vlm, vlm.from_tensors(**joined)).compute()
    alone = [read(vlm, vlm.from_tensors(**row)).compute() for row in rows]
    for quantity in ("overlap", "lift", "image_share", "entropy", "k"):
        mean = sum(at(table, quantity)["mean"] for table in alone) / 2
        assert at(both, quantity)["mean"] == pytest.approx(mean, abs=1e-5)


def test_several_pictures_text_only_rows_and_memory():
    vlm = tiny_vlm()
    two = Sample("two", "<image> w1 w2 <image> w3", sample(1).images * 2)
    bare = Sample("bare", "w1 w2 w3")
    result = measure(vlm, [sample(0), two, bare, sample(3)], [OutlierOverlap()], batch_size=4, progress=False)
    table = result.tables["outlier_overlap"]
    assert at(table, "overlap")["n"] == 3 and at(table, "skipped")["n"] == 1
    few, many = OutlierOverlap(), OutlierOverlap()
    measure(vlm, Stream(4), [few], progress=False)
    measure(vlm, Stream(40), [many], progress=False)
    assert state_size(few) == state_size(many)
    nothing = read(vlm, vlm.prepare_samples([bare])).compute()
    assert at(nothing, "skipped")["n"] == 1 and math.isnan(at(nothing, "overlap")["mean"])


def test_queries_are_those_that_predict_the_answer_or_the_last_of_the_prompt():
    vlm = tiny_vlm()
    told = Sample("told", sample(0).prompt, sample(0).images, "w1 w2 w3 w4")
    inputs = vlm.prepare_samples([told, sample(1)])
    asked = inputs.spans.predicting()
    answer = torch.nonzero(inputs.spans.labels[0] == Spans.names.index("answer")).flatten()
    assert asked[0].tolist() == (answer - 1).tolist() and asked[1].tolist() == [
        inputs.spans.labels.shape[1] - 1,
        -1,
        -1,
        -1,
    ]
    assert spread_queries(asked, 2).tolist() == [[0, 3], [0, -1]] and spread_queries(asked, None).shape == (2, 4)
    every, first = (read(vlm, inputs, queries=q, agreement=False).compute() for q in (None, 1))
    prompt = read(vlm, vlm.prepare_samples([sample(0), sample(1)]), agreement=False).compute()
    assert at(first, "lift")["mean"] == pytest.approx(at(prompt, "lift")["mean"], abs=1e-5)
    assert at(every, "lift")["mean"] != pytest.approx(at(prompt, "lift")["mean"], abs=1e-7)


def test_the_few_rows_of_the_default_give_what_the_chosen_of_all_rows_do():
    vlm, words = tiny_vlm(), " ".join(f"w{i % 5}" for i in range(21))
    told = [Sample(f"t{n}", sample(n).prompt, sample(n).images, " ".join(words.split()[:n])) for n in (3, 8, 9, 21)]
    inputs = vlm.prepare_samples(told)
    probe = OutlierOverlap()
    assert probe.queries == FEW
    few = read(vlm, inputs)
    assert few.sites[0].endswith("attn_few")
    all_rows = OutlierOverlap()
    all_rows.few = False  # the site of all rows, of which it then chooses
    all_rows.attach(vlm.anatomy)
    all_rows.update(vlm.trace(inputs, all_rows.sites), inputs)
    assert all_rows.sites[0].endswith("attn_rows")
    torch.testing.assert_close(few.values, all_rows.values, atol=1e-6, rtol=1e-6)


def test_tiles_are_scored_apart_and_the_released_way_takes_the_first_alone():
    model, tensors = build("llava_next")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    every, base = (read(vlm, inputs, tiles=t, rule="fixed", value=2).compute() for t in ("all", "base"))
    assert at(every, "candidates")["mean"] == 80 and at(every, "k")["mean"] == 10  # newlines are no candidates
    assert at(base, "candidates")["mean"] == 16 and at(base, "k")["mean"] == 2
    assert at(base, "image_share")["mean"] == pytest.approx(at(every, "image_share")["mean"])


def test_outliers_on_things_are_counted_where_the_scene_is_known():
    vlm = open_vlm("organism", device="cpu")
    some = description_set(4)
    table = measure(vlm, some, [OutlierOverlap(agreement=False)], progress=False).tables["outlier_overlap"]
    row, side = at(table, "on_things"), math.isqrt(int(at(table, "candidates")["mean"]))
    shares = []
    for one in some:
        middles = [((x + 0.5) / side, (y + 0.5) / side) for y in range(side) for x in range(side)]
        boxes = [thing.box for thing in one.truth["scene"].things]
        on = [any(a <= x < c and b <= y < d for a, b, c, d in boxes) for x, y in middles]
        shares.append(sum(on) / len(on))
    assert row["n"] == 4 and row["chance"] == pytest.approx(sum(shares) / 4)


@pytest.mark.parametrize(
    ("options", "told"),
    [({"mode": "mean"}, "mode 'mean' is not known"), ({"tiles": "first"}, "use 'all' or 'base'"),
     ({"rule": "most"}, "is not known: use one of"), ({"queries": 0}, "must be 1 or more"), ({"rule": "mass", "value": 2}, "a share")],
)  # fmt: skip
def test_options_are_checked(options, told):
    with pytest.raises(UserError, match=told):
        OutlierOverlap(**options)


def test_a_score_that_the_encoder_lacks_is_refused_before_anything_is_read():
    vlm = tiny_vlm()
    for options, told in (
        ({"score": "pool"}, "has no pooling head; use cls or received or norm"),
        ({"layer": 9}, r"outside this model's 0\.\.2"),
    ):
        with pytest.raises(UserError, match=told):
            measure(vlm, [sample(0)], [OutlierOverlap(**options)], progress=False)


# -- words -------------------------------------------------------------------------------------------------------------


def test_words_are_read_at_the_query_that_predicts_them():
    vlm = tiny_vlm()
    told = [Sample(f"s{i}", sample(i).prompt, sample(i).images, "w1 w2 w3 w4 w5") for i in range(3)]
    found = {
        "s0": [Mention(0, "w1", True), Mention(3, "w4", False)],
        "s2": [Mention(4, "w5", False)],
        "gone": [Mention(0, "x", True)],
    }
    table = measure(vlm, told, [OutlierWords(found)], batch_size=2, progress=False).tables["outlier_words"]
    assert table[["sample", "token", "word", "grounded"]].values.tolist() == [
        ["s0", 0, "w1", True], ["s0", 3, "w4", False], ["s2", 4, "w5", False],
    ]  # fmt: skip
    assert table["position"].tolist() == [0, 0.6, 0.8] and set(DIAGNOSTICS) < set(table)
    # the first word's query is the last token of the prompt: the other probe's own, on the sample alone
    alone = read(vlm, vlm.prepare_samples(told[:1]), queries=1, agreement=False).compute()
    for name in ("overlap", "lift", "spearman", "image_share", "entropy"):
        assert table[name][0] == pytest.approx(at(alone, name)["mean"], abs=1e-5)
    with pytest.raises(UserError, match="no answer mentions an object"):
        OutlierWords({"s0": []})


def test_inputs_without_samples_have_no_words():
    vlm = tiny_vlm()
    inputs = vlm.prepare_samples([sample(0)])
    probe = OutlierWords({"other": [Mention(0, "w1", True)]})
    probe.attach(vlm.anatomy)
    probe.update(vlm.trace(inputs, probe.sites), Inputs(inputs.tensors, inputs.spans, (sample(0),)))
    assert probe.compute().empty
