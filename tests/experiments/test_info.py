"""`chiasm info`: parts, tokens and memory of a model from its configuration alone."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from chiasm.experiments.image_tokens import image_tokens
from chiasm.experiments.info import SITES, info, meta_model, parse_size, read_config, render
from chiasm.experiments.lenses import built_in
from chiasm.experiments.memory import site_bytes, trace_memory, weight_memory
from chiasm.experiments.timing import allocation_peak
from chiasm.models import open_vlm
from chiasm.models.anatomy import find_anatomy
from chiasm.models.trace import expand_sites
from chiasm.scenes.errors import UserError
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers

from ..models.families import FAMILIES, IMAGE, build
from .pages import framed_scene, tiny_vlm

CONFIGS = Path(__file__).parent / "configs"
SIZES = {"llava_next": (64, 64), "llava_onevision": (64, 64)}  # what the tiny inputs were made for; the others 32 x 32


def shown(facts: dict) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(render(facts))
    return console.file.getvalue()


@pytest.fixture(params=FAMILIES)
def tiny(request, tmp_path):
    """(family, model, inputs, its bare config.json)."""
    model, tensors = build(request.param)
    model.config.save_pretrained(tmp_path)
    return request.param, model, tensors, tmp_path / "config.json"


def test_every_family_is_known_from_its_bare_config(tiny):
    name, model, tensors, path = tiny
    size = SIZES.get(name, (32, 32))
    facts = info(path, image_size=size)
    parameters = sum(p.numel() for p in model.parameters())
    assert facts["parameters"] == parameters == sum(part["parameters"] for part in facts["parts"])
    assert facts["weights"]["float32"] == 4 * parameters
    anatomy = find_anatomy(model)
    assert (facts["layers"], facts["vision_layers"]) == (anatomy.n_layers, anatomy.n_vision_layers)
    assert facts["class"] == type(model).__name__
    placeholders = int((tensors["input_ids"] == IMAGE).sum())
    picture = facts["picture"]
    if name.startswith("qwen"):  # its processor enlarges a picture this small to 64 x 64: 8 x 8 patches, merged 2 x 2
        assert (picture["tokens"], placeholders) == (16, 4)
    else:
        assert picture["tokens"] == placeholders * (picture["tiles"] if anatomy.layout.grid == "tiles" else 1)
    assert facts["trace"]["length"] == picture["tokens"] + 64
    assert json.loads(json.dumps(facts)) == facts
    assert facts["class"] in shown(facts) and "decoder blocks" in shown(facts)


def test_every_part_is_counted_once_where_it_is(tiny):
    _, model, _, path = tiny
    parts = {part["name"]: part for part in info(path)["parts"]}
    anatomy = find_anatomy(model)
    blocks = sum(p.numel() for p in anatomy.blocks.parameters())
    assert parts["decoder blocks"]["parameters"] == blocks
    assert parts["projector"]["parameters"] == sum(p.numel() for p in anatomy.projector.parameters())
    assert parts["vision tower"]["parameters"] > 0
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)


def test_the_bytes_of_every_site_are_those_of_a_trace(tiny):
    name, model, tensors, path = tiny
    vlm = open_vlm(model=model)
    trace = vlm.trace(vlm.from_tensors(**tensors), ["*"])
    anatomy = find_anatomy(meta_model(read_config(str(path))))
    picture = image_tokens(anatomy, SIZES.get(name, (32, 32)))
    if anatomy.layout.grid in ("tiles", "merged"):  # the tiny inputs hold one tile, or 4 x 4 patches
        picture = type(picture)(int((tensors["input_ids"] == IMAGE).sum()), 1, 16 + anatomy.layout.prefix, "")
    for site, value in trace.tensors.items():
        if site.startswith("vision") and name == "mllama":
            continue  # its tower pads its patches to a multiple of eight
        assert site_bytes(anatomy, site, 1, tensors["input_ids"].shape[1], 1, picture, 4) == value.nbytes, site


@pytest.mark.parametrize(
    ("name", "parameters", "photo", "square"),
    [
        # parameters as their publishers count them; tokens of a 640 x 480 photograph and of a 672 x 672 picture
        ("llava-1.5-7b", 7_063_427_072, 576, 576),
        ("llava-v1.6-mistral-7b", 7_566_747_648, 2340, 2928),
        ("qwen2.5-vl-7b", 8_292_166_656, 391, 576),
        ("internvl3-8b", 7_944_373_760, 3328, 1280),
        ("smolvlm2-2.2b", 2_246_784_880, 1053, 1377),
    ],
)
def test_published_models_come_out_at_their_published_sizes(name, parameters, photo, square):
    facts = info(CONFIGS / f"{name}.json")
    assert facts["parameters"] == parameters
    assert facts["picture"]["tokens"] == photo
    assert info(CONFIGS / f"{name}.json", image_size=(672, 672))["picture"]["tokens"] == square
    assert facts["weights"]["bfloat16"] == 2 * parameters
    assert parameters < facts["weights"]["int8"] < 2 * parameters
    assert facts["weights"]["int4"] < facts["weights"]["int8"]


def test_the_numbers_of_llava_by_hand():
    facts = info(CONFIGS / "llava-1.5-7b.json", batch=8, length=700)
    assert (facts["layers"], facts["hidden_size"], facts["heads"], facts["head_size"]) == (32, 4096, 32, 128)
    assert (facts["vision_layers"], facts["vision_width"], facts["image_token_id"]) == (24, 1024, 32000)
    parts = {part["name"]: part["parameters"] for part in facts["parts"]}
    assert parts["projector"] == 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert parts["embedding"] == parts["unembedding"] == 32064 * 4096
    trace = facts["trace"]["bytes"]
    positions = 8 * 700
    assert facts["trace"]["dtype"] == "float16"
    masses = (
        32 * 32 * (7 + 2 + 2 + 1) * 4
    )  # 7 spans, two of shuffled text, a picture and its text, one query's row, fp32
    squares = 32 * (3 * 4096 + 11008) * 8 * 2 * 4  # of what q, k and v read; o; gate and up; down; 8 rows, two groups
    assert trace["sites"] == positions * (34 * 4096 * 2 + masses) + squares
    # one layer in flight: its states, gate, up and their product; the mass's and the squares' own in fp32
    assert trace["work"] == positions * (2 * (4 * 4096 + 3 * 11008) + 16 * 4096 + 4 * 11008)
    whole = info(CONFIGS / "llava-1.5-7b.json", batch=8, length=700, sites=["blocks.*.in.*"])["trace"]["bytes"]
    assert whole["sites"] == positions * 32 * (3 * 4096 + 11008) * 2
    assert trace["logits"] == positions * 32064 * 2
    assert trace["cache"] == 32 * 2 * positions * 32 * 128 * 2
    assert trace["peak"] == trace["weights"] + trace["sites"] + max(trace["work"], trace["logits"])
    assert trace["peak_generating"] == trace["peak"] + trace["cache"]


def test_tied_weights_are_counted_once():
    text = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=128)
    vision = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32)
    sizes = {}
    for tied in (False, True):
        config = hf.LlavaConfig(
            vision_config=hf.CLIPVisionConfig(**vision, patch_size=8),
            text_config=hf.LlamaConfig(**text, tie_word_embeddings=tied),
            image_token_id=IMAGE,
            tie_word_embeddings=tied,
        )
        sizes[tied] = weight_memory(find_anatomy(meta_model(config)))["float32"]
    assert sizes[False] - sizes[True] == 128 * 32 * 4


def test_nothing_is_allocated():
    model = meta_model(read_config(str(CONFIGS / "llava-1.5-7b.json")))
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    "sites", [["blocks.*.resid_post"], ["embed", "blocks.*.resid_post", "blocks.*.attn_mass", "final"]]
)
def test_the_formula_agrees_with_what_a_trace_allocates(sites):
    """A few million parameters, four rows: the computed and the measured peak are within a fifth of each other."""
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=112,
            patch_size=14,
        ),
        text_config=hf.LlamaConfig(
            hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=8, vocab_size=2000
        ),
        image_token_id=IMAGE,
    )
    torch.manual_seed(0)
    vlm = open_vlm(model=hf.LlavaForConditionalGeneration(config).eval())
    ids = torch.cat([torch.full((4, 64), IMAGE), torch.randint(3, 100, (4, 136))], 1)
    inputs = vlm.from_tensors(input_ids=ids, pixel_values=torch.randn(4, 3, 112, 112))
    vlm.trace(inputs, sites)  # masks and buffers that are made once
    computed = trace_memory(vlm.anatomy, sites, batch=4, length=200, picture=image_tokens(vlm.anatomy))
    measured = allocation_peak(lambda: vlm.trace(inputs, sites))
    assert measured == pytest.approx(computed.peak - computed.weights, rel=0.2)


def word_processor() -> hf.LlavaProcessor:
    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *["What", "is", "in", "the", "picture", "?", ".", "a"]]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(r" ", "removed")
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        unk_token="<unk>",
        extra_special_tokens=["<image>"],
    )
    pixels = hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return hf.LlavaProcessor(
        image_processor=pixels, tokenizer=fast, patch_size=8, num_additional_image_tokens=1, image_token="<image>",
        vision_feature_select_strategy="default",
    )  # fmt: skip


def test_spans_of_an_example_where_there_is_a_processor(tmp_path):
    model, _ = build("llava")
    model.config.image_token_id = 4
    model.config.save_pretrained(tmp_path)  # a folder with a processor and no weights at all
    assert info(tmp_path)["spans"] is None
    word_processor().save_pretrained(tmp_path)
    facts = info(tmp_path)
    assert facts["spans"]["image"] == 16
    assert facts["spans"]["after"] >= 5
    assert "image 16" in shown(facts)


def bad_model(kind: str, tmp_path: Path) -> str:
    folder = tmp_path / kind
    folder.mkdir()
    if kind == "not JSON":
        (folder / "config.json").write_text("{", encoding="utf-8")
    elif kind == "no type":
        (folder / "config.json").write_text("{}", encoding="utf-8")
    elif kind == "unknown type":
        (folder / "config.json").write_text('{"model_type": "nobody_knows"}', encoding="utf-8")
    elif kind == "no picture":
        hf.LlamaConfig().save_pretrained(folder)
    elif kind == "adapter":
        (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    elif kind == "missing":
        return str(folder / "config.json")
    elif kind == "missing folder":
        return str(folder / "nothing" / "here")
    elif kind == "hub":
        return "nobody/has-this-model"
    return str(folder)


@pytest.mark.parametrize(
    "kind",
    ["empty", "adapter", "missing", "missing folder", "not JSON", "no type", "unknown type", "no picture", "hub"],
)
def test_a_model_that_cannot_be_read_is_refused_in_one_line(kind, tmp_path):
    with pytest.raises(UserError) as refused:
        info(bad_model(kind, tmp_path))
    assert "\n" not in str(refused.value) and "model" in str(refused.value)


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"length": 0}, {"images": -1}, {"dtype": "float12"}, {"sites": ["blocks.*.soul"]}]
)
def test_a_trace_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"must be at least|float12|soul"):
        info(CONFIGS / "llava-1.5-7b.json", **wrong)


@pytest.mark.parametrize(
    ("asked", "used"), [(None, "float16"), ("auto", "float16"), ("fp32", "float32"), ("bf16", "bfloat16")]
)
def test_number_formats_are_named_as_everywhere(asked, used):
    assert info(CONFIGS / "llava-1.5-7b.json", dtype=asked)["trace"]["dtype"] == used


def test_the_size_of_a_picture_is_told_as_width_x_height():
    assert parse_size("640x480") == (480, 640)
    for wrong in ("640", "0x10", "640X480", "-1x5", "640x480x3", "a picture"):
        with pytest.raises(UserError, match="WIDTHxHEIGHT"):
            parse_size(wrong)


def test_a_wide_picture_costs_what_its_shape_says():
    qwen = CONFIGS / "qwen2.5-vl-7b.json"
    assert info(qwen, image_size=(56, 560))["picture"]["tokens"] == 2 * 20
    assert info(CONFIGS / "llava-v1.6-mistral-7b.json", image_size=(336, 1008))["picture"]["tokens"] == 576 + 24 * (
        72 + 1
    )


def test_no_picture_at_all():
    facts = info(CONFIGS / "llava-1.5-7b.json", images=0)
    assert facts["trace"]["length"] == 64
    assert facts["trace"]["bytes"]["peak"] < info(CONFIGS / "llava-1.5-7b.json")["trace"]["bytes"]["peak"]


def test_the_sites_whose_memory_is_computed_are_those_the_lenses_read():
    vlm = tiny_vlm()
    probes, _ = built_in(vlm, framed_scene(0))
    for probe in probes:
        probe.attach(vlm.anatomy)
    read = {site for probe in probes for site in expand_sites(vlm.anatomy, probe.sites)}
    of_the_decoder = {site for site in read if not site.startswith("vision")}
    assert of_the_decoder == set(expand_sites(vlm.anatomy, SITES))
