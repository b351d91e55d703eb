"""Words of a picture's tokens: those of the logit lens, where the tokens are."""

import pytest
import torch
from chiasm.models import open_vlm
from chiasm.probes.patch_words import patch_words
from chiasm.probes.vocabulary import decode_states
from chiasm.scenes.errors import UserError
from chiasm.scenes.sample import Sample

from ..models.families import build
from .measuring import sample, tiny_vlm


def test_words_are_those_of_the_lens_in_the_picture_asked_for():
    vlm, own = tiny_vlm(), sample(3)
    two = Sample("two", "w1 <image> w2 <image> w3", (sample(0).images[0], own.images[0]))
    inputs = vlm.prepare_samples([two])
    first, last = patch_words(vlm, two, [0, -1], picture=1)
    trace = vlm.trace(inputs, ["embed", "logits"])
    here = inputs.spans.visual[0] & (inputs.spans.image_index[0] == 1)
    p = decode_states(trace["embed"][0], vlm.anatomy.unembedding, vlm.anatomy.norm)[here]
    assert first.tokens == p.argmax(-1).tolist() and len(first.words) == 16 and first.layer == 0
    assert first.words[0] == vlm.tokenizer.decode([first.tokens[0]]).strip()
    assert last.tokens == trace["logits"][0][here].argmax(-1).tolist() and last.layer == 3
    assert torch.tensor(last.boxes).isfinite().all() and last.boxes[0][:2] != last.boxes[1][:2]
    assert max(first.probabilities) == pytest.approx(p.amax().item())
    assert patch_words(vlm, own, 2).layer == 2


def test_bad_input_is_one_line():
    vlm = tiny_vlm()
    with pytest.raises(UserError, match=r"layer 4 is outside this model's 0\.\.3"):
        patch_words(vlm, sample(0), 4)
    with pytest.raises(UserError, match="picture 1 of sample 's0'"):
        patch_words(vlm, sample(0), 0, picture=1)
    with pytest.raises(UserError, match="no visual tokens"):
        patch_words(open_vlm(model=build("mllama")[0]), sample(0), 0)
