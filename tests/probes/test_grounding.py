"""Concepts in words and pictures: rows of the unembedding ground to themselves, filters, scores by hand, controls."""

from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from chiasm.models import open_vlm
from chiasm.probes.concepts import METHODS
from chiasm.probes.extraction import extract
from chiasm.probes.grounding import (
    concept_logits,
    ground_words,
    overlap_score,
    random_words,
    shared_share,
    top_samples,
)
from chiasm.probes.grounding_scores import PREFIX, active_concepts, clip_scores, true_words, word_scores
from chiasm.probes.word_concepts import check_same_words, concepts_of, describe, tuned_concepts
from chiasm.scenes.benchmarks import caption_set
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import Sample
from chiasm.scenes.world import CATEGORIES
from PIL import Image
from torch import nn

from ..models.families import FAMILIES, build
from ..models.processors import PROCESSORS
from .measuring import tiny_vlm

WORDS = ["<s>", "dog", " Dog", "the", "ox", "12", "-", "cat's", "train", "3.5", "bus", "hund", "padding row", "nan"]


class Tokens:
    """A tokenizer that knows WORDS."""

    all_special_ids = (0, 500)

    def __len__(self):
        return len(WORDS)

    def decode(self, ids):
        return WORDS[ids[0]]


def fake_vlm(bias=None, rows=14):
    """A head with orthogonal rows, some of them perhaps beyond the words."""
    head = nn.Linear(16, rows, bias=bias is not None)
    with torch.no_grad():
        nn.init.orthogonal_(head.weight)
        if bias is not None:
            head.bias.copy_(bias)
    return SimpleNamespace(anatomy=SimpleNamespace(unembedding=head, norm=nn.Identity()), tokenizer=Tokens())


def test_a_row_of_the_unembedding_grounds_to_its_word_first():
    vlm = fake_vlm()
    rows = vlm.anatomy.unembedding.weight.detach()
    for i in (1, 8, 10, 11):
        for length in (0.01, 1.0, 70.0):  # its length is no matter
            assert ground_words(vlm, length * rows[i : i + 1])[0][0] == WORDS[i].strip().lower()
    several = ground_words(vlm, rows[[8, 10]] + 0.5 * rows[[1, 5]])
    assert [words[:2] for words in several] == [["train", "dog"], ["bus", "12"]]


def test_the_filter_keeps_words_and_numbers():
    vlm = fake_vlm()
    every = vlm.anatomy.unembedding.weight.detach().T @ torch.linspace(2, 1, len(WORDS))
    told = ground_words(vlm, every[None])[0]  # in the order of WORDS
    assert told == [
        "dog",
        "dog",
        "12",
        "train",
        "3.5",
        "bus",
        "hund",
        "nan",
    ]  # no specials, stop words, short ones, pieces
    assert ground_words(vlm, every[None], unique=True)[0] == ["dog", "12", "train", "3.5", "bus", "hund", "nan"]
    assert ground_words(vlm, every[None], n=2)[0] == ["dog", "dog"]
    assert ground_words(vlm, every[None], candidates=4)[0] == ["dog", "dog"]  # dog, Dog, the, ox
    assert ground_words(vlm, every[None], words={"dog", "bus"})[0] == ["dog", "dog", "12", "3.5", "bus"]
    assert ground_words(vlm, every[None], stop={"dog"})[0][:3] == ["the", "12", "train"]


def test_logits_are_of_the_tokenizers_ids_with_the_heads_bias_in_fp32():
    bias = torch.arange(20.0)
    vlm = fake_vlm(bias, rows=20)
    atoms = torch.randn(3, 16)
    weight = vlm.anatomy.unembedding.weight.detach()
    torch.testing.assert_close(concept_logits(vlm, atoms), (atoms @ weight.T + bias)[:, : len(WORDS)])
    torch.testing.assert_close(concept_logits(vlm, atoms, bias=False), (atoms @ weight.T)[:, : len(WORDS)])
    vlm.anatomy.unembedding.half()
    found = concept_logits(vlm, 300 * atoms, bias=False)  # products that fp16 would not hold
    torch.testing.assert_close(found, 300 * atoms @ vlm.anatomy.unembedding.weight.float().T[:, : len(WORDS)])
    with pytest.raises(UserError, match="concepts are 8 wide, this model's words 16"):
        concept_logits(vlm, atoms[:, :8])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_final_norm_is_each_familys_own(name):
    vlm = open_vlm(model=build(name)[0])
    vlm.writer = SimpleNamespace(tokenizer=range(90))  # fewer words than the head has rows
    last = torch.randn(4, vlm.anatomy.hidden_size)
    with torch.no_grad():
        expected = vlm.anatomy.unembed(vlm.anatomy.norm(last))[:, :90]
    torch.testing.assert_close(concept_logits(vlm, last, final_norm=True), expected, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        plain = vlm.anatomy.unembed(last)[:, :90]
    torch.testing.assert_close(concept_logits(vlm, last), plain, atol=1e-5, rtol=1e-4)


def test_random_words_are_seeded_and_as_long():
    vlm = tiny_vlm()
    one = random_words(vlm, 3, n=5, words={f"w{i}" for i in range(90)})
    assert one == random_words(vlm, 3, n=5, words={f"w{i}" for i in range(90)})
    assert one != random_words(vlm, 3, seed=1, n=5, words={f"w{i}" for i in range(90)})


def test_overlap_by_hand():
    assert overlap_score([["a", "b"], ["a", "b"]]) == 1 and overlap_score([["a"], ["b"]]) == 0
    # k=0: a a of l; k=1: 1 of 2
    assert overlap_score([["a", "a", "c"], ["a", "d"]]) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert overlap_score([[], ["a"]]) == 0 and overlap_score([["a"]]) != overlap_score([["a"]])
    assert shared_share(["a", "b", "b"], ["b", "c"], 4) == 25


def test_top_samples_by_code_and_by_size():
    codes = torch.tensor([[1.0, -9.0], [3.0, 2.0], [2.0, 2.0]])
    assert top_samples(codes, 2) == [[1, 2], [1, 2]]
    assert top_samples(codes, 2, absolute=True) == [[1, 2], [0, 1]]
    assert top_samples(codes, 50) == [[1, 2, 0], [1, 2, 0]]


def test_word_scores_by_hand():
    codes = torch.tensor([[2.0, 1.0], [0.0, 3.0], [0.0, 0.0]])
    assert active_concepts(codes) == [[0], [1], []] and active_concepts(codes, 2) == [[0, 1], [1], []]
    words, truths = [["dog", "bus", "red"], ["cat"]], [frozenset({"dog", "cat"})] * 3
    assert word_scores(words, codes, truths).tolist()[:2] == pytest.approx([1 / 3, 1])
    assert word_scores(words, codes, truths, top=2)[0].item() == pytest.approx((1 / 3 + 1) / 2)
    assert word_scores(words, codes, truths)[2].isnan() and word_scores([[], []], codes, truths).isnan().all()


def test_true_words_are_the_scenes_or_the_answers():
    sample = caption_set(1)[0]
    scene = sample.truth["scene"]
    told = true_words(sample)
    assert scene.place in told and all({t.category, t.colour} <= told for t in scene.things)
    assert not {c for c in CATEGORIES if not scene.count(c)} & told
    assert true_words(Sample("x", "p", (), "A Dog, and cats.")) == {"a", "dog", "and", "cats"}


def test_clip_score_is_clips(tmp_path):
    text = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=128, max_position_embeddings=40,
                bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
    vision = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    torch.manual_seed(0)
    clip = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    processor = hf.CLIPProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        PROCESSORS["llava"]().tokenizer,
    )
    clip.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    words, images = [["dog", "table"], ["cat"]], [Image.new("RGB", (32, 32), (200, 10 * i, 0)) for i in range(3)]
    codes = torch.tensor([[1.0, 0.5], [0.0, 1.0], [0.0, 0.0]])
    found = clip_scores(words, codes, images, str(tmp_path), top=2)
    inputs = processor(text=[PREFIX + "cat"], images=images[1], return_tensors="pt")
    with torch.no_grad():
        logit = clip(**inputs).logits_per_image.item() / clip.logit_scale.exp().item()
    assert found[1].item() == pytest.approx(2.5 * max(logit, 0), abs=1e-5) and found[2].isnan()
    with pytest.raises(UserError, match="CLIP model 'nowhere' cannot be loaded"):
        clip_scores(words, codes, images, "nowhere")


@pytest.fixture(scope="module")
def organism():
    return open_vlm("organism", device="cpu")


@pytest.fixture(scope="module")
def states(organism):
    return extract(organism, caption_set(60), CATEGORIES)


@pytest.mark.parametrize("method", METHODS)
def test_concepts_of_a_word_on_the_organism(organism, states, method, tmp_path):
    found = describe(organism, states, k=4, method=method)
    assert len(found.words) == len(found.top) == 4 and all(len(row) == 5 for row in found.top)
    assert (len(found.opposite) == 4) == (method == "pca")
    table = found.table()
    assert table["n"].sum() == len(states) and table["words"].str.len().gt(0).all()
    assert found.save(tmp_path / "things").is_file()
    assert {
        "model": "organism",
        "model_hash": organism.fingerprint(),
        "site": "final",
        "n": len(states),
    }.items() <= found.card.items()


def test_uncentred_centres_say_the_same_words_more(organism, states):
    """The fault that centring is for: every centre holds the mean, and decodes to its words."""
    told = {centre: describe(organism, states, k=4, method="kmeans", centre=centre).words for centre in (True, False)}
    assert overlap_score(told[False]) > overlap_score(told[True])


def test_words_of_the_organisms_concepts_are_true_beyond_chance(organism):
    samples = caption_set(120)
    found = concepts_of(organism, samples[:60], CATEGORIES, k=6, method="kmeans")
    test = extract(organism, samples[60:], CATEGORIES)
    codes, truths = found.dictionary.encode(test["final"]), [true_words(samples[60 + i]) for i in test.index]
    ours = word_scores(found.words, codes, truths).nanmean()
    control = word_scores(random_words(organism, 6), codes, truths).nanmean()
    assert ours > 2 * control


def test_concepts_of_any_family_with_any_reader():
    vlm = open_vlm(model=build("qwen2_5_vl")[0], processor=PROCESSORS["qwen2_5_vl"]())
    samples = [Sample(f"s{i}", "<image> look", (Image.new("RGB", (40, 32), (40 * i, 0, 9)),)) for i in range(4)]
    found = concepts_of(
        vlm,
        samples,
        None,
        k=2,
        method="kmeans",
        site="blocks.1.resid_post",
        extraction={"max_new_tokens": 3, "suppress_tokens": [0, 1, 2, *range(100, 128)]},
    )
    assert found.dictionary.atoms.shape == (2, 32) and found.states.words == ()
    with pytest.raises(UserError, match="4 states are fewer than 20 concepts"):
        concepts_of(
            vlm, samples, None, extraction={"max_new_tokens": 3, "suppress_tokens": [0, 1, 2, *range(100, 128)]}
        )


def test_a_model_and_itself_have_shifts_of_length_0(organism, states):
    pair = tuned_concepts(organism, organism, states, states, k=3, n_images=4)
    assert pair.shift.shift.abs().max() == 0 and pair.partner.tolist() == [0, 1, 2]
    assert pair.words["before"] == pair.words["shifted"] == pair.words["after"]
    assert pair.pictures["before"] == pair.pictures["shifted"] == pair.pictures["after"]
    assert all(set(row) <= set(states.index.tolist()) for row in pair.pictures["before"])


def test_models_that_cannot_be_compared_are_refused(organism, states):
    with pytest.raises(UserError, match="wide and"):
        tuned_concepts(organism, tiny_vlm(), states, states)
    one, other = tiny_vlm(), tiny_vlm()
    other.tokenizer.add_tokens(["new"])
    with pytest.raises(UserError, match="different tokenizers"):
        check_same_words(one, other)
