"""Tiny models with widely spread random weights, so that rows end at different steps and differ by source."""

import torch
import transformers
from transformers import BartConfig, MarianConfig, T5Config

from spec2seq import Seq2Seq

VOCABULARY = 64
FAMILIES = ("marian", "bart", "t5", "t5-gated")


def config(family: str, layers: int = 2, width: int = 32, vocabulary: int = VOCABULARY):
    """A tiny Transformers configuration; the special ids are those the family is known for."""
    bart_like = dict(
        vocab_size=vocabulary, d_model=width, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=2 * width, decoder_ffn_dim=2 * width, max_position_embeddings=96,
    )  # fmt: skip
    if family == "marian":
        return MarianConfig(
            **bart_like, pad_token_id=vocabulary - 1, decoder_start_token_id=vocabulary - 1, eos_token_id=0,
            scale_embedding=True, activation_function="swish", forced_eos_token_id=None,
        )  # fmt: skip
    if family == "bart":
        return BartConfig(**bart_like, forced_eos_token_id=None)
    gated = family == "t5-gated"
    return T5Config(
        vocab_size=vocabulary, d_model=width, d_kv=width // 4, d_ff=2 * width, num_layers=layers, num_heads=4,
        decoder_start_token_id=0, feed_forward_proj="gated-gelu" if gated else "relu", tie_word_embeddings=not gated,
    )  # fmt: skip


def transformers_model(family: str, seed: int = 0, eos_bias: float | None = None, **sizes):
    """A Transformers model in float64 whose greedy outputs end at different steps.

    Random weights seldom write the end token in time; its output row is scaled until they do.
    """
    torch.manual_seed(seed)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config(family, **sizes)).double().eval()
    spread = {"marian": 0.25, "bart": 0.25, "t5": 1.0, "t5-gated": 0.5}[family]
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embed_positions" not in name and "relative" not in name:
            torch.nn.init.normal_(parameter, std=spread)
    return model


def seq2seq(family: str, seed: int = 0, **sizes) -> Seq2Seq:
    return Seq2Seq.from_transformers(transformers_model(family, seed, **sizes))


def sources(model, count: int, seed: int = 0, longest: int = 12) -> list[list[int]]:
    """Random sources of different lengths that end with the end token."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        length = int(torch.randint(1, longest, (), generator=generator))
        body = torch.randint(3, VOCABULARY - 1, (length,), generator=generator).tolist()
        made.append([*body, model.config.eos_token_id])
    return made


def noisy_copy(model: Seq2Seq, noise: float, seed: int = 1) -> Seq2Seq:
    """A drafter that often agrees with `model`: its weights with noise added."""
    import copy

    torch.manual_seed(seed)
    little = copy.deepcopy(model.model)
    for parameter in little.parameters():
        if parameter.dim() == 2:
            parameter += noise * parameter.std() * torch.randn_like(parameter)
    return Seq2Seq(little, model.config, model.tokenizer, model.generation_config)
