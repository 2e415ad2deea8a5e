"""A fresh, randomly initialised Transformers model of the shape a recipe asks for."""

from typing import Any

import torch

from spec2seq.training.recipe import ModelShape

PEAK = 4.0  # added to the score of a head's neighbour


def new_model(shape: ModelShape, tokenizer: Any, max_new_tokens: int = 200) -> Any:
    """MarianMTModel or T5ForConditionalGeneration with shared embeddings, float32; seeded by torch's generator."""
    model = _marian(shape, tokenizer) if shape.family == "marian" else _t5(shape, tokenizer)
    if shape.early_exit is not None:
        model.config.early_exit = shape.early_exit  # the loss and `Seq2Seq.early_exit` read it there
    generation = model.generation_config
    generation.max_length = min(shape.max_positions, max_new_tokens + 1)
    generation.num_beams = 1
    for name in ("forced_eos_token_id", "bad_words_ids", "forced_bos_token_id"):
        setattr(generation, name, None)
    return model


def _marian(shape: ModelShape, tokenizer: Any) -> Any:
    from transformers import MarianConfig, MarianMTModel

    config = MarianConfig(
        vocab_size=len(tokenizer), decoder_vocab_size=len(tokenizer), max_position_embeddings=shape.max_positions,
        d_model=shape.width, encoder_layers=shape.encoder_layers, decoder_layers=shape.decoder_layers,
        encoder_attention_heads=shape.heads, decoder_attention_heads=shape.heads,
        encoder_ffn_dim=shape.feed_forward, decoder_ffn_dim=shape.feed_forward, activation_function=shape.activation,
        dropout=shape.dropout, attention_dropout=0.0, activation_dropout=0.0, scale_embedding=True,
        init_std=shape.width**-0.5, static_position_embeddings=True, share_encoder_decoder_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
        decoder_start_token_id=tokenizer.pad_token_id, forced_eos_token_id=None,
        tie_word_embeddings=True, normalize_before=False, add_final_layer_norm=False, normalize_embedding=False,
    )  # fmt: skip
    model = MarianMTModel(config)
    _initialise_layers(model, shape)
    return model


def _initialise_layers(model: Any, shape: ModelShape) -> None:
    """Xavier, with what enters a residual scaled down by depth: post-norm layers then need only a short warm-up."""
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        depth = shape.encoder_layers if ".encoder." in name else shape.decoder_layers
        gain = (2 * depth) ** -0.5 if name.endswith(("out_proj", "fc2")) else 1.0
        torch.nn.init.xavier_uniform_(module.weight, gain=gain)


def _t5(shape: ModelShape, tokenizer: Any) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=len(tokenizer), d_model=shape.width, d_kv=shape.width // shape.heads, d_ff=shape.feed_forward,
        num_layers=shape.encoder_layers, num_decoder_layers=shape.decoder_layers, num_heads=shape.heads,
        dropout_rate=shape.dropout, feed_forward_proj=shape.activation, tie_word_embeddings=True,
        n_positions=shape.max_positions, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    _begin_with_copying(model, shape)
    return model


@torch.no_grad()
def _begin_with_copying(model: Any, shape: ModelShape) -> None:
    """First weights with which a T5 finds its source, in the manner of mimetic initialisation (Trockman and Kolter,
    2023): a head of self-attention prefers one neighbour, by PEAK; queries and keys of cross-attention
    read the same directions; what a head reads it writes back there. From random ones a small T5 needs thousands of
    steps to find its source (docs/log.md).
    """
    for stack in (model.encoder, model.decoder):
        bias = stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # [buckets, heads]
        half, exact = bias.shape[0] // 2, bias.shape[0] // 4  # buckets of one direction, those of a single distance
        bias.zero_()
        for head in range(shape.heads):
            if stack is model.encoder:
                bucket = 1 + head // 2 % (exact - 1) + half * (head % 2)  # 1 back, 1 ahead, 2 back, …
            else:
                bucket = (head + 1) % min(half, shape.heads)  # 1 back, 2 back, …, itself
            bias[bucket, head] = PEAK
        for layer in (layer for block in stack.block for layer in block.layer[:-1]):
            crossing = hasattr(layer, "EncDecAttention")
            attention = layer.EncDecAttention if crossing else layer.SelfAttention
            attention.o.weight.copy_(attention.v.weight.T)
            if crossing:
                attention.k.weight.copy_(attention.q.weight * attention.key_value_proj_dim**0.5)
