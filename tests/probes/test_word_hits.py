"""Hits, their mismatched control and top words, by hand and by brute force."""

import numpy as np
import pytest
import torch
from chiasm.probes.word_hits import content_words, hit_rates, top_words, word_shares


def test_words_of_most_answers_are_no_content_words():
    answers = torch.tensor([[1, 5, -1], [1, 6, 7], [1, 7, -1], [1, 8, 7]])
    ids, content = content_words(answers)
    assert ids.tolist() == [1, 5, 6, 7, 8]
    assert [ids[row].tolist() for row in content] == [[5], [6], [], [8]]  # 7 stands in two of three others


def test_shares_count_the_words_there_are():
    shares = word_shares(torch.tensor([[5, 5, 6, 9], [9, -1, -1, -1]]), torch.tensor([5, 9]))
    assert shares.tolist() == [[0.5, 0.25], [0, 1]]


def test_hits_are_brute_force_over_pairs():
    generator = torch.Generator().manual_seed(0)
    n, layers, k = 9, 2, 5
    words = torch.randint(0, 12, (n, layers, k), generator=generator)
    answers = torch.stack([torch.randperm(12, generator=generator)[:3] for _ in range(n)])
    ids, content = content_words(answers)
    sets = [set(ids[row].tolist()) for row in content]
    part = [i for i in range(n) if sets[i]]

    def rate(i, j, layer):
        return np.mean([int(w) in sets[j] for w in words[i, layer]])

    found = hit_rates(words, answers)
    for layer in range(layers):
        own = [rate(i, i, layer) for i in part]
        others = [rate(i, j, layer) for i in part for j in part if i != j]
        assert found["own"].mean[layer] == pytest.approx(np.mean(own))
        assert found["others"].mean[layer] == pytest.approx(np.mean(others))
        assert found["difference"].mean[layer] == pytest.approx(np.mean(own) - np.mean(others))
        # the jackknife of a mean is the ordinary standard error
        half = found["own"].high[layer] - found["own"].mean[layer]
        from scipy.stats import t

        assert half == pytest.approx(t.ppf(0.975, len(part) - 1) * np.std(own, ddof=1) / np.sqrt(len(part)))
        out = [
            np.mean([rate(i, i, layer) for i in part if i != k])
            - np.mean([rate(i, j, layer) for i in part for j in part if i != j and k not in (i, j)])
            for k in part
        ]
        m = len(part)
        wanted = t.ppf(0.975, m - 1) * np.sqrt((m - 1) / m * np.sum((np.array(out) - np.mean(out)) ** 2))
        assert found["difference"].high[layer] - found["difference"].mean[layer] == pytest.approx(wanted)
    assert found["own"].n[0] == len(part)


def test_one_sample_has_no_others_and_no_interval():
    found = hit_rates(torch.tensor([[[5, 6]]]), torch.tensor([[5, -1]]))
    assert found["own"].mean[0] == 0.5 and np.isnan(found["others"].mean[0]) and np.isnan(found["own"].low[0])


def test_top_words_are_means_over_samples():
    words = torch.tensor([[[5, 5, 6, 7]], [[6, -1, -1, -1]]])
    found = [(layer, rank, token, share.mean) for layer, rank, token, share in top_words(words, 2)]
    assert found == [(0, 1, 6, 0.625), (0, 2, 5, 0.25)]
