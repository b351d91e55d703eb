"""Attention shift: hand-computed values, every check of the method page, and the probe against brute force."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from chiasm.probes.attention_shift import (
    AttentionShift,
    attention_shift,
    circular_null,
    permuted_segments,
    segment_mass,
    segment_mass_lse,
    uniform_mass,
    uniform_segment_mass,
)
from chiasm.probes.shifts import COMPARATORS
from chiasm.probes.state import restore_states, take_states
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import Sample
from scipy.stats import pearsonr, spearmanr

from .fakes import anatomy, causal_attention, inputs_of, mass_trace, one, spans_of, state_size, value

LAYERS, HEADS = 5, 3
ROWS = ["bsxxxxIIIIyyyyaa", "bxxxxxxIIIIyyyyyyaaa", "bssxxxxxIIIIyyyyy", "bxxxxIIIIyyyyyyya", "bxxxxxIIIIyyyyaaaa"]


def batch(rows, side="right", width=None, samples=True, text=False):
    spans = spans_of(rows, side=side, width=width)
    names = tuple(Sample(row, "") for row in rows) if samples else ()
    inputs = inputs_of(spans, samples=names)
    trace = mass_trace({i: causal_attention(spans, HEADS, seed=7 * i) for i in range(LAYERS)}, inputs)
    if text:
        trace.text_only = batch([row.replace("I", "").replace("m", "") for row in rows], side, None, samples)[0]
    return trace, inputs


def probe(kinds=None, **options):
    made = AttentionShift(**options)
    made.attach(anatomy(LAYERS, heads=HEADS, kinds=kinds))
    return made


def run(batches, **options) -> pd.DataFrame:
    made = probe(**options)
    for trace, inputs in batches:
        made.update(trace, inputs)
    return made.compute()


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return run([batch(ROWS[:2]), batch(ROWS[2:])])


QUERY = {"post": "yag", "all": "bsxIyag", "gen": "ag"}
KEYS = {"sink": "b", "system": "s", "before": "x", "image": "I", "after": "yag", "answer": "ag"}


def brute_curve(row: str, queries: str, segment: str, drop: str = "") -> np.ndarray:
    """The curve of one sample by loops; the keys in `drop` are dropped and rows renormalised."""
    if queries == "last":
        asked = [max(i for i, c in enumerate(row) if c not in "ag")]
    else:
        asked = [i for i, c in enumerate(row) if c in QUERY[queries]]
    curve = []
    for layer in range(LAYERS):
        attention = causal_attention(spans_of([row]), HEADS, seed=7 * layer)[0].double()
        found = []
        for head in attention:
            for i in asked:
                whole = sum(head[i, j] for j, c in enumerate(row) if c not in drop)
                if whole > 0:
                    found.append(
                        sum(head[i, j] for j, c in enumerate(row) if c in KEYS[segment] and c not in drop) / whole
                    )
        curve.append(float(sum(found) / len(found)))
    return np.array(curve)


# -- masses ----------------------------------------------------------------------------------------------------------------


def test_segment_mass_by_hand():
    attention = torch.tensor([[[[1.0, 0, 0, 0], [0.25, 0.75, 0, 0], [0.5, 0.125, 0.375, 0], [0.1, 0.2, 0.3, 0.4]]]])
    found = segment_mass(attention, torch.tensor([[-1, 0, 2, 0]]), 4)
    expected = [[0, 0, 0, 0], [0.75, 0, 0, 0], [0.125, 0, 0.375, 0], [0.6, 0, 0.3, 0]]
    torch.testing.assert_close(found[0, 0], torch.tensor(expected))
    assert (found[..., [1, 3]] == 0).all()  # exactly 0 without keys; -1 does not wrap to the last segment


def test_segment_mass_sums_half_precision_in_fp32():
    attention = torch.full((1, 1, 1, 4096), 1 / 4096, dtype=torch.bfloat16)
    found = segment_mass(attention, torch.zeros(1, 4096, dtype=torch.long), 1)
    assert found.dtype == torch.float32 and found.item() == pytest.approx(1, abs=1e-6)


def test_check_1_masses_over_all_segments_sum_to_1_at_every_real_query():
    spans = spans_of(ROWS, side="left")
    mass = segment_mass(causal_attention(spans, HEADS, 0), spans.labels, 7)
    total = mass.sum(-1)
    assert (total - 1).abs()[spans.real[:, None].expand_as(total)].max() < 1e-5


def test_check_2_uniform_attention_matches_the_closed_form():
    assert uniform_mass(3, 7, 12) == pytest.approx(0.31357, abs=5e-6)
    assert uniform_mass(0, 12, 12) == pytest.approx(1) and uniform_mass(5, 5, 12) == 0
    rows = torch.ones(12, 12).tril()
    attention = (rows / rows.sum(1, keepdim=True))[None, None]
    segments = torch.tensor([[0] * 3 + [1] * 4 + [2] * 5])
    measured = segment_mass(attention, segments, 3)[0, 0].mean(0)
    closed = [uniform_mass(a, b, 12) for a, b in ((0, 3), (3, 7), (7, 12))]
    assert measured.tolist() == pytest.approx(closed, abs=1e-6)
    columns = torch.nn.functional.one_hot(segments, 3).float()
    assert uniform_segment_mass(columns)[0].mean(0).tolist() == pytest.approx(closed, abs=1e-6)
    padded = torch.cat([torch.zeros(1, 5, 3), columns], 1)  # left padding is no key
    torch.testing.assert_close(uniform_segment_mass(padded)[:, 5:], uniform_segment_mass(columns))


@pytest.mark.parametrize("side", ["left", "right"])
def test_check_3_one_hot_values_lse_and_eager_agree_with_gqa_and_padding(side):
    g = torch.Generator().manual_seed(0)
    spans = spans_of(ROWS, side=side)
    batch_, length = spans.labels.shape
    query = torch.randn(batch_, 8, length, 16, generator=g) * 3
    key = torch.randn(batch_, 2, length, 16, generator=g) * 3
    mask = torch.ones(length, length).tril().bool() & spans.real[:, None, None] & spans.real[:, None, :, None]
    scale = 0.25
    logits = (query @ key.repeat_interleave(4, 1).transpose(2, 3) * scale).masked_fill(~mask, -torch.inf)
    eager = segment_mass(logits.softmax(-1).nan_to_num(0), spans.labels, 7)
    values = torch.nn.functional.pad(spans.indicators(), (0, 9))[:, None].expand(-1, 2, -1, -1)
    one_hot = torch.nn.functional.scaled_dot_product_attention(query, key, values, mask, scale=scale, enable_gqa=True)[
        ..., :7
    ]
    lse = [segment_mass_lse(query, key, spans.labels, 7, scale=scale, mask=mask, chunk=c) for c in (5, 128)]
    real = spans.real[:, None, :, None]
    for found in (one_hot.nan_to_num(0) * real, *lse):
        assert (found - eager).abs().max() < 1e-5
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    found = segment_mass_lse(query, key, spans.labels, 7, scale=scale, mask=additive) * real
    assert (found - eager).abs().max() < 1e-5


def test_lse_is_stable_far_below_the_maximum_and_causal_by_default():
    query = torch.tensor([[[[1.0], [1.0], [1.0]]]])
    key = torch.tensor([[[[200.0], [100.0], [-100.0]]]])
    found = segment_mass_lse(query, key, torch.tensor([[0, 1, 2]]), 4, scale=1.0)
    assert torch.isfinite(found).all() and found[0, 0, 2, 0] == 1
    assert found[0, 0, 2, 1].item() == pytest.approx(math.exp(-100), rel=1e-4)
    assert found[0, 0, 0].tolist() == [1, 0, 0, 0] and (found[..., 3] == 0).all()
    last = segment_mass_lse(query[:, :, 2:], key, torch.tensor([[0, 1, 2]]), 4, scale=1.0)  # the last query alone
    torch.testing.assert_close(last, found[:, :, 2:])
    nobody = segment_mass_lse(
        query, key, torch.tensor([[0, 1, 2]]), 4, scale=1.0, mask=torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    )
    assert (nobody == 0).all()


def test_bad_input_of_the_masses_is_told_in_one_line():
    with pytest.raises(ValueError, match=r"segments \(B, T\) are needed"):
        segment_mass(torch.ones(1, 1, 2, 3), torch.zeros(1, 2, dtype=torch.long), 2)
    with pytest.raises(ValueError, match=r"segments 0\.\.5 are outside 0\.\.1"):
        segment_mass(torch.ones(1, 1, 2, 2), torch.tensor([[0, 5]]), 2)
    with pytest.raises(ValueError, match=r"\[4, 3\)"):
        uniform_mass(4, 3, 12)
    with pytest.raises(ValueError, match="key"):
        segment_mass_lse(
            torch.ones(1, 3, 2, 4), torch.ones(1, 2, 2, 4), torch.zeros(1, 2, dtype=torch.long), 1, scale=1.0
        )


# -- the shift of two curves ---------------------------------------------------------------------------------------------


def test_comparators_by_hand():
    a, b = torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.tensor([[0.2, 0.1, 0.4, 0.3]])
    found = {c: attention_shift(a, b, comparator=c).item() for c in COMPARATORS}
    assert found["pearson"] == pytest.approx(0.4) and found["spearman"] == pytest.approx(0.4)
    assert found["cosine"] == pytest.approx(1 - 0.28 / 0.3) and found["l2"] == pytest.approx(0.2)
    p, q = a[0].double(), b[0].double()
    m = (p + q) / 2
    assert found["js"] == pytest.approx(((p * (p / m).log()).sum() + (q * (q / m).log()).sum()).item() / 2, abs=1e-7)
    assert attention_shift(a, b).dtype == torch.float64


def test_comparators_against_scipy_with_ties():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 4, (6, 9), generator=g).float(), torch.randint(0, 4, (6, 9), generator=g).float()
    for comparator, reference in (("pearson", pearsonr), ("spearman", spearmanr)):
        wanted = [1 - reference(x, y).statistic for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True)]
        assert attention_shift(a, b, comparator=comparator).tolist() == pytest.approx(wanted, abs=1e-9)


def test_js_divides_by_the_sum_allows_zeros_and_is_at_most_log_2():
    a, b = torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([[0.0, 0.3, 0.1]])
    assert attention_shift(a, b, comparator="js").item() == pytest.approx(0, abs=1e-9)
    apart = attention_shift(torch.tensor([[1.0, 0, 0]]), torch.tensor([[0, 0, 5.0]]), comparator="js")
    assert apart.item() == pytest.approx(math.log(2))
    assert torch.isnan(attention_shift(-a, b, comparator="js"))


def test_check_6_affine_curves_give_0_or_2_and_two_segments_give_exactly_2():
    curve = torch.rand(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert attention_shift(curve, 3 * curve + 0.2).tolist() == pytest.approx([0] * 4, abs=1e-12)
    assert attention_shift(curve, -0.5 * curve + 1).tolist() == pytest.approx([2] * 4, abs=1e-12)
    assert attention_shift(curve, 1 - curve).tolist() == pytest.approx([2] * 4, abs=1e-12)
    for comparator in ("pearson", "spearman"):
        found = attention_shift(curve, curve.flip(1), comparator=comparator)
        assert ((found >= 0) & (found <= 2)).all()


def test_check_4_permuting_layers_of_both_curves_together_changes_nothing():
    g = torch.Generator().manual_seed(1)
    a, b, order = torch.rand(3, 7, generator=g), torch.rand(3, 7, generator=g), torch.randperm(7, generator=g)
    for comparator in COMPARATORS:
        torch.testing.assert_close(
            attention_shift(a[:, order], b[:, order], comparator=comparator),
            attention_shift(a, b, comparator=comparator),
            atol=1e-12,
            rtol=0,
        )


def test_zero_variance_is_nan_never_0():
    flat, curve = torch.full((1, 5), 0.1), torch.rand(1, 5)
    for comparator in ("pearson", "spearman"):
        assert torch.isnan(attention_shift(flat, curve, comparator=comparator)).all()
        assert torch.isnan(attention_shift(curve, flat, comparator=comparator)).all()
    assert torch.isnan(attention_shift(torch.zeros(1, 5), curve, comparator="cosine"))
    assert torch.isfinite(attention_shift(flat, curve, comparator="l2"))


def test_curves_of_different_length_and_unknown_comparators_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 5\) and \(2, 4\)"):
        attention_shift(torch.ones(2, 5), torch.ones(2, 4))
    with pytest.raises(ValueError, match="'kendall' is not one of pearson, spearman, cosine, l2, js"):
        attention_shift(torch.ones(2, 5), torch.ones(2, 5), comparator="kendall")


def test_circular_null_turns_one_curve():
    a, b = torch.tensor([[1.0, 2, 4]]), torch.tensor([[3.0, 1, 2]])
    wanted = [attention_shift(a, b.roll(d, 1)).item() for d in (1, 2)]
    assert circular_null(a, b)[0].tolist() == pytest.approx(wanted)


def test_label_permutation_keeps_counts_and_other_segments():
    segments = torch.tensor([[0, 2, 2, 2, 3, 3, 4, 4, 4, -1], [0, 1, 2, 2, 3, 3, 3, 3, 4, 4]])
    new = permuted_segments(segments, (2, 4), torch.Generator().manual_seed(0))
    assert (new[(segments != 2) & (segments != 4)] == segments[(segments != 2) & (segments != 4)]).all()
    for row, was in zip(new, segments, strict=True):
        assert (
            row.bincount(minlength=0).tolist() == was.bincount().tolist() if (was >= 0).all() else (row == 2).sum() == 3
        )
    many = torch.stack(
        [permuted_segments(segments[:1], (2, 4), torch.Generator().manual_seed(i))[0] for i in range(200)]
    )
    assert (many[:, 1] == 2).float().mean().item() == pytest.approx(0.5, abs=0.1)


# -- the probe ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queries", ["post", "all", "gen", "last"])
def test_curves_equal_brute_force(table, queries):
    rows = [row for row in ROWS if "a" in row or queries != "gen"]
    for version, drop in (("raw", ""), ("without_sink", "b"), ("without_image", "I")):
        for segment in ("before", "image", "after"):
            wanted = np.stack([brute_curve(row, queries, segment, drop) for row in rows])
            for layer in (0, 3):
                row = one(
                    table, quantity="mass", run="vlm", version=version, queries=queries, segment=segment, layer=layer
                )
                assert row["mean"] == pytest.approx(wanted[:, layer].mean(), abs=1e-6) and row["n"] == len(rows)
                if not (version == "without_image" and segment == "image"):
                    assert row["sd"] == pytest.approx(wanted[:, layer].std(ddof=1), abs=1e-5)


def test_masses_of_the_table_sum_to_1(table):
    mass = table[(table.quantity == "mass") & (table.segment != "answer")]
    for version in ("raw", "without_sink", "without_image"):
        total = mass[mass.version == version].groupby(["queries", "layer"])["mean"].sum()
        assert len(total) == 4 * LAYERS and (total - 1).abs().max() < 1e-5


@pytest.mark.parametrize("comparator", COMPARATORS)
def test_shift_is_the_mean_over_samples_of_the_pure_function(table, comparator):
    for queries in ("post", "all"):
        for version, drop in (("raw", ""), ("without_sink", "b"), ("without_image", "I"), ("log_ratio", "")):
            ends = [
                torch.tensor(np.stack([brute_curve(row, queries, s, drop) for row in ROWS]))
                for s in ("before", "after")
            ]
            if version == "log_ratio":
                image = torch.tensor(np.stack([brute_curve(row, queries, "image") for row in ROWS]))
                ends = [((x + 1e-8) / (image + 1e-8)).log() for x in ends]
            each = attention_shift(*ends, comparator=comparator)
            where = {
                "quantity": "shift",
                "run": "vlm",
                "version": version,
                "queries": queries,
                "comparator": comparator,
            }
            row = one(table, order="per_sample_then_mean", **where)
            if comparator == "js" and version == "log_ratio":
                assert math.isnan(row["mean"]) or row["n"] < len(ROWS)
                continue
            assert row["mean"] == pytest.approx(each.mean().item(), abs=1e-5) and row["n"] == len(ROWS)
            if version != "log_ratio":
                means = attention_shift(*(x.mean(0, keepdim=True) for x in ends), comparator=comparator)
                of_means = one(table, order="curve_of_means", **where)
                assert of_means["mean"] == pytest.approx(means.item(), abs=1e-5)
                assert comparator == "l2" or abs(of_means["mean"] - row["mean"]) > 1e-7  # the two orders are not equal


def test_uniform_baseline_and_excess(table):
    wanted = []
    for row in ROWS:
        at = [i for i, c in enumerate(row) if c in "yag"]
        wanted.append(np.mean([sum(c == "x" for c in row[: i + 1]) / (i + 1) for i in at]))
    assert value(table, quantity="uniform", queries="post", segment="before") == pytest.approx(
        np.mean(wanted), abs=1e-6
    )
    where = {"quantity": "mass", "queries": "post", "segment": "before", "layer": 2, "run": "vlm"}
    excess = value(table, version="raw", **where) - np.mean(wanted)
    assert value(table, version="excess", **where) == pytest.approx(excess, abs=1e-6)


def test_per_head_means(table):
    for head in range(HEADS):
        wanted = []
        for row in ROWS:
            attention = causal_attention(spans_of([row]), HEADS, seed=7 * 2)[0, head]
            at = [i for i, c in enumerate(row) if c in "yag"]
            wanted.append(attention[at][:, [c == "I" for c in row]].sum(1).mean().item())
        found = value(table, quantity="head_mass", head=head, layer=2, queries="post", segment="image")
        assert found == pytest.approx(np.mean(wanted), abs=1e-6)


def test_circular_null_of_the_table_and_its_p(table):
    ends = [torch.tensor(np.stack([brute_curve(row, "post", s) for row in ROWS])) for s in ("before", "after")]
    null = circular_null(*ends).mean(0)
    rows = table[(table.quantity == "null_circular") & (table.queries == "post")].sort_values("draw")
    assert rows["mean"].tolist() == pytest.approx(null.tolist(), abs=1e-5) and rows["draw"].tolist() == [1, 2, 3, 4]
    observed = attention_shift(*ends).mean()
    shift = one(
        table,
        quantity="shift",
        run="vlm",
        version="raw",
        queries="post",
        comparator="pearson",
        order="per_sample_then_mean",
    )
    assert shift["p"] == pytest.approx((1 + (null <= observed).sum().item()) / LAYERS)


def same(a: pd.DataFrame, b: pd.DataFrame, tolerance: float = 1e-6) -> None:
    numbers = ["mean", "low", "high", "sd"]
    pd.testing.assert_frame_equal(a.drop(columns=numbers), b.drop(columns=numbers))
    shifts = a.quantity.isin(["shift", "null_circular", "difference", "distance", "shift_split"])
    for part, atol in ((~shifts, tolerance), (shifts, 20 * tolerance)):  # a correlation divides by a small variance
        pd.testing.assert_frame_equal(a.loc[part, ["mean"]], b.loc[part, ["mean"]], atol=atol, rtol=0)
        pd.testing.assert_frame_equal(
            a.loc[part, ["low", "high", "sd"]], b.loc[part, ["low", "high", "sd"]], atol=50 * atol, rtol=1e-3
        )


@pytest.mark.parametrize("side", ["left", "right"])
def test_check_7_padding_batching_and_order_change_nothing(table, side):
    same(table, run([batch(ROWS[::-1], side, width=30)]))
    same(table, run([batch([row], side, width=len(row) + 4) for row in (ROWS[3], ROWS[0], ROWS[4], ROWS[1], ROWS[2])]))


def test_check_4_permuting_heads_or_keys_within_a_segment_changes_nothing(table):
    spans = spans_of(ROWS)
    inputs = inputs_of(spans, samples=tuple(Sample(row, "") for row in ROWS))
    attention = {i: causal_attention(spans, HEADS, seed=7 * i) for i in range(LAYERS)}
    heads = mass_trace({i: x[:, [2, 0, 1]] for i, x in attention.items()}, inputs)
    no_heads = table.quantity != "head_mass"
    found = run([(heads, inputs)])
    same(table[no_heads].reset_index(drop=True), found[no_heads].reset_index(drop=True))
    for b, labels in enumerate(spans.labels):
        for label in range(7):
            at = torch.nonzero(labels == label).flatten()
            for x in attention.values():
                x[b][:, :, at] = x[b][:, :, at.flip(0)]
    found, dealt = run([(mass_trace(attention, inputs), inputs)]), table.quantity == "null_labels"
    same(
        table[~dealt].reset_index(drop=True), found[~dealt].reset_index(drop=True)
    )  # where a label falls matters to the null


def test_the_null_of_labels_is_the_shift_of_curves_of_dealt_labels(table):
    """By hand: one permutation a row, masses summed over the keys that got each label, Pearson over layers."""
    spans = spans_of(ROWS)
    attention = torch.stack([causal_attention(spans, HEADS, seed=7 * i) for i in range(LAYERS)])  # (L, B, H, T, T)
    dealt = spans.shuffled_indicators()
    text = spans.mask("before"), spans.mask("after", "answer", "generated")
    for k, own in enumerate(text):
        assert torch.equal(dealt[..., k].sum(1), own.sum(1).float())  # as many of each as there were
    assert torch.equal(dealt.sum(-1) > 0, text[0] | text[1]) and not torch.equal(dealt[..., 0] > 0, text[0])
    queries, shifts = text[1].float() / text[1].sum(1, keepdim=True).clamp(min=1), []
    for b in range(len(ROWS)):
        curves = torch.einsum("q,lhqk,ks->sl", queries[b], attention[:, b], dealt[b]) / HEADS
        shifts.append(attention_shift(curves[:1], curves[1:])[0])
    (found,) = table[(table.quantity == "null_labels") & (table.queries == "post")].itertuples()
    assert found.n == len(shifts) > 1
    assert found.mean == pytest.approx(torch.stack(shifts).double().mean().item(), abs=1e-5)


def test_check_5_pearson_is_the_same_under_sums_over_heads_queries_and_division_by_length():
    for row in ROWS:
        before, after = (torch.tensor(brute_curve(row, "post", s))[None] for s in ("before", "after"))
        n_queries, n_before, n_after = (sum(c in letters for c in row) for letters in ("yag", "x", "yag"))
        plain = attention_shift(before, after)
        for a, b in (
            (before * HEADS, after * HEADS),
            (before * n_queries, after * n_queries),
            (before / n_before, after / n_after),
        ):
            torch.testing.assert_close(attention_shift(a, b), plain, atol=1e-10, rtol=0)


def test_two_segments_only_give_a_shift_of_exactly_2():
    """Closure: with nothing but before and after, one curve is 1 less the other."""
    spans = spans_of(["IxxxxxxIyyyyyyyy"])
    inputs = inputs_of(spans, samples=(Sample("s", ""),))
    attention = {}
    for i in range(LAYERS):
        x = causal_attention(spans, HEADS, i) * (spans.labels != 3)[:, None, None]
        attention[i] = x / x.sum(-1, keepdim=True).clamp(min=1e-9)
        attention[i][:, :, 0, 0] = 1
    found = run([(mass_trace(attention, inputs), inputs)])
    row = one(
        found,
        quantity="shift",
        run="vlm",
        version="raw",
        queries="post",
        comparator="pearson",
        order="per_sample_then_mean",
    )
    assert row["mean"] == pytest.approx(2, abs=1e-6)


def test_samples_without_a_shift_are_counted_with_their_reason_and_keep_their_curves():
    rows = ["bxxxxyyyy", "bIIIIyyyyy", "bxxxxxIIII", "bxxxIIIIyyyyy", "bxxxxIIIIyyy", "bxxxxIIIIyyyy"]
    found = run([batch(rows)])
    reasons = found[found.quantity == "skipped"].set_index("reason")["n"].to_dict()
    assert reasons == {
        "no picture in the sample": 1,
        "picture first: no text before it": 1,
        "picture last: no text after it": 1,
        "less than 4 tokens before or after the picture": 2,
    }
    where = {"run": "vlm", "version": "raw", "queries": "post"}
    assert one(found, quantity="shift", comparator="pearson", order="per_sample_then_mean", **where)["n"] == 1
    assert one(found, quantity="mass", segment="image", layer=0, **where)["n"] == 4
    nothing = run([batch(["bIIIIyyyyy"])])
    row = one(nothing, quantity="shift", comparator="pearson", order="per_sample_then_mean", **where)
    assert math.isnan(row["mean"]) and row["n"] == 0 and "text before and after its picture" in row["reason"]


def test_flat_curves_are_nan_and_counted():
    spans = spans_of(ROWS[:2])
    inputs = inputs_of(spans, samples=tuple(Sample(row, "") for row in ROWS[:2]))
    same_everywhere = causal_attention(spans, HEADS, 0)
    found = run([(mass_trace(dict.fromkeys(range(LAYERS), same_everywhere), inputs), inputs)])
    where = {"run": "vlm", "version": "raw", "queries": "post", "comparator": "pearson"}
    row = one(found, quantity="shift", order="per_sample_then_mean", **where)
    assert math.isnan(row["mean"]) and "without variance" in row["reason"]
    assert one(found, quantity="undefined", **where)["n"] == 2


def test_several_pictures_each_split_and_pooled():
    rows = ["bxxxxIIyyyyyIIyyyyyyaa", "bxxxxxIIyyyyIIIyyyyyyy", "bxxxxIIIIyyyyy"]
    found = run([batch(rows)])
    pieces = [(r.index("I"), r.rindex("I") + 1) for r in rows]
    for k in (0, 1):
        each = []
        for row, (first, last) in zip(rows[:2], pieces[:2], strict=True):
            curves = []
            for layer in range(LAYERS):
                attention = causal_attention(spans_of([row]), HEADS, seed=7 * layer)[0].double().mean(0)
                text = [i for i, c in enumerate(row) if c in "xyag"]
                start = first if k == 0 else last
                before, after = [i for i in text if i < start], [i for i in text if i >= start]
                curves.append([attention[after][:, part].sum(1).mean().item() for part in (before, after)])
            each.append(attention_shift(*torch.tensor(curves).T[:, None]).item())
        row = one(found, quantity="shift_split", image=k, comparator="pearson", queries="post")
        assert row["mean"] == pytest.approx(np.mean(each), abs=1e-5) and row["n"] == 2
    pooled = one(
        found,
        quantity="shift",
        run="vlm",
        version="raw",
        queries="post",
        comparator="pearson",
        order="per_sample_then_mean",
    )
    assert pooled["n"] == 3  # text between pictures counts as text after the first


def test_text_only_contrast():
    found = run([batch(ROWS[:3], text=True), batch(ROWS[3:], text=True)], text_only=True)
    texts = [row.replace("I", "") for row in ROWS]
    ends = {s: torch.tensor(np.stack([brute_curve(row, "post", s) for row in ROWS])) for s in ("before", "after")}
    alone = {s: torch.tensor(np.stack([brute_curve(row, "post", s) for row in texts])) for s in ("before", "after")}
    with_, without = attention_shift(*ends.values()), attention_shift(*alone.values())
    where = {"version": "raw", "queries": "post", "comparator": "pearson", "order": "per_sample_then_mean"}
    assert value(found, quantity="shift", run="text", **where) == pytest.approx(without.mean().item(), abs=1e-5)
    row = one(found, quantity="difference", **where)
    assert row["mean"] == pytest.approx((with_ - without).mean().item(), abs=1e-5)
    assert row["sd"] == pytest.approx((with_ - without).std().item(), abs=1e-4)  # paired
    for segment in ("before", "after"):
        wanted = attention_shift(alone[segment], ends[segment]).mean().item()
        assert value(found, quantity="distance", segment=segment, **where) == pytest.approx(wanted, abs=1e-5)
        share = torch.tensor(np.stack([brute_curve(row, "post", segment, "I") for row in ROWS]))
        wanted = attention_shift(alone[segment], share).mean().item()
        assert value(
            found, quantity="distance", segment=segment, **{**where, "version": "without_image"}
        ) == pytest.approx(wanted, abs=1e-5)
    mass = value(found, quantity="mass", run="text", version="raw", queries="post", segment="after", layer=1)
    assert mass == pytest.approx(alone["after"][:, 1].mean().item(), abs=1e-6)


def test_sliding_and_linear_layers_are_flagged_and_left_out():
    kinds = ("full", "linear", "sliding", "full", "full")
    found = []
    for sliding in (False, True):
        made = probe(kinds, sliding=sliding)
        trace, inputs = batch(ROWS)
        del trace.tensors["blocks.1.attn_mass"], trace.tensors["blocks.1.attn_images"]
        made.update(trace, inputs)
        found.append(made.compute())
    where = {
        "quantity": "shift",
        "run": "vlm",
        "version": "raw",
        "queries": "post",
        "comparator": "pearson",
        "order": "per_sample_then_mean",
    }
    for table_, layers in zip(found, ([0, 3, 4], [0, 2, 3, 4]), strict=True):
        ends = [
            torch.tensor(np.stack([brute_curve(row, "post", s)[layers] for row in ROWS])) for s in ("before", "after")
        ]
        assert value(table_, **where) == pytest.approx(attention_shift(*ends).mean().item(), abs=1e-5)
        assert set(table_[table_.quantity == "mass"].layer) == {0, 2, 3, 4}
    left = found[0][found[0].quantity == "left_out"].set_index("layer")["kind"].to_dict()
    assert left == {1: "linear", 2: "sliding"}
    assert found[1][found[1].quantity == "left_out"].layer.tolist() == [1]


def test_a_model_with_one_full_layer_says_why_there_is_no_shift():
    made = probe(("full", "sliding", "sliding", "sliding", "sliding"))
    made.update(*batch(ROWS))
    found = made.compute()
    row = one(
        found,
        quantity="shift",
        run="vlm",
        version="raw",
        queries="post",
        comparator="pearson",
        order="per_sample_then_mean",
    )
    assert math.isnan(row["mean"]) and row["reason"] == "less than two layers with full attention"


def test_cross_attention_models_are_refused_in_one_line():
    with pytest.raises(UserError, match=r"enter by cross-attention.*leave this probe out.*cross_mass"):
        AttentionShift().attach(anatomy(image_in_sequence=False))


def test_rows_that_do_not_sum_to_1_are_renormalised_with_a_warning(table):
    trace, inputs = batch(ROWS)
    for tensor in trace.tensors.values():
        tensor *= 0.98
    with pytest.warns(UserWarning, match="sum to 1 only within 2"):
        found = run([(trace, inputs)])
    same(table, found)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run([batch(ROWS)])


def test_merging_two_states_equals_one_and_resuming_is_identical(table):
    first, second = probe(), probe()
    first.update(*batch([ROWS[0], ROWS[4]]))
    second.update(*batch(ROWS[1:4]))
    first.merge_state(second)
    same(table, first.compute())
    begun, resumed = probe(), probe()
    begun.update(*batch(ROWS[:2]))
    restore_states([resumed], *take_states([begun]))
    resumed.update(*batch(ROWS[2:]))
    pd.testing.assert_frame_equal(resumed.compute(), table)


def test_the_state_does_not_grow_with_samples():
    made = probe(text_only=True)
    made.update(*batch(ROWS, text=True))
    before = state_size(made)
    for _ in range(5):
        made.update(*batch(ROWS, text=True))
    assert state_size(made) == before


def test_without_samples_ids_tell_samples_apart(table):
    found = run([batch(ROWS[:2], samples=False), batch(ROWS[2:], samples=False)])
    no_blocks = table.order != "curve_of_means"  # only the jackknife's blocks may fall otherwise
    same(table[no_blocks].reset_index(drop=True), found[no_blocks].reset_index(drop=True))


def test_wrong_options_are_told():
    with pytest.raises(ValueError, match="min_tokens 0"):
        AttentionShift(min_tokens=0)
