"""The state read is the one that predicts the word: every family, either padding, any batch size; words found whole."""

import pytest
import torch
from chiasm.models import open_vlm
from chiasm.probes.extraction import extract, logit_check, matched, said_tokens, word_index
from chiasm.probes.reading import PER_TOKEN, PositionReader, continued, read_positions
from chiasm.scenes.benchmarks import caption_set
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import BadSample, Sample
from chiasm.scenes.world import CATEGORIES
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ..models.families import FAMILIES, IMAGE, batch, build
from ..models.processors import PROCESSORS

EVERY = pytest.mark.parametrize("name", FAMILIES)
NEW = 4
PLAIN = dict(suppress_tokens=[0, 1, 2, 3, *range(100, 128)])
"""Random models would say image tokens and the like."""


def vocabulary(name):
    return dict(suppress_tokens=[*PLAIN["suppress_tokens"], *(range(128, 1408) if name == "paligemma" else ())])


@EVERY
def test_states_of_decoding_are_those_of_reading_the_answer_again(name):
    model, tensors, _ = batch(name, "left")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    sites = ["blocks.1.resid_post", "final"]
    ids, cached = vlm.trace_generation(inputs, sites, max_new_tokens=NEW, min_new_tokens=NEW, **vocabulary(name))
    first = inputs.spans.labels.shape[1] - 1  # the last column of the prompt predicts the first token
    answers = [row[: NEW - 1] for row in ids.tolist()]
    for side in ("left", "right"):
        again, begins = continued(vlm, inputs, answers, side=side)
        for offset in range(NEW):
            found = read_positions(vlm, again, begins, [[offset]] * 2, sites)
            for site in sites:
                torch.testing.assert_close(found[site], cached[site][:, first + offset], atol=1e-5, rtol=1e-4)
    final = read_positions(vlm, *continued(vlm, inputs, answers), [[NEW - 1]] * 2, ["final"])["final"]
    logits = vlm.anatomy.unembed(final)
    logits[:, vocabulary(name)["suppress_tokens"]] = -torch.inf
    assert torch.equal(logits.argmax(-1), ids[:, -1])


@EVERY
def test_padding_of_the_prompt_makes_no_difference(name):
    sites, answers, read = ["blocks.0.resid_post", "final"], [[20, 21, 22], [30]], {}
    for side in ("left", "right"):
        model, tensors, rows = batch(name, side)
        vlm = open_vlm(model=model)
        inputs = vlm.from_tensors(**tensors)
        read[side] = read_positions(vlm, *continued(vlm, inputs, answers), [[3], [0, 1]], sites)
    for b, (alone, answer, offsets) in enumerate(zip(rows, answers, ([3], [0, 1]), strict=True)):
        single = vlm.from_tensors(**alone)
        found = read_positions(vlm, *continued(vlm, single, [answer]), [offsets], sites)
        whole = vlm.trace(continued(vlm, single, [answer])[0], sites)
        n = alone["input_ids"].shape[1]
        for site in sites:
            by_hand = whole[site][0, [n + o - 1 for o in offsets]].mean(0)
            torch.testing.assert_close(found[site][0], by_hand, atol=1e-6, rtol=1e-5)
            for side in ("left", "right"):
                torch.testing.assert_close(read[side][site][b], found[site][0], atol=2e-5, rtol=1e-4)


def test_only_the_positions_asked_for_are_kept():
    model, tensors = build("llava")
    vlm = open_vlm(model=model)
    inputs = vlm.from_tensors(**tensors)
    reader = PositionReader(
        vlm.anatomy, ["blocks.*.resid_post", "final"], inputs.spans, torch.tensor([0]), torch.tensor([7])
    )
    with reader(), torch.no_grad():
        vlm.forward(inputs)
    whole = vlm.trace(inputs, ["blocks.*.resid_post", "final"])
    assert not reader.read and {site: tuple(x.shape) for site, x in reader.taken.items()} == dict.fromkeys(
        whole, (1, 32)
    )
    assert all(torch.equal(x[0], whole[site][0, 7]) for site, x in reader.taken.items())
    assert all(x.untyped_storage().nbytes() == 32 * 4 for x in reader.taken.values())


def test_every_tensor_with_a_column_for_each_position_grows():
    for name in FAMILIES:
        _, tensors = build(name)
        inputs = open_vlm(model=build(name)[0]).from_tensors(**tensors)
        n = tensors["input_ids"].shape[1]
        grown = {
            k for k, v in tensors.items() if v.ndim > 1 and v.shape[1] == n and not k.startswith(("pixel", "qformer"))
        }
        assert grown <= set(PER_TOKEN), name
        assert continued(open_vlm(model=build(name)[0]), inputs, [[9, 9]])[0].spans.labels.shape[1] == n + 2


def picture(i=0):
    return Image.new("RGB", (40, 32), (40 * i % 256, 90, 200 - 30 * i))


def tiny_samples(name, n=5):
    front = name in ("blip2", "instructblip", "paligemma")
    texts = ["what is in the picture ?", "look at this", "a red cat", "look", "is this a dog ?"]
    return [
        Sample(f"s{i}", texts[i % 5] if front else f"<image> {texts[i % 5]}", (picture(i),), "a w77 .")
        for i in range(n)
    ]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "idefics3", "gemma3", "paligemma", "blip2", "mllama"])
def test_the_target_has_the_largest_logit_at_any_batch_size(name):
    vlm = open_vlm(model=build(name)[0], processor=PROCESSORS[name]())
    samples, options = tiny_samples(name), dict(max_new_tokens=6, **vocabulary(name))
    said = [
        vlm.generate(vlm.prepare([s.images], [s.prompt]), **{"max_new_tokens": 6} | vocabulary(name))[0]
        for s in samples
    ]
    word = said[0].split()[-1]  # one that some say late
    holding = [i for i, text in enumerate(said) if word in text.split()]
    found = extract(vlm, samples, word, sites=["blocks.1.resid_post", "final"], batch_size=1, **options)
    assert found.index.tolist() == holding and found.seen == 5 and found.without == 5 - len(holding)
    assert found.captions == tuple(said[i] for i in holding) and found.ids == tuple(f"s{i}" for i in holding)
    logits = vlm.anatomy.unembed(found["final"])
    logits[:, vocabulary(name)["suppress_tokens"]] = -torch.inf
    assert torch.equal(logits.argmax(-1), found.target)
    assert set(vlm.tokenizer.convert_ids_to_tokens(found.target)) == {word}
    for size in (2, 5):
        again = extract(vlm, samples, word, sites=["blocks.1.resid_post", "final"], batch_size=size, **options)
        assert again.index.tolist() == holding and torch.equal(again.target, found.target)
        for site in found.states:
            torch.testing.assert_close(again[site], found[site], atol=2e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def organism():
    return open_vlm("organism", device="cpu")


def test_on_the_organism_every_state_predicts_its_word(organism):
    samples = caption_set(24)
    found = extract(organism, samples, CATEGORIES, sites=["final", "blocks.0.resid_post"], batch_size=7)
    assert len(found) > 8 and logit_check(organism, found) == 1
    told = organism.tokenizer.convert_ids_to_tokens(found.target)
    for word, caption in zip(told, found.captions, strict=True):
        assert word == next(w for w in caption.split() if w in CATEGORIES)  # the first one said
    assert found["blocks.0.resid_post"].shape == (len(found), organism.anatomy.hidden_size)


def test_the_mean_over_a_caption_is_that_of_the_states_that_predict_it(organism):
    samples = caption_set(5)
    found = extract(organism, samples, None, sites="final", batch_size=5)
    assert len(found) == 5 and (found.target == -1).all()
    for b, sample in enumerate(samples):
        inputs = organism.prepare([sample.images], [sample.prompt])
        ids, trace = organism.trace_generation(inputs, ["final"])
        n, said = inputs.spans.labels.shape[1], said_tokens(organism, ids)[0]
        assert said[-1] == organism.tokenizer.eos_token_id
        by_hand = trace["final"][0, n - 1 : n - 1 + len(said) - 1].mean(0)
        torch.testing.assert_close(found["final"][b], by_hand, atol=1e-5, rtol=1e-4)
    cut = extract(organism, samples, None, max_new_tokens=3)  # no end token: the last is left out
    assert len(cut) == 5 and not torch.allclose(cut["final"], found["final"])


def test_the_truth_can_be_asked_for_too_and_bad_samples_are_counted(organism):
    samples = caption_set(30)
    found = extract(organism, samples, CATEGORIES)
    word = organism.tokenizer.decode(found.target.mode().values)
    said = extract(organism, samples, word)
    assert len(said) > 1

    def answered(*answers):
        return [Sample(s.id, s.prompt, s.images, answers[i == said.index[0]]) for i, s in enumerate(samples)]

    both = extract(organism, [*answered(f"one {word} .", "nothing"), BadSample("b", "damaged")], word, in_answer=True)
    assert both.index.tolist() == said.index.tolist()[1:] and both.skipped == 1 and both.seen == 30
    with pytest.raises(UserError, match="none of the 30 captions and answers at once"):
        extract(organism, answered(f"{word}ish", None), word, in_answer=True)


@pytest.mark.parametrize(
    ("word", "sites", "message"),
    [
        ("zebra", "final", "the word 'zebra' is in none of the 4 captions"),
        (["zebra", "gnu"], "final", "'zebra / gnu' is in none"),
        ("", "final", "word '' must be a word"),
        ([], "final", r"word \[\] must be a word"),
        ("a", "blocks.99.resid_post", "layer 99 is outside"),
        ("a", "projector", "'projector' holds no state that predicts a word"),
    ],
)
def test_bad_input_is_told_in_one_line(organism, word, sites, message):
    with pytest.raises(UserError, match=message) as told:
        extract(organism, caption_set(4), word, sites=sites)
    assert "\n" not in str(told.value)


def test_samples_that_cannot_be_read_are_told_and_not_called_speechless(organism):
    unfit = [Sample("s", "<image> <image> look", (picture(),))]
    with pytest.raises(
        UserError, match="none of the 1 samples could be read; the first, 's': 1 pictures for 2 <image>"
    ):
        extract(organism, unfit, "tree")
    assert extract(organism, [*unfit, *caption_set(2)], None).skipped == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_alike_and_widened(dtype):
    model, tensors, _ = batch("llava", "left")
    vlm = open_vlm(model=model.to(dtype))
    inputs = vlm.from_tensors(**tensors)
    ids, cached = vlm.trace_generation(inputs, ["final"], max_new_tokens=NEW, min_new_tokens=NEW, **PLAIN)
    found = read_positions(vlm, *continued(vlm, inputs, ids.tolist()), [[2]] * 2, ["final"])["final"]
    expected = cached["final"][:, inputs.spans.labels.shape[1] + 1].float()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-3 if dtype == torch.float16 else 2e-2, rtol=1e-2)


def test_matched_samples_are_those_in_which_both_say_the_word(organism):
    samples = caption_set(20)
    one, other = extract(organism, samples, CATEGORIES), extract(organism, samples[::-1], CATEGORIES)
    rows = matched(one, one)
    assert torch.equal(rows[0], rows[1]) and len(rows[0]) == len(one)
    some = extract(organism, [s if i % 2 else BadSample("x", "y") for i, s in enumerate(samples)], CATEGORIES)
    a, b = matched(one, some)
    assert torch.equal(one.index[a], some.index[b]) and len(b) == len(some) and (some.index % 2 == 1).all()
    torch.testing.assert_close(one["final"][a], some["final"][b], atol=1e-4, rtol=1e-4)
    assert other.ids == one.ids[::-1]


@pytest.fixture(scope="module")
def bpe():
    """A byte-level BPE with leading spaces, capitals and words of several tokens, as GPT-2's."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    text = ["a dog and a cat", "the dog", "Dog !", "a category of cats", "hot dog dog cat category"] * 4
    trainer = trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>"]
    )
    inner.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="<s>")


@pytest.mark.parametrize(
    ("text", "word", "before"),
    [
        ("a dog and a dog", "dog", "a"),  # the first of several, with its leading space
        ("Dog ! a dog", "dog", ""),  # a capital, without one
        ("a DOG", "dog", "a"),
        ("a category of cats, a cat", "cat", "a category of cats, a"),  # not in other words
        ("the zyxwvut is here", "zyxwvut", "the"),  # many tokens: the first one
        ("a hot dog", "hot dog", "a"),
        ("é ü — a dog", "dog", "é ü — a"),  # characters of several tokens in front
        ("a hotdog", "dog", None),
        ("", "dog", None),
    ],
)
def test_whole_words_are_found_at_their_first_token(bpe, text, word, before):
    ids = bpe(text)["input_ids"]
    at = word_index(bpe, ids, [word])
    if before is None:
        assert at is None
    else:
        assert bpe.decode(ids[:at]).strip() == before
        assert bpe.decode(ids[at:]).strip().lower().startswith(word)


def test_an_image_token_in_the_answer_is_never_read_as_a_picture(organism):
    """A model that says the image token: what follows it cannot be read again, and the sample is left out."""
    image = organism.anatomy.image_token_id
    assert image != IMAGE

    class Says:
        """The organism, with its captions given."""

        def __init__(self, rows):
            self.rows = rows

        def __getattr__(self, name):
            return getattr(organism, name)

        def generate_ids(self, inputs, **options):
            return torch.tensor(self.rows)

    tree, a, end = organism.tokenizer.convert_tokens_to_ids(["tree", "a", organism.tokenizer.eos_token])
    found = extract(Says([[a, image, tree, end], [a, tree, image, end]]), caption_set(2), "tree")
    assert found.index.tolist() == [1] and found.without == 1
