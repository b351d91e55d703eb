"""Task tokens as words: what a model learnt to read behind a picture becomes a part of its vocabulary and of its chat form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from .processor import IMAGE, PAD, SPECIALS

TOKENS = "tokens.safetensors"


def with_saved_words(model, processor, folder: Path):
    """`with_task_words` with the tokens of a folder, whose file holds one tensor (tokens, D) a task, in fp16."""
    return with_task_words(model, processor, load_file(folder / TOKENS))


def with_task_words(model, processor, tables: Mapping[str, torch.Tensor]):
    """The model and its processor with the embeddings (tokens, D) of each task as words: a plain Llava with a longer vocabulary.

    The words are written behind every picture, task by task in the order of their names; spans call them "image", as they
    belong to it. They are never said: in the output they are as likely as padding. Changes both in place; returns the model.
    """
    names = task_words({task: len(rows) for task, rows in tables.items()})
    processor.tokenizer.add_tokens(names, special_tokens=True)
    written = f"' {IMAGE} '", f"' {' '.join([IMAGE, *names])} '"
    for writer in (processor, processor.tokenizer):
        writer.chat_template = writer.chat_template.replace(*written)
    rows = torch.cat([tables[task].float() for task in sorted(tables)])
    add_words(model, rows, said_as=SPECIALS.index(PAD))
    return model


def task_words(tokens: dict[str, int]) -> list[str]:
    """The words of the tasks with so many tokens each, in the order in which they stand behind a picture."""
    return [f"<image_{task}_{i}>" for task in sorted(tokens) for i in range(tokens[task])]


@torch.no_grad()
def add_words(model, rows: torch.Tensor, said_as: int) -> None:
    """Lengthens the vocabulary by the embeddings (n, D); in the output each new word has the weights of an old one."""
    old = model.get_input_embeddings().weight
    embeddings = nn.Embedding.from_pretrained(torch.cat([old, rows.to(old)]), freeze=False)
    head = nn.Linear(old.shape[1], len(embeddings.weight), bias=False)
    head.weight.copy_(torch.cat([old, old[said_as].expand(len(rows), -1)]))
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.config.get_text_config().vocab_size = len(embeddings.weight)
    model.set_input_embeddings(embeddings)
    model.set_output_embeddings(head)
