"""The decoder: equal to plain generation where it must be, whatever the batch, on every family; options; nothing left behind."""

import pytest
import torch
from chiasm.models import open_vlm
from chiasm.models.anatomy import Anatomy
from chiasm.scenes.benchmarks import caption_set, skill_set
from chiasm.scenes.errors import UserError
from chiasm.steering import AddDirection, PruneVisual, SinkRedistribution, VisualAttentionBoost, steer
from chiasm.steering.branches import join
from chiasm.steering.contrast import ContrastDecoder, contrast
from chiasm.steering.contrast_processor import ContrastProcessor
from chiasm.steering.negatives import Blank, NoImage, NoisedImage, OutlierTokens, RandomTokens
from chiasm.steering.schedules import M3ID
from chiasm.steering.steer import Edit
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GenerationConfig, PreTrainedTokenizerFast, StoppingCriteriaList

from ..models.families import FAMILIES, IMAGE, PAD
from .contrasting import STEPS, opened, prefilled

EVERY = pytest.mark.parametrize("name", FAMILIES)
FEW = OutlierTokens(k=4)


@pytest.fixture(scope="module")
def organism():
    vlm = open_vlm("organism")
    samples = [*caption_set(3), *skill_set("colour", 3)]
    return vlm, samples, vlm.prepare([s.images for s in samples], [s.prompt for s in samples])


def logits(decoder, inputs, **options):
    """(B, steps, V) scores of the contrast, and the tokens."""
    out = decoder.output(inputs, output_logits=True, **STEPS | options)
    return torch.stack(out.logits, 1), out.sequences


def close(a, b):
    """Equal scores, and equally masked ones, up to rounding."""
    assert torch.equal(torch.isfinite(a), torch.isfinite(b))
    torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-4)


# -- equal to plain generation -----------------------------------------------------------------------------------------


@EVERY
def test_without_strength_it_generates_as_the_plain_model(name):
    vlm, inputs, _ = opened(name)
    plain = vlm.generate_ids(inputs, **STEPS)
    assert torch.equal(ContrastDecoder(vlm, FEW, alpha=0.0, beta=None).generate_ids(inputs, **STEPS), plain)


@EVERY
@pytest.mark.parametrize("negative", [FEW, NoImage(), NoisedImage()], ids=lambda n: type(n).__name__)
def test_three_routes_agree_token_for_token(name, negative):
    vlm, inputs, _ = opened(name)
    two_rows, tokens = logits(ContrastDecoder(vlm, negative, alpha=1.0), inputs)
    two_calls, same = logits(ContrastDecoder(vlm, negative, alpha=1.0, engine="two_calls"), inputs)
    close(two_rows, two_calls)
    assert torch.equal(tokens, same)
    processor = ContrastProcessor(vlm, negative, inputs, alpha=1.0)
    assert torch.equal(vlm.generate_ids(inputs, logits_processor=[processor], **STEPS), tokens)


@EVERY
@pytest.mark.parametrize("negative", [FEW, NoImage()], ids=lambda n: type(n).__name__)
def test_a_batch_is_its_rows_alone(name, negative):
    vlm, inputs, rows = opened(name)
    decoder = ContrastDecoder(vlm, negative, alpha=1.0)
    together, tokens = logits(decoder, inputs)
    for b, row in enumerate(rows):
        alone, same = logits(decoder, row)
        close(alone[0], together[b])
        assert torch.equal(same[0], tokens[b])


@pytest.mark.parametrize("name", ["gemma3", "idefics2", "aya_vision", "mistral3"])
def test_windows_count_real_tokens(name):
    """Layers that see the last few positions: the shorter branch is padded in the cache, and its window is not."""
    vlm, inputs, rows = opened(name)
    for config in (vlm.anatomy.decoder.config, vlm.anatomy.text_config):
        config.sliding_window = 5
    for block in vlm.anatomy.blocks:
        if hasattr(block.self_attn, "sliding_window"):
            block.self_attn.sliding_window = 5
    assert "Sliding" in str(prefilled(vlm, inputs, NoImage()).positive().cache.layers)
    decoder = ContrastDecoder(vlm, FEW, alpha=1.0)
    together, _ = logits(decoder, inputs)
    close(together, logits(ContrastDecoder(vlm, FEW, alpha=1.0, engine="two_calls"), inputs)[0])
    for b, row in enumerate(rows):
        close(logits(decoder, row)[0][0], together[b])
    plain = vlm.generate_ids(inputs, **STEPS)
    assert torch.equal(ContrastDecoder(vlm, FEW, alpha=0.0, beta=None).generate_ids(inputs, **STEPS), plain)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "mllama", "paligemma"])
def test_more_padding_in_front_changes_nothing(name):
    vlm, inputs, _ = opened(name)
    padded = dict(inputs.tensors)
    for key, value in padded.items():
        if key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "cross_attention_mask"):
            padded[key] = torch.cat([value.new_full((2, 3, *value.shape[2:]), PAD), value], 1)
    decoder = ContrastDecoder(vlm, FEW, alpha=1.0)
    close(logits(decoder, vlm.from_tensors(**padded))[0], logits(decoder, inputs)[0])


def test_permuted_rows_permute_the_answers(organism):
    vlm, samples, inputs = organism
    negatives = (OutlierTokens(k=4), NoisedImage(), RandomTokens(k=4), Blank())
    turned = vlm.prepare([s.images for s in samples[::-1]], [s.prompt for s in samples[::-1]])
    for negative in negatives:
        decoder = ContrastDecoder(vlm, negative, alpha=2.0)
        found, other = (decoder.output(batch, output_logits=True, max_new_tokens=8) for batch in (inputs, turned))
        assert torch.equal(found.sequences, other.sequences.flip(0))
        close(found.logits[0], other.logits[0].flip(0))


def test_beta_one_is_greedy_for_every_alpha(organism):
    vlm, _, inputs = organism
    plain = vlm.generate(inputs)
    for alpha in (1.0, 20.0):
        decoder = ContrastDecoder(vlm, FEW, alpha=alpha, beta=1.0)
        assert decoder.generate(inputs) == plain == decoder.generate(inputs, do_sample=True)


def test_the_scores_are_those_of_two_separate_models(organism):
    """The authors' loop, written out: two caches, positions of their own, the same prefix in both."""
    vlm, _, inputs = organism
    prefill = prefilled(vlm, inputs, FEW)
    positive, negative = prefill.positive(), FEW.branch(prefill)
    found = ContrastDecoder(vlm, FEW, alpha=2.0, beta=0.1).output(inputs, output_logits=True, max_new_tokens=5)
    for t, scores in enumerate(found.logits):
        pair = [
            branch.logits.index_fill(1, torch.tensor(vlm.anatomy.image_token_id), -torch.inf)
            for branch in (positive, negative)
        ]
        close(scores, contrast(*pair, alpha=2.0, beta=0.1))
        for branch in (positive, negative):
            branch.step(found.sequences[:, t])


def test_half_precision_is_contrasted_in_fp32():
    vlm = open_vlm("organism", dtype="bf16")
    sample = caption_set(1)[0]
    inputs = vlm.prepare([sample.images], [sample.prompt])
    for negative in (FEW, NoisedImage(), Blank()):
        out = ContrastDecoder(vlm, negative, alpha=0.0, beta=None).output(inputs, output_logits=True)
        assert out.logits[0].dtype == torch.float32
        assert torch.equal(out.sequences, vlm.generate_ids(inputs))


# -- options -----------------------------------------------------------------------------------------------------------


def test_sampling_without_strength_or_mask_is_plain_sampling(organism):
    vlm, _, inputs = organism
    torch.manual_seed(3)
    plain = vlm.generate_ids(inputs, do_sample=True, temperature=1.3, top_p=0.9)
    torch.manual_seed(3)
    decoder = ContrastDecoder(vlm, FEW, alpha=0.0, beta=None)
    assert torch.equal(decoder.generate_ids(inputs, do_sample=True, temperature=1.3, top_p=0.9), plain)


def test_the_processors_run_behind_the_contrast(organism):
    vlm, _, inputs = organism
    decoder = ContrastDecoder(vlm, FEW, alpha=1.0, beta=0.1)
    out = decoder.output(
        inputs, do_sample=True, temperature=2.0, top_k=3, output_scores=True, output_logits=True, max_new_tokens=3
    )
    for before, after in zip(out.logits, out.scores, strict=True):
        kept = torch.isfinite(after)
        assert kept.sum(-1).max() <= 3 and not (kept & ~torch.isfinite(before)).any()
        torch.testing.assert_close(after[kept], before[kept] / 2)
    assert torch.equal(decoder.generate_ids(inputs, do_sample=True, top_k=1), decoder.generate_ids(inputs))


def test_seeds_follow_the_sample_and_not_its_place(organism):
    vlm, samples, inputs = organism
    decoder, options = (
        ContrastDecoder(vlm, FEW, alpha=0.5, beta=None),
        dict(do_sample=True, temperature=3.0, max_new_tokens=8),
    )
    texts = decoder.generate(inputs, seeds=range(6), **options)
    assert (
        texts
        == decoder.generate(inputs, seeds=range(6), **options)
        != decoder.generate(inputs, seeds=[9] * 6, **options)
    )
    order = [4, 0, 5]
    some = vlm.prepare([samples[i].images for i in order], [samples[i].prompt for i in order])
    assert decoder.generate(some, seeds=order, **options) == [texts[i] for i in order]
    generators = [torch.Generator().manual_seed(i) for i in range(6)]
    assert decoder.generate(inputs, generators=generators, **options) == texts
    with pytest.raises(UserError, match="2 generators or seeds for 6 answers"):
        decoder.generate(inputs, seeds=[0, 1], **options)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen3_5", "mllama", "instructblip", "gemma3"])
@pytest.mark.parametrize("engine", ["two_rows", "two_calls"])
def test_several_answers_to_a_prompt(name, engine):
    vlm, inputs, _ = opened(name)
    decoder = ContrastDecoder(vlm, FEW, alpha=1.0, engine=engine)
    options = STEPS | {"do_sample": True, "temperature": 2.0}
    seeds = [5, 6, 7, 8]
    ids = decoder.generate_ids(inputs, num_return_sequences=2, seeds=seeds, **options)
    assert torch.equal(ids[0::2], decoder.generate_ids(inputs, seeds=seeds[0::2], **options))
    assert torch.equal(ids[1::2], decoder.generate_ids(inputs, seeds=seeds[1::2], **options))


def test_a_mask_that_leaves_only_what_is_forbidden_gives_way():
    vlm, inputs, _ = opened("llava")
    free = ContrastDecoder(vlm, FEW, alpha=0.0, beta=1.0).generate_ids(inputs, max_new_tokens=1)
    forbidden = [*{int(token) for token in free[:, 0]}, IMAGE]
    ids = ContrastDecoder(vlm, FEW, alpha=0.0, beta=1.0).generate_ids(
        inputs, max_new_tokens=1, suppress_tokens=forbidden
    )
    assert torch.equal(ids, vlm.generate_ids(inputs, max_new_tokens=1, suppress_tokens=forbidden))


def test_the_placeholder_is_never_an_answer():
    vlm, inputs, _ = opened("llava")
    vlm.model.lm_head.weight.data[IMAGE] = 100 * vlm.model.lm_head.weight.data.abs().max()
    ids = ContrastDecoder(vlm, FEW).generate_ids(inputs, max_new_tokens=4)
    assert not (ids == IMAGE).any()


def test_finished_rows_are_padded_and_change_no_other(organism):
    vlm, samples, _ = organism
    prompts = [samples[-1].prompt, samples[0].prompt]  # a word, and a caption
    inputs = vlm.prepare([samples[0].images] * 2, prompts)
    decoder = ContrastDecoder(vlm, FEW, alpha=0.3)
    ids = decoder.generate_ids(inputs)
    lengths = [decoder.generate_ids(vlm.prepare([samples[0].images], [prompt])).shape[1] for prompt in prompts]
    assert lengths[0] < lengths[1] == ids.shape[1]
    assert (ids[0, lengths[0] :] == vlm.tokenizer.pad_token_id).all()
    alone = [decoder.generate(vlm.prepare([samples[0].images], [prompt]))[0] for prompt in prompts]
    assert decoder.generate(inputs) == alone


def test_stop_strings_and_max_length_are_honoured(organism):
    vlm, samples, _ = organism
    inputs = vlm.prepare([samples[0].images], ["Describe the picture."])
    decoder = ContrastDecoder(vlm, FEW, alpha=0.3)
    assert decoder.generate_ids(inputs, max_new_tokens=3).shape[1] == 3
    full = decoder.generate(inputs)[0]
    word = full.split()[2]
    # transformers reads a tokenizer's spelling off a made-up word, which the organism's vocabulary has not
    words = WordLevel(vlm.tokenizer.get_vocab() | {"abcdef": 260}, unk_token="<pad>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))
    assert decoder.generate(inputs, stop_strings=[word], tokenizer=tokenizer)[0].split()[-1] == word != full.split()[-1]
    stop = StoppingCriteriaList([lambda ids, *_, **__: torch.full((len(ids),), ids.shape[1] >= start + 2)])
    start = inputs.tensors["input_ids"].shape[1]
    assert decoder.generate_ids(inputs, stopping_criteria=stop).shape[1] == 2


def test_a_stream_is_the_answer_in_pieces(organism):
    vlm, samples, _ = organism
    inputs = vlm.prepare([samples[0].images], ["Describe the picture."])
    decoder = ContrastDecoder(vlm, FEW, alpha=0.3)
    pieces = list(decoder.stream(inputs))
    assert len(pieces) > 2 and "".join(pieces).strip() == decoder.generate(inputs)[0]
    with pytest.raises(UserError, match="one"):
        list(decoder.stream(vlm.prepare([samples[0].images] * 2, ["Describe the picture."] * 2)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 3}, "num_beams=3"),
        ({"num_return_sequences": 2}, "do_sample=True"),
        ({"generation_config": GenerationConfig(num_beams=2)}, "num_beams=2"),
        ({"cache_implementation": "static"}, "cache_implementation"),
        ({"prompt_lookup_num_tokens": 2}, "assisted_generation"),
    ],
)
def test_what_cannot_be_contrasted_is_refused(organism, options, words):
    vlm, _, inputs = organism
    with pytest.raises(UserError, match=words) as error:
        ContrastDecoder(vlm, FEW).generate(inputs, **options)
    assert "\n" not in str(error.value)


def test_settings_are_checked_before_anything_runs(organism):
    vlm, samples, _ = organism
    for settings, words in (
        ({"alpha": -1}, "alpha"), ({"beta": 0}, "beta"), ({"beta": 1.5}, "beta"), ({"engine": "fast"}, "two_rows"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            ContrastDecoder(vlm, FEW, **settings)
    with pytest.raises(UserError, match="no picture"):
        ContrastDecoder(vlm, NoImage()).generate(vlm.prepare([None], ["Hello"]))
    falling = ContrastDecoder(vlm, FEW, alpha=lambda t, _: 1.5 - t)
    with pytest.raises(UserError, match=r"alpha=-0\.5"):
        falling.generate(vlm.prepare([samples[0].images], ["Describe the picture."]))
    llava, right, _ = opened("llava", "right")
    with pytest.raises(UserError, match="left-padded"):
        ContrastDecoder(llava, FEW).generate_ids(right)


def test_rows_without_a_picture_are_left_as_they_are(organism):
    vlm, samples, _ = organism
    inputs = vlm.prepare([samples[0].images, None], [samples[0].prompt, "Is there a dog?"])
    for negative in (FEW, NoImage(), RandomTokens(k=3), NoisedImage()):
        out = ContrastDecoder(vlm, negative, alpha=3.0, beta=None).output(inputs, output_logits=True, max_new_tokens=1)
        plain = vlm.trace(inputs, ["logits"])["logits"][1, -1]
        plain[vlm.anatomy.image_token_id] = -torch.inf
        close(out.logits[0][1], plain)


def test_several_pictures_a_row(organism):
    vlm, samples, _ = organism
    pictures = [samples[0].images[0], Image.new("RGB", samples[0].images[0].size, "red")]
    inputs = vlm.prepare([pictures], ["<image> and <image>: what changed?"])
    prefill = prefilled(vlm, inputs, FEW)
    assert FEW.branch(prefill).spans.visual.sum() == 8
    assert ContrastDecoder(vlm, FEW).generate(inputs)


# -- what it costs and leaves ------------------------------------------------------------------------------------------


@EVERY
def test_the_tower_runs_once_and_twice_only_for_other_pixels(name):
    vlm, inputs, _ = opened(name)
    calls = []
    tower = vlm.model.get_submodule(vlm.anatomy.layout.vision)
    hook = tower.register_forward_hook(lambda *_: calls.append(1))
    for negative, times in ((FEW, 1), (RandomTokens(k=4), 1), (NoImage(), 1), (NoisedImage(), 2), (Blank(), 2)):
        calls.clear()
        ContrastDecoder(vlm, negative).generate_ids(inputs, **STEPS)
        assert len(calls) == times, negative
    hook.remove()


def test_one_pass_of_two_rows_a_token(organism):
    vlm, _, inputs = organism
    shapes = []
    hook = vlm.anatomy.blocks[0].register_forward_pre_hook(lambda _m, args: shapes.append(tuple(args[0].shape[:2])))
    ContrastDecoder(vlm, FEW).generate_ids(inputs, max_new_tokens=4, min_new_tokens=4)
    hook.remove()
    prompt, kept = (
        inputs.tensors["input_ids"].shape[1],
        int(inputs.spans.real.sum(1).max()) - int(inputs.spans.visual[0].sum()) + 4,
    )
    assert shapes == [(6, prompt), (6, kept), (12, 1), (12, 1), (12, 1)]


def test_nothing_is_left_behind(organism):
    vlm, _, inputs = organism

    def state():
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules()]
        return hooks, vlm.anatomy.vision_config._attn_implementation

    before, decoder = state(), ContrastDecoder(vlm, FEW, alpha=2.0)
    first = decoder.generate(inputs)
    assert decoder.generate(inputs) == first == ContrastDecoder(vlm, FEW, alpha=2.0).generate(inputs)
    with pytest.raises(UserError):
        decoder.generate(inputs, num_beams=2)
    assert state() == before and not any(isinstance(value, torch.Tensor) for value in vars(decoder).values())


def test_interleaved_decoders_do_not_meet(organism):
    vlm, samples, _ = organism
    inputs = vlm.prepare([samples[0].images], ["Describe the picture."])
    decoders = [ContrastDecoder(vlm, negative, alpha=1.0) for negative in (FEW, NoImage(), NoisedImage(700))]
    alone = ["".join(decoder.stream(inputs)) for decoder in decoders]
    streams, found, going = [d.stream(inputs) for d in decoders], ["", "", ""], {0, 1, 2}
    while going:
        for i in sorted(going):
            piece = next(streams[i], None)
            if piece is None:
                going.discard(i)
            else:
                found[i] += piece
    assert found == alone


def test_the_processor_begins_again_by_itself_and_refuses_beams(organism):
    vlm, _, inputs = organism
    processor = ContrastProcessor(vlm, FEW, inputs, alpha=M3ID(0.5))
    wanted = ContrastDecoder(vlm, FEW, alpha=M3ID(0.5)).generate(inputs)
    assert vlm.generate(inputs, logits_processor=[processor]) == wanted
    assert vlm.generate(inputs, logits_processor=[processor]) == wanted
    processor.reset()
    assert processor.branch is None
    with pytest.raises(UserError, match="num_beams=1"):
        vlm.generate(inputs, logits_processor=[processor], num_beams=2)
    processor(inputs.tensors["input_ids"], torch.zeros(6, vlm.anatomy.vocab_size))
    with pytest.raises(UserError, match="reset"):
        processor(torch.zeros(6, 99, dtype=torch.long), torch.zeros(6, vlm.anatomy.vocab_size))


# -- interventions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "instructblip"])
@pytest.mark.parametrize("engine", ["two_rows", "two_calls"])
def test_interventions_change_the_full_picture_rows_only(name, engine):
    vlm, inputs, _ = opened(name)
    push = AddDirection(torch.ones(vlm.anatomy.hidden_size), layer=1, scale=2.0)
    with steer(vlm, push):
        steered = vlm.generate_ids(inputs, **STEPS)
    decoder = ContrastDecoder(vlm, NoImage(), alpha=0.0, beta=None, interventions=[push], engine=engine)
    assert torch.equal(decoder.generate_ids(inputs, **STEPS), steered)
    # the negative is what it is without interventions
    prefill = prefilled(vlm, inputs, NoImage())
    negative = NoImage().branch(prefill)
    with steer(vlm, push):
        positive = prefilled(vlm, inputs, NoImage()).positive()
    scores, tokens = logits(ContrastDecoder(vlm, NoImage(), alpha=2.0, interventions=[push], engine=engine), inputs)
    for t in range(scores.shape[1]):
        pair = [x.logits.index_fill(1, torch.tensor(IMAGE), -torch.inf) for x in (positive, negative)]
        close(scores[:, t], contrast(*pair, alpha=2.0, beta=0.1))
        with steer(vlm, push):
            positive.step(tokens[:, t])
        negative.step(tokens[:, t])


class Remembering:
    """Adds to every later state what the first position of the prompt was: something that a generation has to remember."""

    def edits(self, vlm):
        def after(states, where):
            kept = where.memory.setdefault(self, {})
            if where.prompt:
                kept["first"] = states[:, -1:].clone()
                return states
            assert len(kept["first"]) == len(states) == len(where.spans.labels)
            return torch.where(where.mask("all", states.device)[..., None], states + kept["first"], states)

        return [Edit(vlm.anatomy.blocks[0], after=after)]


@pytest.mark.parametrize("answers", [1, 2])
def test_what_interventions_remember_goes_with_the_rows(answers):
    vlm, inputs, _ = opened("llava")
    options = STEPS | {"do_sample": True, "top_k": 1, "num_return_sequences": answers}
    found = [
        ContrastDecoder(vlm, FEW, interventions=[Remembering()], engine=engine).generate_ids(inputs, **options)
        for engine in ("two_rows", "two_calls")
    ]
    assert torch.equal(*found)
    with steer(vlm, Remembering()):
        both = [
            ContrastDecoder(vlm, FEW, engine=engine).generate_ids(inputs, **options)
            for engine in ("two_rows", "two_calls")
        ]
    assert torch.equal(*both)


def test_attention_edits_in_both_engines(organism):
    vlm, _, inputs = organism
    for push in (VisualAttentionBoost(strength=0.6), SinkRedistribution(tau=3.0, p=0.2, rho=1.0, image_share=0.0)):
        found = [
            ContrastDecoder(vlm, FEW, alpha=0.5, interventions=[push], engine=engine).output(
                inputs, output_logits=True, max_new_tokens=5
            )
            for engine in ("two_rows", "two_calls")
        ]
        close(torch.stack(found[0].logits), torch.stack(found[1].logits))
        with steer(vlm, push):
            steered = vlm.generate_ids(inputs)
        plain = ContrastDecoder(vlm, FEW, alpha=0.0, beta=None, interventions=[push])
        assert torch.equal(plain.generate_ids(inputs), steered)


def test_pruned_prompts_take_two_calls(organism):
    vlm, _, inputs = organism
    prune = PruneVisual(keep=0.5)
    with pytest.raises(UserError, match="two_calls"):
        ContrastDecoder(vlm, NoImage(), interventions=[prune]).generate(inputs)
    with steer(vlm, prune):
        steered = vlm.generate_ids(inputs)
    decoder = ContrastDecoder(vlm, NoImage(), alpha=0.0, beta=None, interventions=[prune], engine="two_calls")
    assert torch.equal(decoder.generate_ids(inputs), steered)
    # and the negative is the text at the places that it has without pruning
    contrasted = ContrastDecoder(vlm, NoImage(), alpha=1.0, beta=None, interventions=[prune], engine="two_calls")
    found = contrasted.output(inputs, output_logits=True, max_new_tokens=1).logits[0]
    with steer(vlm, prune):
        positive = prefilled(vlm, inputs, NoImage()).positive().logits
    negative = NoImage().branch(prefilled(vlm, inputs, NoImage())).logits
    expected = contrast(positive, negative, alpha=1.0, beta=None)
    expected[:, vlm.anatomy.image_token_id] = -torch.inf
    close(found, expected)


def test_a_cache_without_all_positions_is_not_joined():
    vlm, inputs, _ = opened("llava")
    prefill = prefilled(vlm, inputs, NoImage())
    first, second = prefill.positive(), NoImage().branch(prefill)
    first.cache.crop(-3)
    with pytest.raises(UserError, match=r"22 of 25 positions.*two_calls"):
        join(first, second)


def test_join_holds_one_copy_of_the_cache():
    vlm, inputs, _ = opened("llava")
    prefill = prefilled(vlm, inputs, NoImage())
    first, second = prefill.positive(), NoImage().branch(prefill)
    joined = join(first, second)
    assert all(layer.keys is None and layer.values is None for layer in second.cache.layers)
    assert {tuple(layer.keys.shape) for layer in joined.cache.layers} == {(4, 2, 25, 8)}
    assert isinstance(joined.anatomy, Anatomy) and joined.mask.sum(1).tolist() == [25, 22, 9, 6]
