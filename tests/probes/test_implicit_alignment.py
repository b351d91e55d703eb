"""The implicit alignment probe: streamed against brute force, and every check of the method page on the measurement."""

import math

import pandas as pd
import pytest
import torch
from chiasm.probes.implicit_alignment import ImplicitAlignment, consecutive_similarity, cross_similarity
from chiasm.probes.pairs import permutation_p
from chiasm.probes.state import restore_states, take_states
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import Sample

from .fakes import anatomy, inputs_of, one, spans_of, state_size, state_trace, value

ROWS = ["bsxxIIIIyyyaa", "bxIIIIyyaaa", "bsxxxIIIIya", "bxxIIIIyyyyyaa", "bxIIIIyyyya", "bxxxIIIIyaa", "bsIIIIyyyyya"]
LAYERS, WIDTH = 5, 12  # embeddings, three blocks, final norm


def states_of(row: str, i: int, scale: float = 1.0) -> list[torch.Tensor]:
    """The states of one sample, (T, D) a layer: a slowly turning path, a common direction, its own meaning."""
    g = torch.Generator().manual_seed(100 + i)
    x = torch.randn(len(row), WIDTH, generator=g)
    x = x + torch.tensor([2.0] + [0.3] * (WIDTH - 1)) + torch.randn(WIDTH, generator=g)
    states = [x]
    for _ in range(LAYERS - 1):
        x = x + 0.4 * torch.randn(len(row), WIDTH, generator=g)
        states.append(x)
    return [scale * x for x in states]


def batch(
    which: list[int],
    side: str = "right",
    width: int | None = None,
    padding: float = 0.0,
    rows=ROWS,
    scale=None,
    group=None,
):
    """(trace, inputs) of these samples, padded with `padding` in every state."""
    spans = spans_of([rows[i] for i in which], side=side, width=width)
    states = [torch.full((len(which), spans.labels.shape[1], WIDTH), padding) for _ in range(LAYERS)]
    for b, i in enumerate(which):
        own = states_of(rows[i], i, 1.0 if scale is None else scale[i])
        for layer, value_ in zip(states, own, strict=True):
            layer[b, spans.labels[b] >= 0] = value_
    samples = tuple(Sample(f"s{i}", rows[i], truth={} if group is None else {"group": group[i]}) for i in which)
    inputs = inputs_of(spans, samples=samples)
    return state_trace(states, inputs), inputs


def probe(**options) -> ImplicitAlignment:
    made = ImplicitAlignment(**options)
    made.attach(anatomy(LAYERS - 2, WIDTH))
    return made


def run(batches, **options) -> pd.DataFrame:
    made = probe(**options)
    for trace, inputs in batches:
        made.update(trace, inputs)
    return made.compute()


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return run([batch([0, 1, 2]), batch([3, 4]), batch([5, 6])])


def tokens(i: int, group: str, layer: int, rows=ROWS) -> torch.Tensor:
    letters = {"P": "I", "T": "yag"}[group]
    keep = torch.tensor([c in letters for c in rows[i]])
    return states_of(rows[i], i)[layer][keep].double()


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def vectors(layer: int, pooling: str, group: str) -> torch.Tensor:
    """(n, D) a sample's unit vector of the mean token, or mean unit vector."""
    own = [tokens(i, group, layer) for i in range(len(ROWS))]
    return torch.stack([unit(x.mean(0)) if pooling == "avg" else unit(x).mean(0) for x in own])


def pair_values(layer: int, pooling: str, first: str, second: str, anchor: int | None = None) -> torch.Tensor:
    """(n, n) similarities of all pairs of samples by explicit loops over samples."""
    a, b = vectors(layer if anchor is None else anchor, pooling, first), vectors(layer, pooling, second)
    return torch.stack([torch.stack([x @ y for y in b]) for x in a])


@pytest.mark.parametrize("pooling", ["avg", "mean"])
def test_streamed_equals_brute_force_over_all_pairs(table, pooling):
    n = len(ROWS)
    off = ~torch.eye(n, dtype=torch.bool)
    scores = {"ima_same_layer": [], "ima_input_anchor": []}
    for layer in range(LAYERS):
        where = {"pooling": pooling, "variant": "raw", "layer": layer}
        pt = pair_values(layer, pooling, "P", "T")
        anchored = pair_values(layer, pooling, "P", "T", anchor=0)
        expected = {
            ("similarity", "P-T"): pt.mean(),
            ("similarity", "p-p"): pair_values(layer, pooling, "P", "P")[off].mean(),
            ("similarity", "t-t"): pair_values(layer, pooling, "T", "T")[off].mean(),
            ("anchored", "P-T"): anchored.mean(),
            ("matched", "P-T"): pt.diagonal().mean(),
            ("mismatched", "P-T"): pt[off].mean(),
            ("semantic", "P-T"): pt.diagonal().mean() - pt[off].mean(),
        }
        for (quantity, pair), wanted in expected.items():
            row = one(table, quantity=quantity, pair=pair, **where)
            assert row["mean"] == pytest.approx(wanted.item(), abs=1e-6), (quantity, pair, layer)
            assert row["n"] == n and row["low"] < row["mean"] < row["high"]
        scores["ima_same_layer"].append(pt.mean())
        scores["ima_input_anchor"].append(anchored.mean())
    for name, values in scores.items():
        assert value(table, quantity=name, pooling=pooling, variant="raw") == pytest.approx(
            torch.stack(values).mean().item(), abs=1e-6
        )


def test_mean_pooling_is_the_mean_over_all_pairs_of_tokens(table):
    cosines = [
        (unit(tokens(i, "P", 2)) @ unit(tokens(j, "T", 2)).T).mean() for i in range(len(ROWS)) for j in range(len(ROWS))
    ]
    found = value(table, quantity="similarity", pair="P-T", pooling="mean", variant="raw", layer=2)
    assert found == pytest.approx(torch.stack(cosines).mean().item(), abs=1e-6)


def test_the_probe_agrees_with_the_pure_functions(table):
    pooled = {
        g: torch.stack(
            [torch.stack([tokens(i, g, layer).mean(0) for layer in range(LAYERS)]) for i in range(len(ROWS))]
        )
        for g in "PT"
    }
    curve = table[
        (table.quantity == "similarity") & (table.pair == "P-T") & (table.pooling == "avg") & (table.variant == "raw")
    ]
    assert curve.sort_values("layer")["mean"].tolist() == pytest.approx(
        cross_similarity(pooled["P"], pooled["T"]).tolist(), abs=1e-6
    )
    for pairing in ("matched", "all"):
        for interval in (1, 2):
            wanted = consecutive_similarity(pooled["T"][:, :-1], interval=interval, pairing=pairing)
            rows = table[(table.quantity == "consecutive") & (table.pair == "T") & (table.pooling == "avg")]
            rows = rows[(rows.variant == pairing) & (rows.interval == interval)].sort_values("layer")
            assert rows["layer"].tolist() == list(range(len(wanted)))
            assert rows["mean"].tolist() == pytest.approx(wanted.tolist(), abs=1e-6)


def test_ima_same_layer_at_layer_0_equals_ima_input_anchor_at_layer_0(table):
    for pooling in ("avg", "mean"):
        for variant in ("raw", "centred_both", "without_outliers"):
            where = {"pair": "P-T", "pooling": pooling, "variant": variant, "layer": 0}
            assert value(table, quantity="similarity", **where) == pytest.approx(
                value(table, quantity="anchored", **where), abs=1e-12
            )


def test_global_is_the_cosine_of_the_grand_means(table):
    for layer in range(LAYERS):
        p, t = (torch.stack([tokens(i, g, layer).mean(0) for i in range(len(ROWS))]).mean(0) for g in "PT")
        assert value(table, quantity="global", layer=layer) == pytest.approx((unit(p) @ unit(t)).item(), abs=1e-6)


def test_norms_and_pooled_norm_by_hand(table):
    for group in "PT":
        for pooling, of in (
            ("mean", lambda x: x.norm(dim=1).mean()),
            ("median", lambda x: x.norm(dim=1).quantile(0.5)),
            ("pooled", lambda x: x.mean(0).norm()),
        ):
            wanted = torch.stack([of(tokens(i, group, 3)) for i in range(len(ROWS))])
            row = one(table, quantity="norm", pair=group, pooling=pooling, layer=3)
            assert row["mean"] == pytest.approx(wanted.mean().item(), abs=1e-6)
            assert row["sd"] == pytest.approx(wanted.std().item(), abs=1e-5)
            half = 2.446912 * wanted.std().item() / math.sqrt(7)  # Student's t, 6 degrees of freedom
            assert row["high"] - row["mean"] == pytest.approx(half, rel=1e-4)


def test_consecutive_layers_compare_the_same_token(table):
    for group in "PT":
        wanted = [(unit(tokens(i, group, 1)) * unit(tokens(i, group, 3))).sum(1).mean() for i in range(len(ROWS))]
        row = one(table, quantity="consecutive", pair=group, pooling="mean", variant="matched", interval=2, layer=1)
        assert row["mean"] == pytest.approx(torch.stack(wanted).mean().item(), abs=1e-6)
    assert set(table[table.quantity == "consecutive"].interval) == {1, 2}  # 4 and 8 do not fit three blocks


def test_consecutive_of_identity_blocks_is_1_for_all_intervals():
    trace, inputs = batch([0, 1])
    same = state_trace([trace["embed"]] * LAYERS, inputs)
    rows = run([(same, inputs)]).query("quantity == 'consecutive' and variant == 'matched'")
    assert len(rows) and rows["mean"].tolist() == pytest.approx([1] * len(rows), abs=1e-6)


def test_centred_avg_is_exact(table):
    for variant in ("centred_both", "centred_each"):
        for layer in (0, 3):
            p, t = (torch.stack([tokens(i, g, layer).mean(0) for i in range(len(ROWS))]) for g in "PT")
            both = (p.mean(0) + t.mean(0)) / 2
            p, t = (unit(x - (both if variant == "centred_both" else x.mean(0))) for x in (p, t))
            where = {"pair": "P-T", "pooling": "avg", "variant": variant, "layer": layer}
            assert value(table, quantity="similarity", **where) == pytest.approx((p @ t.T).mean().item(), abs=1e-5)
            assert value(table, quantity="matched", **where) == pytest.approx((p * t).sum(1).mean().item(), abs=1e-5)


def test_centred_mean_is_the_inner_product_of_centred_unit_vectors_over_their_root_mean_squares(table):
    for variant in ("centred_both", "centred_each"):
        p, t = ([unit(tokens(i, g, 2)) for i in range(len(ROWS))] for g in "PT")
        mp, mt = (torch.stack([x.mean(0) for x in own]).mean(0) for own in (p, t))
        if variant == "centred_both":
            mp = mt = (mp + mt) / 2
        rp, rt = (
            torch.stack([(x - m).square().sum(1).mean() for x in own]).mean().sqrt() for own, m in ((p, mp), (t, mt))
        )
        pairs = torch.stack([torch.stack([((a - mp) @ (b - mt).T).mean() for b in t]) for a in p]) / (rp * rt)
        where = {"pair": "P-T", "pooling": "mean", "variant": variant, "layer": 2}
        assert value(table, quantity="similarity", **where) == pytest.approx(pairs.mean().item(), abs=1e-6)
        assert value(table, quantity="matched", **where) == pytest.approx(pairs.diagonal().mean().item(), abs=1e-6)


def test_a_rise_that_is_a_drift_of_the_common_mean_disappears_after_centring():
    """A vector added to every state of a layer raises the raw similarity and leaves the centred ones as they were."""

    def shifted(which, size):
        trace, inputs = batch(which)
        return state_trace([x + size * (k == 2) for k, x in enumerate(trace.tensors.values())], inputs), inputs

    plain, moved = (run([shifted(list(range(7)), size)]) for size in (0.0, 30.0))
    where = {"quantity": "similarity", "pair": "P-T", "pooling": "avg", "layer": 2}
    assert value(moved, variant="raw", **where) > 0.98 > value(plain, variant="raw", **where)
    for variant in ("centred_both", "centred_each"):
        for quantity in ("similarity", "semantic"):
            changed = {**where, "variant": variant, "quantity": quantity}
            assert value(moved, **changed) == pytest.approx(value(plain, **changed), abs=1e-4)


def test_without_outliers_leaves_out_sinks_and_top_channels():
    rows = ["IIIIIIyyyyyy"] * 4
    spans = spans_of(rows)
    g = torch.Generator().manual_seed(0)
    clean = torch.randn(4, 12, WIDTH, generator=g)
    clean[:, :, :2] = 0
    loud = clean.clone()
    loud[:, :, 0], loud[:, :, 1] = 6.0, -5.0  # two channels that dominate every cosine
    loud[:, 3], loud[:, 9, 5] = 100.0, 400.0  # a sink in each group
    inputs = inputs_of(spans, samples=tuple(Sample(f"s{i}", "") for i in range(4)))
    found = run([(state_trace([loud] * LAYERS, inputs), inputs)], top_channels=2)
    keep_p, keep_t = [1, 2, 4, 5], [6, 7, 8, 10, 11]  # the first position is left out too
    for pooling in ("avg", "mean"):
        p, t = clean[:, keep_p].double(), clean[:, keep_t].double()
        p, t = (unit(x.mean(1)) if pooling == "avg" else unit(x).mean(1) for x in (p, t))
        got = value(found, quantity="similarity", pair="P-T", pooling=pooling, variant="without_outliers", layer=1)
        assert got == pytest.approx((p @ t.T).mean().item(), abs=1e-5)
        raw = value(found, quantity="similarity", pair="P-T", pooling=pooling, variant="raw", layer=1)
        assert raw > 0.25 > 0.1 > abs(got)
    assert value(found, quantity="sinks", pair="P", layer=0) == pytest.approx(2 / 6)
    assert value(found, quantity="sinks", pair="T", layer=0) == pytest.approx(1 / 6)


def same(a: pd.DataFrame, b: pd.DataFrame, tolerance: float = 1e-6) -> None:
    numbers = ["mean", "low", "high", "sd", "chance", "p"]
    pd.testing.assert_frame_equal(a.drop(columns=numbers), b.drop(columns=numbers))
    pd.testing.assert_frame_equal(a[["mean", "chance", "p"]], b[["mean", "chance", "p"]], atol=tolerance, rtol=0)
    pd.testing.assert_frame_equal(a[["low", "high", "sd"]], b[["low", "high", "sd"]], atol=20 * tolerance, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_any_batch_size_order_and_padding_side_give_the_same_numbers(table, side):
    same(table, run([batch([6, 2, 0, 5, 1, 4, 3], side)]))
    same(table, run([batch([i], side) for i in (3, 0, 6, 2, 5, 1, 4)]))


@pytest.mark.parametrize("padding", [1e4, float("nan")])
def test_padding_changes_nothing_at_any_layer(table, padding):
    same(table, run([batch([0, 1, 2], "left", 40, padding), batch([3, 4, 5, 6], "right", 30, padding)]))


def test_unchanged_by_scaling_one_samples_states(table):
    scaled = run([batch(list(range(7)), scale=[1, 1, 8, 1, 0.25, 1, 1])])
    for quantity in ("similarity", "anchored", "matched", "semantic"):
        for variant in ("raw", "without_outliers"):
            for pooling in ("avg", "mean"):
                pick = f"quantity == '{quantity}' and variant == '{variant}' and pooling == '{pooling}'"
                a, b = (x.query(pick)["mean"].dropna().tolist() for x in (table, scaled))
                assert a == pytest.approx(b, abs=1e-6) and len(a) >= LAYERS


def test_half_precision_states_are_widened(table):
    trace, inputs = batch(list(range(7)))
    big = state_trace([(1000 * x).half() for x in trace.tensors.values()], inputs)  # squares overflow in fp16
    found = run([(big, inputs)])
    where = {"quantity": "similarity", "pair": "P-T", "pooling": "mean", "variant": "raw", "layer": 2}
    assert value(found, **where) == pytest.approx(value(table, **where), abs=1e-3)
    assert value(found, quantity="norm", pair="P", pooling="mean", layer=4) > 3000


def test_merging_two_states_equals_one(table):
    first, second = probe(), probe()
    first.update(*batch([0, 3, 5]))
    second.update(*batch([1, 2]))
    second.update(*batch([4, 6]))
    first.merge_state(second)
    same(table, first.compute())


def test_resumed_from_a_saved_state_gives_the_identical_table(table):
    first, second = probe(), probe()
    first.update(*batch([0, 1, 2]))
    restore_states([second], *take_states([first]))
    for which in ([3, 4], [5, 6]):
        second.update(*batch(which))
    pd.testing.assert_frame_equal(second.compute(), table)


def test_between_data_sets_needs_two_and_is_the_mean_over_pairs_of_them(table):
    alone = one(table, quantity="similarity", pair="P-P", pooling="avg", variant="raw", layer=1)
    assert math.isnan(alone["mean"]) and alone["reason"] == "between data sets: needs two or more groups"
    group = ["a", "b", "c", "a", "b", "c", "a"]
    found = run([batch(list(range(7)), group=group)], groups=("a", "b", "c"))
    sets = [[i for i, g in enumerate(group) if g == name] for name in "abc"]
    for pair, letter in (("P-P", "P"), ("T-T", "T")):
        v = vectors(2, "mean", letter)
        means = [v[s].mean(0) for s in sets]
        wanted = sum(means[i] @ means[j] for i, j in ((0, 1), (0, 2), (1, 2))) / 3
        assert value(found, quantity="similarity", pair=pair, pooling="mean", variant="raw", layer=2) == pytest.approx(
            wanted.item(), abs=1e-6
        )
    p, t = vectors(2, "avg", "P"), vectors(2, "avg", "T")
    wanted = sum(p[s].mean(0) @ t[s].mean(0) for s in sets) / 3
    assert value(found, quantity="similarity", pair="P-T", pooling="avg", variant="raw", layer=2) == pytest.approx(
        wanted.item(), abs=1e-6
    )
    with pytest.raises(UserError, match=r"data set is 'c'.*one of a, b"):
        run([batch(list(range(7)), group=group)], groups=("a", "b"))


def test_which_text_counts_and_samples_without_picture_or_text_are_told():
    rows = ["bsxxIIyy", "bxxyyyaa", "bxxII", "bxIIya"]
    trace, inputs = batch([0, 1, 2, 3], rows=rows)
    after, everything = (run([(trace, inputs)], text=text) for text in ("after", "all"))
    for table_, n, no_text in ((after, 2, 1), (everything, 3, 0)):
        assert one(table_, quantity="norm", pair="T", pooling="mean", layer=0)["n"] == n
        assert one(table_, quantity="skipped", reason="no picture in the sample")["n"] == 1
        assert one(table_, quantity="skipped", reason="no text to compare")["n"] == no_text
    wanted = torch.stack(
        [states_of(rows[i], i)[0][[c in "bsxya" for c in rows[i]]].norm(dim=1).mean() for i in (0, 2, 3)]
    )
    assert value(everything, quantity="norm", pair="T", pooling="mean", layer=0) == pytest.approx(
        wanted.mean().item(), abs=1e-5
    )


def test_markers_around_a_picture_are_in_no_group():
    table_ = run([batch([0, 1], rows=["bxmIImya", "bxmIImyyya"])])
    wanted = torch.stack(
        [states_of(r, i)[1][[c == "I" for c in r]].norm(dim=1).mean() for i, r in enumerate(["bxmIImya", "bxmIImyyya"])]
    )
    assert value(table_, quantity="norm", pair="P", pooling="mean", layer=1) == pytest.approx(
        wanted.mean().item(), abs=1e-5
    )


def related(n: int, strength: float):
    """Samples whose text shares with its own picture what `strength` says, on a large common direction."""
    g = torch.Generator().manual_seed(9)
    spans = spans_of(["bxIIIyyy"] * n)
    own = torch.randn(n, 1, 32, generator=g)
    x = torch.randn(n, 8, 32, generator=g) * 0.3 + 2.0
    x[:, 2:5] += own
    x[:, 5:] += strength * own
    inputs = inputs_of(spans, samples=tuple(Sample(f"s{i}", "") for i in range(n)))
    made = ImplicitAlignment(permutations=500)
    made.attach(anatomy(1, 32))
    made.update(state_trace([x] * 3, inputs), inputs)
    return made.compute()


def test_matched_minus_mismatched_tells_meaning_from_anisotropy():
    yes, no = related(40, 1.0), related(40, 0.0)
    where = {"pair": "P-T", "pooling": "avg", "variant": "raw", "layer": 1}
    assert value(no, quantity="similarity", **where) > 0.8  # a common direction is no alignment of meaning
    assert one(no, quantity="semantic", **where)["p"] > 0.05 and one(yes, quantity="semantic", **where)[
        "p"
    ] == pytest.approx(1 / 501)
    row = one(yes, quantity="semantic", **where)
    assert row["low"] > 0
    for k in (1, 5):
        hit = {"quantity": "retrieval", "pair": "P-T", "variant": "centred_each", "layer": 1, "k": k}
        assert value(yes, **hit) > 0.95 and one(no, **hit)["chance"] == pytest.approx(k / 40)
        assert one(no, **hit)["low"] < k / 40 < one(no, **hit)["high"]


def test_retrieval_of_equal_samples_is_chance():
    spans = spans_of(["bxIIIyyy"] * 10)
    inputs = inputs_of(spans, samples=tuple(Sample(f"s{i}", "") for i in range(10)))
    trace = state_trace(
        [torch.randn(1, 8, WIDTH, generator=torch.Generator().manual_seed(0)).expand(10, -1, -1)] * LAYERS, inputs
    )
    table_ = run([(trace, inputs)])
    assert value(table_, quantity="retrieval", pair="P-T", variant="raw", layer=0, k=1) == pytest.approx(0.1)
    assert one(table_, quantity="semantic", pooling="avg", variant="raw", layer=0)["p"] == 1


def test_the_state_does_not_grow_and_what_is_kept_does_not_depend_on_the_order():
    many = [ROWS[i % 7] for i in range(60)]
    tables = []
    for order in (range(60), range(59, -1, -1)):
        made, order = probe(keep=20), list(order)
        for start in range(0, 60, 6):
            made.update(*batch(order[start : start + 6], rows=many))
            if start == 0:
                before = state_size(made)
        assert state_size(made) == before
        tables.append(made.compute())
    same(*tables)
    assert one(tables[0], quantity="matched", pooling="avg", variant="centred_each", layer=0)["n"] == 20
    assert one(tables[0], quantity="matched", pooling="avg", variant="raw", layer=0)["n"] == 60


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"text": "before"}, "'before' is not one of after, all"),
        ({"keep": 1}, "keep 1 is too few"),
        ({"intervals": (0,)}, "must be 1 or more"),
    ],
)
def test_wrong_options_are_told(options, told):
    with pytest.raises(ValueError, match=told):
        ImplicitAlignment(**options)


def test_without_permutations_there_is_no_p():
    assert permutation_p(torch.randn(4, 2, 3, 8), 0, 0).isnan().all()
