"""Greedy translations of held-out pairs and their scores."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from spec2seq.evaluation.metrics import quality
from spec2seq.models import languages
from spec2seq.training.batches import Collator
from spec2seq.training.cache import encode
from spec2seq.training.data import Pair
from spec2seq.training.loss import sequence_loss

T = TypeVar("T")


@dataclass(frozen=True)
class Scores:
    """Corpus scores of `lines` pairs. BLEU and chrF are None where sacrebleu is missing; `nll` is nats a token."""

    lines: int
    nll: float
    bleu: float | None = None
    chrf: float | None = None
    bleu_signature: str | None = None
    chrf_signature: str | None = None

    @property
    def value(self) -> float:
        """What the choice of the best model compares: BLEU, or −NLL without sacrebleu."""
        return -self.nll if self.bleu is None else self.bleu

    def __str__(self) -> str:
        measured = "" if self.bleu is None else f"BLEU {self.bleu:.2f} chrF {self.chrf:.2f} "
        return f"{measured}nll {self.nll:.4f}"


def sample(lines: Sequence[T], count: int | None) -> list[T]:
    """`count` lines spread evenly over the file, all if there are fewer or `count` is None."""
    if count is None or count >= len(lines):
        return list(lines)
    return [lines[index * len(lines) // count] for index in range(count)]


@torch.no_grad()
def translate(model: Any, tokenizer: Any, texts: Sequence[str], batch_size: int, max_new_tokens: int) -> list[str]:
    """Greedy output of Transformers' own `generate`, in the order of `texts`; sources are cut at the model's limit."""
    ids = _ids(model, tokenizer, texts)
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    outputs = [""] * len(ids)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        padded = tokenizer.pad({"input_ids": [ids[index] for index in chosen]}, return_tensors="pt").to(model.device)
        made = model.generate(
            input_ids=padded["input_ids"], attention_mask=padded["attention_mask"], num_beams=1, do_sample=False,
            max_new_tokens=max_new_tokens,
        )  # fmt: skip
        for index, text in zip(chosen, tokenizer.batch_decode(made, skip_special_tokens=True), strict=True):
            outputs[index] = text
    return outputs


@torch.no_grad()
def mean_nll(model: Any, tokenizer: Any, pairs: Sequence[Pair], dtype: torch.dtype, batch_size: int = 32) -> float:
    """Mean negative log-likelihood of the targets in nats a token, teacher-forced; both sides cut at the limit."""
    sources = _ids(model, tokenizer, [pair.source for pair in pairs])
    targets = _ids(model, tokenizer, [pair.target for pair in pairs], True)
    rows = sorted(zip(sources, targets, strict=True), key=lambda row: len(row[1]))
    collate = Collator(tokenizer.pad_token_id, model.config.decoder_start_token_id)
    total, count = 0.0, 0
    for start in range(0, len(rows), batch_size):
        batch = {name: t.to(model.device) for name, t in collate(rows[start : start + batch_size]).items()}
        with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
            _, plain, tokens = sequence_loss(model, batch, 0.0, dtype)
        total, count = total + plain.item(), count + tokens
    return total / max(1, count)


def _ids(model: Any, tokenizer: Any, texts: Sequence[str], is_target: bool = False) -> list[list[int]]:
    config = model.config
    most = getattr(config, "max_position_embeddings", None) or config.n_positions  # the latter is T5's
    return [languages.cut(ids, most, tokenizer.eos_token_id) for ids in encode(list(texts), tokenizer, is_target)]


def score(model: Any, tokenizer: Any, pairs: Sequence[Pair], batch_size: int, max_new_tokens: int) -> Scores:
    """Translate the sources and compare with the targets; the model is left in the mode it was in."""
    training = model.training
    model.eval()
    try:
        nll = mean_nll(model, tokenizer, pairs, torch.float32)
        if importlib.util.find_spec("sacrebleu") is None:
            return Scores(len(pairs), nll)
        outputs = translate(model, tokenizer, [pair.source for pair in pairs], batch_size, max_new_tokens)
        return Scores(len(pairs), nll, **quality(outputs, [pair.target for pair in pairs]).as_dict())
    finally:
        model.train(training)
