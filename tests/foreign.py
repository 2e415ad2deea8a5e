"""Tiny models of families that run in Transformers' own modules, with widely spread random weights."""

import functools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import tiny
import torch
import transformers
from torch import nn

VOCABULARY, STEPS = 64, 16
BART_LIKE = dict(
    vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
    decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64,
)  # fmt: skip
T5_LIKE = dict(
    vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4,
    decoder_start_token_id=0, tie_word_embeddings=False,
)  # fmt: skip
GEMMA = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=96, sliding_window=6, query_pre_attn_scalar=8,
)  # fmt: skip


def config(kind: str):
    t = transformers
    if kind == "led":
        return t.LEDConfig(**BART_LIKE, max_encoder_position_embeddings=192, max_decoder_position_embeddings=48,
                           attention_window=8)  # fmt: skip
    if kind == "bigbird_pegasus":
        return t.BigBirdPegasusConfig(**BART_LIKE, max_position_embeddings=96, block_size=2, num_random_blocks=1)
    if kind == "pegasus_x":
        return t.PegasusXConfig(**BART_LIKE, max_position_embeddings=96, block_size=4, num_global_tokens=3)
    if kind == "blenderbot-small":
        return t.BlenderbotSmallConfig(**BART_LIKE, max_position_embeddings=96, forced_eos_token_id=None)
    if kind == "nllb-moe":
        return t.NllbMoeConfig(**BART_LIKE, max_position_embeddings=96, num_experts=4, encoder_sparse_step=2,
                               decoder_sparse_step=2, encoder_layerdrop=0.0, decoder_layerdrop=0.0)  # fmt: skip
    if kind.startswith("longt5"):
        return t.LongT5Config(**T5_LIKE, local_radius=3, global_block_size=4,
                              encoder_attention_type=kind.removeprefix("longt5-"))  # fmt: skip
    if kind == "switch_transformers":
        return t.SwitchTransformersConfig(**T5_LIKE, num_experts=4, expert_capacity=3, num_sparse_encoder_layers=1,
                                          num_sparse_decoder_layers=1, router_jitter_noise=0.0)  # fmt: skip
    if kind == "t5gemma":
        side = t.T5GemmaModuleConfig(**GEMMA)
        return t.T5GemmaConfig(encoder=side.to_dict(), decoder=side.to_dict(), vocab_size=VOCABULARY,
                               tie_word_embeddings=False)  # fmt: skip
    if kind == "encoder-decoder":
        bert = dict(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                    intermediate_size=64, max_position_embeddings=96)  # fmt: skip
        return t.EncoderDecoderConfig.from_encoder_decoder_configs(
            t.BertConfig(**bert), t.BertConfig(**bert), pad_token_id=0, eos_token_id=1, decoder_start_token_id=2,
        )  # fmt: skip
    assert kind == "prophetnet", kind
    return t.ProphetNetConfig(vocab_size=VOCABULARY, hidden_size=32, encoder_ffn_dim=64, decoder_ffn_dim=64,
                              num_encoder_layers=1, num_decoder_layers=1, num_encoder_attention_heads=2,
                              num_decoder_attention_heads=2, max_position_embeddings=96)  # fmt: skip


def bare(kind: str, seed: int = 0):
    torch.manual_seed(seed)
    made = transformers.AutoModelForSeq2SeqLM.from_config(config(kind)).double().eval()
    made.generation_config.max_length = None
    return made


@dataclass(frozen=True)
class Case:
    """A module in float64, sources, and what it writes greedily for each by itself: `STEPS` tokens at the most."""

    module: Any
    sources: list[list[int]]
    expected: list[list[int]]


@functools.cache
def case(kind: str, seed: int = 0) -> Case:
    """Rows differ and end at different steps: the end token is one that the module writes now and then."""
    made = bare(kind, seed)
    for name, parameter in made.named_parameters():
        if "norm" not in name.lower():
            cross = any(part in name for part in ("encoder_attn", "EncDecAttention", "cross"))
            nn.init.normal_(parameter, 0.0, 0.1 if parameter.dim() == 1 else 1.0 if cross else 0.3)
    texts = sources(made, 14, seed, longest=24)
    made.config.eos_token_id, made.generation_config.eos_token_id = -1, None  # at first nothing ends a row
    outputs = [generated(made, source, STEPS) for source in texts]
    first = {word: {row.index(word) for row in outputs if word in row} for word in {w for row in outputs for w in row}}
    end = max(sorted(first), key=lambda word: len(first[word]))
    for settings in (made.config, made.generation_config):
        settings.eos_token_id = end
    rows = [row[: row.index(end) + 1] if end in row else row for row in outputs]
    chosen = {len(row): place for place, row in enumerate(rows)}.values()  # of every length first
    chosen = [*chosen, *(place for place in range(len(rows)) if place not in chosen)][:5]
    return Case(made, [texts[place] for place in chosen], [rows[place] for place in chosen])


def sources(model, count: int, seed: int = 0, longest: int = 12) -> list[list[int]]:
    """As `tiny.sources`, of a configuration that may have its vocabulary in parts."""
    words = SimpleNamespace(vocab_size=VOCABULARY, eos_token_id=model.config.eos_token_id)
    return tiny.sources(SimpleNamespace(config=words), count, seed, longest)


def padded(model, rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """As `tiny.encoder_inputs`."""
    words = SimpleNamespace(pad_token_id=model.generation_config.pad_token_id or 0)
    return tiny.encoder_inputs(SimpleNamespace(config=words), rows)


def generated(model, source: list[int], cap: int, **settings) -> list[int]:
    """As `tiny.generated`, of one source, by a model that no other source has changed."""
    if hasattr(model.get_encoder(), "set_attention_type"):  # BigBird's goes over to full attention for good
        model.get_encoder().set_attention_type(model.config.attention_type)
    return tiny.generated(model, [source], cap, **settings)[0]
