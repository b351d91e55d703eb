"""Opening models: folders, objects, adapters, several devices; and every refusal in one line."""

import copy
import json

import pytest
import torch
from chiasm.models import open_vlm
from chiasm.models.anatomy import LAYOUTS, find_anatomy
from chiasm.scenes.errors import UserError
from peft import LoraConfig, get_peft_model

from .families import FAMILIES, build
from .processors import PROCESSORS
from .test_prepare import picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the layout of a hub checkpoint."""
    path = tmp_path_factory.mktemp("llava")
    open_vlm(model=build("llava")[0], processor=PROCESSORS["llava"]()).save(path)
    return path


def refusal(*args, **kwargs) -> str:
    with pytest.raises(UserError) as error:
        open_vlm(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_opens_and_answers_as_the_model_that_wrote_it(folder):
    one = open_vlm(model=build("llava")[0], processor=PROCESSORS["llava"]())
    two = open_vlm(folder)
    inputs = [vlm.prepare([picture()], ["a <image> cat"]) for vlm in (one, two)]
    assert torch.equal(*(vlm.forward(i).logits for vlm, i in zip((one, two), inputs, strict=True)))
    assert one.fingerprint() == two.fingerprint() and two.name == str(folder)
    two.model.lm_head.weight.data[0, 0] += 1
    assert one.fingerprint() != two.fingerprint()


def test_a_folder_called_organism_does_not_hide_the_bundled_one(tmp_path, monkeypatch):
    (tmp_path / "organism").mkdir()
    monkeypatch.chdir(tmp_path)
    assert open_vlm("organism", device="cpu").anatomy.family == "llava"
    assert "no config.json" in refusal("./organism")


def test_dtype_and_device_are_passed_on(folder):
    vlm = open_vlm(folder, dtype="bf16", device="cpu")
    assert vlm.dtype == torch.bfloat16
    inputs = vlm.prepare([picture()], ["a cat"])
    assert inputs.tensors["pixel_values"].dtype == torch.bfloat16
    assert vlm.trace(inputs, ["logits"])["logits"].isfinite().all()


def test_a_model_spread_over_places_by_device_map_is_traced(folder, tmp_path):
    """The CPU and the disk stand in for two GPUs: weights of some parts live elsewhere and are fetched per layer."""
    whole = open_vlm(folder, device="cpu")
    inputs = whole.prepare([picture()], ["a cat"])
    expected = whole.trace(inputs, ["*"])
    from accelerate import cpu_offload

    spread = open_vlm(model=copy.deepcopy(whole.model), processor=whole.processor)
    cpu_offload(spread.model, execution_device=torch.device("cpu"))
    assert next(spread.model.parameters()).device.type == "meta" and spread.device.type == "cpu"
    trace = spread.trace(spread.prepare([picture()], ["a cat"]), ["*"])
    for site in expected:
        torch.testing.assert_close(trace[site], expected[site])
    mapped = open_vlm(folder, device="cpu", device_map={"": "cpu"})
    assert torch.equal(mapped.trace(inputs, ["logits"])["logits"], expected["logits"])


def test_an_adapter_opens_and_changes_the_answer(folder, tmp_path):
    base = open_vlm(folder, device="cpu")
    tuned = get_peft_model(copy.deepcopy(base.model), LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    tuned.save_pretrained(tmp_path)
    vlm = open_vlm(folder, device="cpu", adapter=tmp_path)
    inputs = vlm.prepare([picture()], ["a cat"])
    with torch.no_grad():
        expected = tuned.eval()(**inputs.tensors).logits
    trace = vlm.trace(inputs, ["logits", "blocks.*.attn_mass"])
    torch.testing.assert_close(trace["logits"], expected)
    assert not torch.allclose(trace["logits"], base.trace(inputs, ["logits"])["logits"])
    assert trace.layers("attn_mass") == [0, 1, 2] and vlm.fingerprint() != base.fingerprint()


def test_refusals(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "neither 'organism', nor a folder" in refusal("nobody/has-this-model")
    assert "not a folder" in refusal("./nowhere")
    assert "no config.json" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{broken")
    assert "is not JSON" in refusal(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert "not an image-text-to-text model" in refusal(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "never_heard_of"}))
    assert "cannot be opened" in refusal(tmp_path)
    assert "device 'warp'" in refusal(folder, device="warp")
    if not torch.cuda.is_available():
        assert "not on this machine" in refusal(folder, device="cuda")
    assert "dtype 'int3'" in refusal(folder, dtype="int3")
    assert "either a source" in refusal()
    assert "adapter" in refusal(folder, adapter=tmp_path / "none")
    assert "got 'nobody'" in refusal("organism/nobody")


def test_a_folder_without_weights_is_refused(folder, tmp_path):
    for name in folder.iterdir():
        if name.suffix != ".safetensors":
            (tmp_path / name.name).write_bytes(name.read_bytes())
    assert "cannot be opened" in refusal(tmp_path)


def test_a_processor_of_another_model_is_refused():
    model = build("llava")[0]
    assert "image token has id" in refusal(model=model, processor=_with(PROCESSORS["llava"](), image_token_id=7))
    assert "patches of 14" in refusal(model=model, processor=_with(PROCESSORS["llava"](), patch_size=14))
    assert "tokens, the model embeds 128" in refusal(model=model, processor=PROCESSORS["paligemma"]())


def _with(processor, **attributes):
    for name, value in attributes.items():
        setattr(processor, name, value)
    return processor


@pytest.mark.parametrize("name", FAMILIES)
def test_the_table_holds_for_every_family_on_the_meta_device(name):
    with torch.device("meta"):
        model = FAMILIES[name]()[0]
    anatomy = find_anatomy(model)
    assert anatomy.layout in LAYOUTS[anatomy.family]
    assert anatomy.n_layers == anatomy.text_config.num_hidden_layers and anatomy.n_vision_layers in (2, 3)


# -- families outside the table ----------------------------------------------------------------------------------------


def renamed(name, **patches):
    """A tiny model whose family the table does not know."""
    model, tensors = build(name)
    model.config.model_type = "unheard_of"
    return model, tensors


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "internvl", "mistral3", "aya_vision"])
def test_an_unknown_family_is_found_by_structure(name):
    model, tensors = renamed(name)
    known, _ = build(name)
    found, expected = find_anatomy(model).layout, find_anatomy(known).layout
    assert (found.blocks, found.norm, found.unembed) == (expected.blocks, expected.norm, expected.unembed)
    assert found.vision_blocks == expected.vision_blocks
    vlm = open_vlm(model=model)
    trace = vlm.trace(vlm.from_tensors(**tensors), ["logits", "blocks.*.attn_mass"])
    with torch.no_grad():
        assert torch.equal(trace["logits"], model(**tensors).logits)


def test_a_structure_that_does_not_reproduce_the_logits_is_refused():
    model, _ = renamed("llava")
    model.register_forward_hook(lambda _m, _a, out: setattr(out, "logits", out.logits * 3))
    assert "reproduces the logits" in refusal(model=model)


def test_a_structure_without_the_parts_says_what_was_looked_for():
    model, _ = renamed("llava")
    model.config.vision_config.num_hidden_layers = 9
    assert "list of 9 vision layers" in refusal(model=model)
    assert "no config.model_type" in refusal(model=torch.nn.Linear(2, 2))


def test_an_unknown_familys_features_must_fit_its_image_tokens():
    model, tensors = renamed("llava")
    vlm = open_vlm(model=model)
    tensors["input_ids"] = tensors["input_ids"].clone()
    tensors["input_ids"][0, 3] = 9
    with pytest.raises(UserError, match="15 image tokens"):
        vlm.trace(vlm.from_tensors(**tensors), ["logits"])


def test_quantisation_and_device_maps_reach_transformers(folder, monkeypatch):
    from transformers import AutoModelForImageTextToText

    given = {}

    def load(source, **kwargs):
        given.update(kwargs)
        return build("llava")[0]

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", load)
    wanted = object()
    open_vlm(folder, device="cpu", quantization_config=wanted, revision="v1")
    assert given["quantization_config"] is wanted and given["device_map"] == {"": "cpu"} and given["revision"] == "v1"
    assert given["trust_remote_code"] is False
    open_vlm(folder, device_map="auto")
    assert given["device_map"] == "auto"
