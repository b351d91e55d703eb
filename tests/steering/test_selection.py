"""Choosing directions by what they do to the counts of answers: by hand, and a real one found among random ones."""

from collections import Counter

import pytest
import torch
from chiasm.models import open_vlm
from chiasm.scenes.benchmarks import scene_samples
from chiasm.scenes.errors import UserError
from chiasm.steering.directions import concept_directions, difference_direction, last_states
from chiasm.steering.selection import answer_key, select_directions, try_directions, upper_cluster


@pytest.mark.parametrize(
    ("values", "n"),
    [
        ([10, 1, 0, 0, -3], 1), ([10, 9, 1, 0, 0], 2), ([5, 4.9, 4.8, 4.7, 0], 4), ([3, 3, 3], 0), ([2, 1, 0], 1), ([7], 0),
        ([4, 0], 1), ([0, -5, -5, -5], 1),
    ],
)  # fmt: skip
def test_the_upper_of_two_clusters(values, n):
    assert upper_cluster(values) == n


def test_two_means_are_those_of_scikit_learn():
    from sklearn.cluster import KMeans

    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        values = torch.randn(5, generator=generator).sort(descending=True).values
        labels = KMeans(2, n_init=10, random_state=0).fit_predict(values[:, None].numpy())
        assert upper_cluster(values.tolist()) == (labels == labels[0]).sum()


def test_selection_by_hand():
    before = {"yes": 10, "no": 10, "red": 5}
    after = [
        {"yes": 2, "no": 18, "red": 5},  # 0: no +8, red 0, yes -8
        {"yes": 0, "no": 20, "red": 5},  # 1: no +10, gap 10
        {"yes": 10, "no": 10, "red": 5},  # 2: nothing
        {"yes": 4, "no": 4, "red": 17},  # 3: red +12, gap 18
        {"yes": 3, "no": 3, "blue": 10, "green": 9},  # 4: blue +10, green +9: two answers
        {"yes": 0, "no": 10, "red": 5},  # 5: takes answers away, adds none
    ]
    found = select_directions(before, after)
    assert [(one.index, one.target, one.gap) for one in found] == [(3, ("red",), 18), (1, ("no",), 10)]
    assert found[1].changes == {"no": 10, "red": 0, "yes": -10}
    both = select_directions(before, after, few=2)
    assert (4, ("blue", "green")) in [(one.index, one.target) for one in both]
    assert [one.index for one in select_directions(before, after, n=1)] == [3]
    assert select_directions(before, [before]) == []
    assert select_directions({"a": 3}, [{"b": 3}])[0].target == ("b",)


def test_clusters_that_are_few_only_among_the_top():
    before = Counter()
    after = {"a": 9, "b": 8, "c": 7, "d": 1, "e": 1, "f": 1}
    assert select_directions(before, [after]) == []
    assert select_directions(before, [after], few=3)[0].target == ("a", "b", "c")
    assert select_directions(before, [after], top=2)[0].target == ("a",)


def test_answers_are_counted_without_case_and_punctuation():
    assert [answer_key(a) for a in ("Yes.", " yes ", "YES !", "the  red cup .", "")] == [
        "yes",
        "yes",
        "yes",
        "the red cup",
        "",
    ]


def test_bad_input_is_one_line():
    vlm = open_vlm("organism", device="cpu")
    samples, v = list(scene_samples(1, "test", "colour")), torch.zeros(2, 128)
    for call, words in [
        (lambda: select_directions({}, []), "counts_after is empty"),
        (lambda: select_directions({}, [{}], top=1), "top=1"),
        (lambda: select_directions({}, [{}], few=0), "few=0"),
        (lambda: try_directions(vlm, [], v, layer=1), "samples is empty"),
        (lambda: try_directions(vlm, samples, [], layer=1), "directions is empty"),
        (lambda: try_directions(vlm, samples, v), "layer= is missing"),
        (lambda: try_directions(vlm, samples, v[:, :3], layer=1), r"the direction is \(3,\)"),
    ]:
        with pytest.raises(UserError, match=words):
            call()


def test_a_direction_to_a_colour_is_found_among_random_ones():
    """On the organism: from the mean state of red answers to that of blue ones, hidden among random ones of the same length."""
    vlm = open_vlm("organism", device="cpu")
    samples = list(scene_samples(80, "val", "colour"))
    by = {colour: [s for s in samples if s.answer == colour] for colour in ("red", "blue")}
    states = {c: last_states(vlm, [s.images for s in some], [s.prompt for s in some], 2) for c, some in by.items()}
    real = difference_direction(states["red"], states["blue"])
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(3, 128, generator=generator)
    random *= real.norm() / random.norm(dim=-1, keepdim=True)
    atoms = torch.stack([states["red"].mean(0), states["blue"].mean(0)])
    torch.testing.assert_close(concept_directions(atoms)[0, 1], real)
    tried = list(scene_samples(16, "test", "colour"))
    before, after = try_directions(vlm, tried, torch.cat([random, real[None], 0 * real[None]]), layer=2)
    assert sum(before.values()) == 16 and all(sum(counts.values()) == 16 for counts in after)
    assert after[4] == before
    found = select_directions(before, after)
    assert found[0].index == 3 and found[0].target == ("blue",) and found[0].gap >= 3
    assert all(one.gap <= found[0].gap for one in found[1:])
