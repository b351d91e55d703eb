"""The family on disk: which parts each member is made of, written once and joined into plain transformers models."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path

import torch

FILES = Path(__file__).parent / "files"
MEMBERS = {
    "lm": ("decoder-lm", "projector-untrained", None),
    "aligned": ("decoder-lm", "projector-aligned", None),
    "tuned": ("decoder-tuned", "projector-tuned", None),
    "colour": ("decoder-tuned", "projector-tuned", "colour"),
    "place": ("decoder-tuned", "projector-tuned", "place"),
    "wings": ("decoder-lm", "wings/projector", None),
    "ola": ("decoder-lm", "ola/projector", None),
}
PREFERRING = tuple(
    name + seed for name in ("sft", "dpo", "rdpo", "anchored", "unfiltered") for seed in ("", "-1", "-2")
)
MEMBERS |= {name: ("decoder-tuned", "projector-tuned", name) for name in PREFERRING}
"""Member: decoder, projector, adapter. The tower is the same in all; "organism" is another name of "tuned". The last ones are
ways of preference tuning, three trainings of each (`experiments.preference_arms`)."""

BESIDE = {
    "wings": ("chiasm.alignment.kept_wings", "keep_saved"),
    "ola": (f"{__package__}.task_words", "with_saved_words"),
}
"""Member: who puts what its folder holds beside decoder and projector onto the model. Named and not imported, since what learns
beside a model stands above the models."""


def load_organism(name: str = "tuned", folder: Path | str = FILES, adapter: str = "merged"):
    """A family member as `(LlavaForConditionalGeneration, LlavaProcessor)`, in fp32, on CPU, in eval mode.

    adapter: for styles and preferences, "merged" folds the adapter into the weights, "peft" returns a `PeftModel` around the tuned
    model. "wings" comes with its learners on it for good, which every pass goes through (`alignment.kept_wings.keep`); "ola"
    with its task tokens as words of its vocabulary, which its chat template writes behind every picture. Raises UserError for
    an unknown name.
    """
    from ...scenes.errors import UserError

    name = "tuned" if name == "organism" else name.removeprefix("organism/")
    if name not in MEMBERS:
        raise UserError(f"the organism's family is {', '.join(MEMBERS)}; got {name!r}")
    if adapter not in ("merged", "peft"):
        raise UserError(f"adapter is merged or peft, got {adapter!r}")
    decoder, projector, style = MEMBERS[name]
    folder = Path(folder)
    model = empty_llava(folder)
    fill(model, "vision_tower", folder / "tower.safetensors")
    fill(model, "language_model", folder / f"{decoder}.safetensors")
    fill(model, "multi_modal_projector", folder / f"{projector}.safetensors")
    if style:
        if not (folder / style / "adapter_config.json").is_file():
            raise UserError(
                f"the family in {str(folder)!r} has no {style!r}: preferences are trained on the one that comes with chiasm"
            )
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder / style)
        if adapter == "merged":
            model = model.merge_and_unload()
    processor = load_processor(folder)
    if name in BESIDE:
        home, put_on = BESIDE[name]
        model = getattr(import_module(home), put_on)(model, processor, folder / name)
    model.eval().requires_grad_(False)
    return model, processor


def empty_llava(folder: Path):
    """The Llava model of the folder's configuration, weights yet to be filled."""
    from transformers import GenerationConfig, LlavaConfig, LlavaForConditionalGeneration

    from ...scenes.errors import UserError

    if not (Path(folder) / "config.json").is_file():  # transformers would build its default of 7 billion parameters
        raise UserError(f"{str(folder)!r} holds no organism (no config.json): grow one with `chiasm organism grow`")
    config = LlavaConfig.from_pretrained(folder)
    with torch.random.fork_rng(devices=[]):  # building draws random weights; nobody's random numbers should move
        model = LlavaForConditionalGeneration(config)
    text = config.text_config
    model.generation_config = GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id, do_sample=False
    )
    return model


def fill(model, part: str, path: Path) -> None:
    """Load one part of a Llava model from a file, every tensor of it."""
    from safetensors.torch import load_file

    getattr(model.model, part).load_state_dict({key: value.float() for key, value in load_file(path).items()})


def load_processor(folder: Path | str = FILES):
    """The family's `LlavaProcessor`."""
    from transformers import LlavaProcessor

    return LlavaProcessor.from_pretrained(folder)


def save_part(module, path: Path) -> None:
    """Write a module's weights as fp16 safetensors, under a temporary name until complete."""
    from safetensors.torch import save_file

    temporary = path.with_suffix(".tmp")
    save_file({key: value.detach().half().contiguous() for key, value in module.state_dict().items()}, temporary)
    os.replace(temporary, path)


def load_growth(folder: Path | str, step: int, family: Path | str | None = None):
    """The model at a growth checkpoint, as `load_organism` gives it; steps as `growth_steps` lists them.

    folder: what `grow` wrote. family: where the tower and the processor are, the folder's own `files` by default.
    """
    from ...scenes.errors import UserError

    folder = Path(folder)
    family = Path(family) if family else folder / "files"
    path = folder / "growth" / f"step-{step:06d}"
    if not path.exists():
        raise UserError(f"no growth checkpoint at step {step} in {folder}; there are {growth_steps(folder)}")
    model = empty_llava(family)
    fill(model, "vision_tower", family / "tower.safetensors")
    fill(model, "language_model", path / "decoder.safetensors")
    fill(model, "multi_modal_projector", path / "projector.safetensors")
    model.eval().requires_grad_(False)
    return model, load_processor(family)


def growth_steps(folder: Path | str) -> list[int]:
    """The steps of the growth series in a folder, align first and tune counted on from it."""
    return sorted(int(path.name.removeprefix("step-")) for path in (Path(folder) / "growth").glob("step-*"))


def cache_folder() -> Path:
    """Where growth series are kept: `$CHIASM_CACHE/organism`, or `~/.cache/chiasm/organism`."""
    return Path(os.environ.get("CHIASM_CACHE") or Path.home() / ".cache" / "chiasm") / "organism"


def card(folder: Path | str = FILES) -> dict:
    """The family's card: every measured trait, the recipe, versions, seeds and wall times."""
    return json.loads((Path(folder) / "card.json").read_text())
