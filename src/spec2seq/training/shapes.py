"""A fresh, randomly initialised Transformers model of the shape a recipe asks for."""

from typing import Any

import torch

from spec2seq.training.recipe import ModelShape

PEAK = 8.0  # added to the score of the place a head looks at, in a T5's first weights
LOOKS = 3  # tokens before a place by which it is found
COPIED = 4.0  # of a token that is read there, against the one that is there already


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
    """First weights with which a T5 copies its source: an induction head across the two stacks that is made, not found.

    One half of the width says which token a place holds. In the first layers heads look back, 1, 2 and 3 tokens from a
    source position, 0, 1 and 2 from an output position, which holds the token before it; what each sees it sketches
    into directions of its own of the other half. The first cross-attention scores by those sketches, so it finds where
    the source has what was written last, and reads the token there. What else enters a residual begins small. Whatever
    helps is free to change: these are first weights, not constraints.
    """
    half, looks = shape.width // 2, min(LOOKS, shape.heads)
    size = min(shape.width // shape.heads, half) // looks  # directions of a sketch
    for name, weight in model.named_parameters():
        if name.endswith((".o.weight", ".wo.weight")):
            weight *= (2 * (shape.encoder_layers + shape.decoder_layers)) ** -0.5
    model.shared.weight[:, half:] = 0.0
    model.shared.weight *= 2**0.5
    sketches = torch.randn(looks, size, half) * half**-0.5  # nearly orthogonal rows
    for stack in (model.encoder, model.decoder):
        attention = stack.block[0].layer[0].SelfAttention
        bias = attention.relative_attention_bias.weight  # [buckets, heads]; its first buckets: 0, 1, … back
        bias.zero_()
        for head in range(shape.heads):
            back = head + (stack is model.encoder)
            if head < looks:
                _read_and_write(attention, head, sketches[head], half + head * size)
            elif stack is model.encoder:
                back = bias.shape[0] // 2 + 1  # the bucket of the place ahead
            bias[back % bias.shape[0], head] = PEAK
    crossing, part = model.decoder.block[0].layer[1].EncDecAttention, half // shape.heads
    for head in range(shape.heads):
        first = head * crossing.key_value_proj_dim
        for projection in (crossing.q, crossing.k):
            rows = projection.weight[first : first + looks * size]
            rows.zero_()
            # Normalised places have a norm of √width, sketches of them √(2 size): each that agrees adds about PEAK.
            rows[:, half : half + looks * size] = (PEAK / (2 * max(1, size))) ** 0.5 * torch.eye(looks * size)
        _read_and_write(crossing, head, COPIED * torch.eye(half)[head * part : (head + 1) * part], head * part)


def _read_and_write(attention: Any, head: int, values: torch.Tensor, at: int) -> None:
    """`head` writes `values` [n, directions read] of the places it attends to into n directions from `at` on."""
    (count, read), first = values.shape, head * attention.key_value_proj_dim
    rows, columns = attention.v.weight[first : first + count], attention.o.weight[:, first : first + count]
    rows.zero_()
    rows[:, :read] = values
    columns.zero_()
    columns[at : at + count] = torch.eye(count)
