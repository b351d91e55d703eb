"""A VLM: a Hugging Face model with its processor and its anatomy, and the verbs that read it."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..scenes.errors import UserError
from .anatomy import Anatomy, find_anatomy
from .inputs import Inputs, Writer, tensors_to_inputs
from .passes import telling
from .trace import Recorder, Trace


class VLM:
    """One model under study. `open_vlm` makes it; see its docstring for what can be opened.

    The model is put into eval mode and is otherwise left as it is: reading adds hooks and an attention wrapper only
    while a trace runs, and only for the thread that runs it.
    """

    def __init__(self, model, processor=None, *, name: str | None = None, revision: str | None = None):
        self.model = model.eval()
        self.anatomy: Anatomy = find_anatomy(model)
        self.processor = processor
        self.name = name or getattr(model.config, "name_or_path", "") or type(model).__name__
        self.revision = revision
        self.writer = Writer(processor, self.anatomy) if processor is not None else None

    def __repr__(self) -> str:
        return f"VLM({self.name!r}, {self.anatomy.family}, {self.n_parameters / 1e6:.1f} M parameters on {self.device})"

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the token embeddings (the first of several)."""
        embeddings = self.model.get_input_embeddings()
        if embeddings.weight.device.type == "meta" and hasattr(embeddings, "_hf_hook"):  # offloaded: fetched when used
            return torch.device(embeddings._hf_hook.execution_device)
        return embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    @property
    def tokenizer(self):
        return self._writer().tokenizer

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    # -- inputs --------------------------------------------------------------------------------------------------------

    def prepare(
        self,
        images: Sequence[Sequence[Image.Image] | Image.Image | None],
        prompts: Sequence[str],
        answers: Sequence[str | None] | None = None,
    ) -> Inputs:
        """A batch on the model's device: one entry of images and prompts per sample (a picture, several, or none).

        `<image>` in a prompt says where a picture goes; without it pictures stand in front. Answers are appended to be
        read in the same forward pass (teacher forcing). Rows are left-padded, so a batch can also be generated from.
        Raises UserError, one line, for pictures and marks that do not agree or a sequence beyond the model's positions.
        """
        rows = [[] if p is None else [p] if isinstance(p, Image.Image) else list(p) for p in images]
        return self._on_device(self._writer()(rows, list(prompts), answers))

    def prepare_samples(self, samples: Sequence) -> Inputs:
        """A batch of `Sample`s, answers included where they have one."""
        inputs = self.prepare([s.images for s in samples], [s.prompt for s in samples], [s.answer for s in samples])
        return replace(inputs, samples=tuple(samples))

    def from_tensors(self, **tensors: Tensor) -> Inputs:
        """A batch from tensors that a processor made elsewhere; spans are found from the ids."""
        tokenizer = self.writer.tokenizer if self.writer else None
        return self._on_device(tensors_to_inputs(self.anatomy, tensors, tokenizer))

    def _writer(self) -> Writer:
        if self.writer is None:
            raise UserError(f"{self.name} was opened without a processor: pass processor=, or use from_tensors")
        return self.writer

    def _on_device(self, inputs: Inputs) -> Inputs:
        inputs = inputs.to(self.device)
        for name, value in inputs.tensors.items():
            if name.startswith("pixel") and value.is_floating_point():
                inputs.tensors[name] = value.to(self.dtype)
        return inputs

    # -- reading -------------------------------------------------------------------------------------------------------

    @contextmanager
    def recording(self, inputs: Inputs, sites: Sequence[str]):
        """While open, the sites are read from every forward pass of this thread; yields the `Recorder`."""
        with Recorder(self.anatomy, sites, inputs.spans)() as recorder:
            yield recorder

    def trace(self, inputs: Inputs, sites: Sequence[str], *, grad: bool = False) -> Trace:
        """The sites of one batch, read in one forward pass. Sites: see `models.trace.site_names`; `*` matches layers."""
        with self.recording(inputs, sites) as recorder, torch.set_grad_enabled(grad):
            self.forward(inputs, use_cache=False)
        return recorder.trace(inputs)

    def forward(self, inputs: Inputs, **options):
        """The model's own output for a batch; a batch without pictures goes to the language model where it must."""
        model = self.model
        pictures = any(name.startswith("pixel") for name in inputs.tensors)
        if not pictures and self.anatomy.layout.unembed.startswith("language_model."):  # BLIP insists on pixels
            model = self.anatomy.model.language_model
        try:
            with telling(inputs.spans, tensors=inputs.tensors):
                return model(**inputs.tensors, **options)
        except ValueError as error:
            if "do not match" not in str(error):
                raise
            tokens = inputs.spans.visual.sum().item()
            raise UserError(
                f"{tokens} image tokens in the prompt do not fit the pictures' features: {' '.join(str(error).split())}"
            ) from error

    def generate(self, inputs: Inputs, *, skip_special_tokens: bool = True, **options) -> list[str]:
        """The model's answers. Takes every option of transformers' `generate`; greedy unless asked otherwise."""
        ids = self.generate_ids(inputs, **options)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens)]

    def generate_ids(self, inputs: Inputs, **options) -> Tensor:
        """Ids of the new tokens only, (B * num_return_sequences, new)."""
        options = {"max_new_tokens": 64, "do_sample": False} | options
        with torch.no_grad(), telling(inputs.spans, tensors=inputs.tensors):
            out = self.model.generate(**inputs.tensors, **options)
        out = getattr(out, "sequences", out)
        prompt = inputs.tensors["input_ids"]
        n, repeats = prompt.shape[1], len(out) // len(prompt)
        echoed = out.shape[1] > n and torch.equal(out[:, :n], prompt.repeat_interleave(repeats, 0).to(out.device))
        return out[:, n:] if echoed else out  # families that generate from embeddings return new tokens only

    def stream(self, inputs: Inputs, **options) -> Iterator[str]:
        """The answer to a batch of one, piece by piece as it is generated; options as in `generate`, without beams.

        Generation runs in a thread of its own, under the caller's context: what is steered or recorded where the iteration
        begins is steered and recorded there, as long as that context stays open. An iteration that is given up ends the generation at its next token.
        """
        from transformers import StoppingCriteriaList, TextIteratorStreamer

        if len(inputs) != 1:
            raise UserError(f"{len(inputs)} prompts cannot be streamed at once: give a batch of one")
        if options.get("num_beams", 1) != 1:
            raise UserError(f"num_beams={options['num_beams']}: beams cannot be streamed (num_beams=1)")
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        given_up, failed = threading.Event(), []
        stop = StoppingCriteriaList([*options.pop("stopping_criteria", ()), lambda ids, *_, **__: _all(ids, given_up)])

        def run() -> None:
            try:
                self.generate_ids(inputs, streamer=streamer, stopping_criteria=stop, **options)
            except BaseException as error:  # told to the caller below; a thread would only print it
                failed.append(error)
            finally:
                streamer.end()

        thread = threading.Thread(target=copy_context().run, args=(run,), daemon=True)
        thread.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:
            given_up.set()
            thread.join()
        if failed:
            raise failed[0]

    def trace_generation(self, inputs: Inputs, sites: Sequence[str], **options) -> tuple[Tensor, Trace]:
        """Generates with a cache and reads every step: new ids, and a trace over the prompt and all steps but the last
        token (which no pass reads), the steps labelled "generated". Beams are not followed."""
        if options.get("num_beams", 1) != 1:
            raise UserError(
                f"num_beams={options['num_beams']}: decoding steps can be traced without beams only (num_beams=1)"
            )
        with self.recording(inputs, sites) as recorder:
            ids = self.generate_ids(inputs, **options)
        steps = recorder.seen - inputs.spans.labels.shape[1]
        return ids, recorder.trace(Inputs(inputs.tensors, inputs.spans.extended(steps), inputs.samples))

    # -- identity ------------------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """A hash of the weights (names, shapes, and a strided sample of every tensor's bytes), for manifests."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            flat = value.detach().reshape(-1)
            sample = flat[:: max(1, flat.numel() // 4096)].to("cpu")
            digest.update(sample.contiguous().view(torch.uint8).numpy().tobytes() if sample.numel() else b"")
        return digest.hexdigest()[:16]

    def save(self, folder: str | Path) -> Path:
        """Writes an ordinary Hugging Face folder that every other tool can open."""
        self.model.save_pretrained(folder)
        if self.processor is not None:
            self.processor.save_pretrained(folder)
        return Path(folder)

    # -- other tools' views --------------------------------------------------------------------------------------------

    def nnsight(self):
        """This model wrapped by nnsight, for causal edits in user code; weights are shared."""
        from .views import nnsight_view

        return nnsight_view(self.model)

    def transformer_lens(self):
        """A copy of this model as a TransformerLens bridge (the bridge rewires the model it wraps)."""
        from .views import transformer_lens_view

        return transformer_lens_view(self)


def _all(ids: Tensor, event: threading.Event) -> Tensor:
    return torch.full((len(ids),), event.is_set(), device=ids.device)
