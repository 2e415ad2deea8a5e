"""Models of the hub that can draft for others without training, and the same question for any two models."""

from dataclasses import dataclass
from typing import Any

from spec2seq.models import families
from spec2seq.models.loading import load_config, load_tokenizer
from spec2seq.pairing import check_alike


@dataclass(frozen=True)
class KnownPair:
    """Ids on the hub of models that, by what is published of them, have one vocabulary and were trained for the same
    `task`. Nothing here was downloaded: `check` looks."""

    verifier: str
    drafter: str
    task: str


KNOWN = tuple(
    KnownPair(verifier, drafter, task)
    for task, pairs in {
        "news to summaries": [
            ("facebook/bart-large-cnn", "sshleifer/distilbart-cnn-12-3"),
            ("facebook/bart-large-cnn", "sshleifer/distilbart-cnn-6-6"),
            ("google/pegasus-cnn_dailymail", "sshleifer/distill-pegasus-cnn-16-4"),
        ],
        "news to one sentence": [
            ("facebook/bart-large-xsum", "sshleifer/distilbart-xsum-12-1"),
            ("facebook/bart-large-xsum", "sshleifer/distilbart-xsum-12-3"),
            ("google/pegasus-xsum", "sshleifer/distill-pegasus-xsum-16-4"),
        ],
        "translation, 200 languages": [
            ("facebook/nllb-200-3.3B", "facebook/nllb-200-distilled-600M"),
            ("facebook/nllb-200-distilled-1.3B", "facebook/nllb-200-distilled-600M"),
        ],
        "translation, 100 languages": [("facebook/m2m100_1.2B", "facebook/m2m100_418M")],
        "instructions": [
            (f"google/flan-t5-{size}", f"google/flan-t5-{little}")
            for size, little in (("xxl", "base"), ("xl", "small"), ("large", "small"), ("base", "small"))
        ],
        "T5's tasks, by prefix": [
            (f"google-t5/t5-{size}", "google-t5/t5-small") for size in ("11b", "3b", "large", "base")
        ],
        "to be fine-tuned, both": [
            ("google/mt5-xl", "google/mt5-small"), ("google/mt5-large", "google/mt5-small"),
            ("google/byt5-large", "google/byt5-small"), ("Salesforce/codet5-large", "Salesforce/codet5-small"),
        ],
    }.items()
    for verifier, drafter in pairs
)  # fmt: skip


def check(verifier: str, drafter: str) -> dict[str, Any]:
    """What matters of two models, folders or hub ids, when the second drafts for the first.

    Raises UsageError naming why it cannot, Spec2SeqError for what is no model. Reads no weights.
    """
    shapes, words = [], []
    for name in (verifier, drafter):
        config = load_config(name)
        shapes.append(families.family_of(config, name).architecture(config))
        words.append(load_tokenizer(name))
    check_alike(*shapes, *words)
    return {
        name: {
            "model": model, "vocabulary": shape.vocabulary, "width": shape.width,
            "encoder_layers": shape.encoder.layers, "decoder_layers": shape.decoder.layers,
            "positions": shape.max_positions,
        }
        for name, model, shape in zip(("verifier", "drafter"), (verifier, drafter), shapes, strict=True)
    }  # fmt: skip


def describe(found: dict[str, Any]) -> str:
    lines = [
        f"{name}: {part['model']}, {part['encoder_layers']} + {part['decoder_layers']} layers of width {part['width']}"
        for name, part in found.items()
    ]
    return "\n".join([*lines, "one vocabulary: the drafter can draft for the verifier"])
