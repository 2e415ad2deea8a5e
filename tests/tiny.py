"""Tiny models with widely spread random weights, so that rows end at different steps and differ by source.

Models are made once a session and shared: copy one before changing it.
"""

import copy
import functools
from dataclasses import dataclass

import tokenizers
import torch
import transformers
from torch import Tensor
from transformers import (
    BartConfig,
    BlenderbotConfig,
    FSMTConfig,
    M2M100Config,
    MarianConfig,
    MBartConfig,
    MT5Config,
    MvpConfig,
    PegasusConfig,
    PLBartConfig,
    T5Config,
    UMT5Config,
)
from transformers.models.fsmt import modeling_fsmt
from transformers.models.mt5.modeling_mt5 import MT5LayerNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm
from transformers.models.umt5.modeling_umt5 import UMT5LayerNorm

from spec2seq import Seq2Seq
from spec2seq.decoding.block_drafters import PaperBlockDrafter
from spec2seq.decoding.cached_blocks import CachedBlockDrafter
from spec2seq.models.cached_drafter import CachedDrafter
from spec2seq.models.cached_drafter_shape import CachedDrafterConfig, CachedDrafterShape
from spec2seq.models.paper_drafter import PaperConfig, PaperDrafter

VOCABULARY = 64
KINDS = ("marian", "bart", "t5", "t5-gated")  # all that the layers can do
FAMILIES = (*KINDS, "mbart", "m2m_100", "pegasus", "plbart", "fsmt", "mt5", "umt5")
COUSINS = {"blenderbot": "pegasus", "mvp": "bart"}  # the same layers as another family, under other names
UNTIED = ("t5-gated", "mt5", "umt5")  # with a head of their own
T5_LIKE = {"t5": T5Config, "t5-gated": T5Config, "mt5": MT5Config, "umt5": UMT5Config}
SEEDS = (0, 1, 2)  # of models that test_tiny.py has seen to end and to differ


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the initial weights, found by search: with default ones every row repeats one token.

    `final` multiplies the last norm's weight and so the logits; `end` multiplies the end token's output row.
    """

    embedding: float
    head: float
    own: float
    cross: float
    feed_forward: float
    positions: float
    final: float
    end: float = 1.0


SPREADS = {
    "marian": Spread(0.133, 0.133, 0.052, 0.785, 0.09, 0.0, 4.0),
    "bart": Spread(0.08, 0.08, 0.103, 0.565, 0.081, 0.226, 5.0),
    "t5": Spread(0.049, 0.049, 0.436, 0.584, 0.177, 2.5, 50.0, end=2.5),
    "mbart": Spread(0.055, 0.15, 0.034, 0.851, 0.071, 0.312, 7.684),
    "m2m_100": Spread(0.138, 0.074, 0.079, 0.819, 0.046, 0.0, 6.606),
    "pegasus": Spread(0.221, 0.26, 0.098, 1.004, 0.095, 0.0, 6.997),
    "plbart": Spread(0.129, 0.106, 0.035, 1.267, 0.033, 0.14, 5.717),
    "fsmt": Spread(0.143, 0.061, 0.032, 0.83, 0.09, 0.0, 2.4, end=1.613),
    "mt5": Spread(0.858, 0.556, 0.062, 0.209, 0.2, 3.332, 1.946, end=2.035),
    "umt5": Spread(0.491, 0.356, 0.113, 0.769, 0.28, 0.699, 3.0, end=2.194),
    "t5-gated": Spread(0.5, 0.355, 0.117, 0.241, 0.074, 2.3, 1.0, end=1.9),
}
SPREADS |= {name: SPREADS[other] for name, other in COUSINS.items()}


BART_LIKE = {
    "bart": (BartConfig, dict(forced_eos_token_id=None)),
    "mbart": (MBartConfig, dict(forced_eos_token_id=None, decoder_start_token_id=2, scale_embedding=True,
                                activation_function="relu")),
    "m2m_100": (M2M100Config, dict(encoder_layerdrop=0.0, decoder_layerdrop=0.0)),
    "pegasus": (PegasusConfig, dict(forced_eos_token_id=None, scale_embedding=True, activation_function="relu")),
    "plbart": (PLBartConfig, dict(forced_eos_token_id=None, decoder_start_token_id=5)),
    "blenderbot": (BlenderbotConfig, dict(forced_eos_token_id=None, scale_embedding=True,
                                          encoder_no_repeat_ngram_size=0)),
    "mvp": (MvpConfig, dict(forced_eos_token_id=None)),
    "fsmt": (FSMTConfig, dict(forced_eos_token_id=None)),
}  # fmt: skip


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
    if family == "fsmt":
        bart_like |= dict(src_vocab_size=vocabulary, tgt_vocab_size=vocabulary, tie_word_embeddings=True, num_beams=1)
    if family in BART_LIKE:
        kind, settings = BART_LIKE[family]
        return kind(**bart_like, **settings)
    gated = family != "t5"
    return T5_LIKE[family](
        vocab_size=vocabulary, d_model=width, d_kv=width // 4, d_ff=2 * width, num_layers=layers, num_heads=4,
        decoder_start_token_id=0, feed_forward_proj="gated-gelu" if gated else "relu", tie_word_embeddings=not gated,
    )  # fmt: skip


@functools.cache
def transformers_model(family: str, seed: int = 0, **sizes):
    """A Transformers model in float64 whose greedy outputs end at different steps."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config(family, **sizes)).double().eval()
    model.generation_config.max_length = None  # FSMT has one of its own
    spread = SPREADS[family]
    if family in UNTIED:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    for name, parameter in model.named_parameters():
        std = _std(name, parameter, family, spread)
        if std is not None:
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            torch.nn.init.normal_(parameter, mean, std)
    with torch.no_grad():
        last_norm(model).weight *= spread.final
        model.get_output_embeddings().weight[model.config.eos_token_id] *= spread.end
        if family == "fsmt":  # as in released ones: it never writes padding, whose positions Transformers has wrong
            model.get_output_embeddings().weight[model.config.pad_token_id] = 0
        if "final_logits_bias" in model.state_dict():
            torch.nn.init.normal_(model.final_logits_bias, std=0.1)
            model.final_logits_bias[0, model.config.eos_token_id] = 0.0
        if family in BART_LIKE or family == "marian":
            _bias_the_end(model, seed)
    return model


@functools.cache
def seq2seq(family: str, seed: int = 0, **sizes) -> Seq2Seq:
    return Seq2Seq.from_transformers(transformers_model(family, seed, **sizes))


def small_positions(family: str, positions: int) -> Seq2Seq:
    """A BART-like model with room for few tokens."""
    torch.manual_seed(0)
    small = config(family)
    small.max_position_embeddings = positions
    return Seq2Seq.from_transformers(transformers.AutoModelForSeq2SeqLM.from_config(small).double())


@functools.cache
def noisy_copy(model: Seq2Seq, noise: float, seed: int = 1) -> Seq2Seq:
    """A drafter that often agrees with `model`: its weights with noise added."""
    torch.manual_seed(seed)
    little = copy.deepcopy(model.model)
    for parameter in little.parameters():
        if parameter.dim() == 2:
            parameter += noise * parameter.std() * torch.randn_like(parameter)
    return Seq2Seq(little, model.config, model.tokenizer, model.generation_config)


def sources(model, count: int, seed: int = 0, longest: int = 12) -> list[list[int]]:
    """Random sources of different lengths that end with the end token."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        length = int(torch.randint(1, longest, (), generator=generator))
        body = torch.randint(3, model.config.vocab_size - 1, (length,), generator=generator).tolist()
        made.append([*body, model.config.eos_token_id])
    return made


def padded(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Rows as one right-padded tensor, and their lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.full((len(rows), int(lengths.max())), pad)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)] = torch.tensor(ids)
    return tokens, lengths


def encoder_inputs(model, rows: list[list[int]]) -> dict[str, Tensor]:
    """What Transformers' own classes want of a batch of sources."""
    tokens, lengths = padded(rows, model.config.pad_token_id)
    return {"input_ids": tokens, "attention_mask": (torch.arange(tokens.shape[1]) < lengths[:, None]).long()}


def generated(model, rows: list[list[int]], max_new_tokens: int, **settings) -> list[list[int]]:
    """Transformers' own generation: token ids up to the end token, without the decoder start."""
    eos = model.config.eos_token_id
    found = model.generate(
        **encoder_inputs(model, rows), max_new_tokens=max_new_tokens, do_sample=False,
        **{"num_beams": 1, **settings},
    )  # fmt: skip
    ids = [row[1:] for row in found.tolist()]
    return [row[: row.index(eos) + 1] if eos in row else row for row in ids]


def tokenizer(model, words: dict[int, str] | None = None):
    """A tokenizer of one word an id ("w5"); `words` names some ids otherwise."""
    special = {model.config.pad_token_id: "<pad>", model.config.eos_token_id: "</s>"}
    unknown = next(index for index in range(model.config.vocab_size) if index not in special)
    special[unknown] = "<unk>"
    names = {index: f"w{index}" for index in range(model.config.vocab_size)} | special | (words or {})
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: index for index, word in names.items()}, unk_token="<unk>")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", model.config.eos_token_id)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def _exact_norm(self, x: Tensor) -> Tensor:
    """Transformers' T5 takes the variance in float32 whatever the dtype; token ids are compared in float64."""
    if x.dtype != torch.float64:
        return _rounded_norm(self, x)
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


_rounded_norm = T5LayerNorm.forward
for kind in (T5LayerNorm, MT5LayerNorm, UMT5LayerNorm):
    kind.forward = _exact_norm
# Transformers' own fills a float32 tensor with the least float64.
modeling_fsmt.fill_with_neg_inf = lambda t: t.fill_(torch.finfo(t.dtype).min)


def last_norm(model):
    """The norm whose output the logits are made of."""
    if model.config.model_type in T5_LIKE:
        return model.decoder.final_layer_norm
    if hasattr(model.model.decoder, "layer_norm"):
        return model.model.decoder.layer_norm
    return model.model.decoder.layers[-1].final_layer_norm


def _std(name: str, parameter: Tensor, family: str, spread: Spread) -> float | None:
    """None leaves a parameter as it is (not all positions are learned)."""
    if "embed_positions" in name:
        return spread.positions or None
    if parameter.dim() == 1:
        return 0.1
    kinds = {
        "relative_attention_bias": spread.positions, "shared": spread.embedding, "embed_tokens": spread.embedding,
        "lm_head": spread.head, "encoder_attn": spread.cross, "EncDecAttention": spread.cross,
        "self_attn": spread.own, "SelfAttention": spread.own,
    }  # fmt: skip
    return next((std for kind, std in kinds.items() if kind in name), spread.feed_forward)


def _bias_the_end(model, seed: int, steps: int = 24) -> None:
    """Set the end token's bias so that three rows in five end within `steps`, each where it comes nearest."""
    eos, rows = model.config.eos_token_id, sources(model, 24, seed)
    inputs = encoder_inputs(model, rows)
    ids = model.generate(**inputs, max_new_tokens=steps, suppress_tokens=[eos], do_sample=False, num_beams=1)
    logits = model(**inputs, decoder_input_ids=ids[:, :-1], use_cache=False).logits
    end = logits[:, :, eos].clone()
    logits[:, :, eos] = -torch.inf
    missing = (logits.amax(-1) - end).amin(1).quantile(0.6)
    if "final_logits_bias" in model.state_dict():
        model.final_logits_bias[0, eos] = missing
    else:  # a step of the last states towards the end token
        row = model.get_output_embeddings().weight[eos]
        last_norm(model).bias += missing * row / row.dot(row)


def paper_drafter(model: Seq2Seq, seed: int = 0, **settings) -> PaperBlockDrafter:
    """An untrained drafter for a tiny model, with weights wide enough that it drafts different tokens."""
    a = model.model.architecture
    sizes = dict(
        vocabulary=a.vocabulary, width=16, heads=2, ffn_width=32, encoder_layers=1, decoder_layers=2,
        source_positions=96, target_positions=96, eos_token_id=a.eos_token_id, pad_token_id=a.pad_token_id,
        block_size=4,
    )  # fmt: skip
    torch.manual_seed(seed)
    drafter = PaperDrafter(PaperConfig(**(sizes | settings))).to(model.model.dtype).eval()
    for parameter in drafter.parameters():
        if parameter.dim() == 2:
            parameter.data *= 10
    return PaperBlockDrafter(drafter.requires_grad_(False))


def cached_drafter(model: Seq2Seq, seed: int = 0, **settings) -> CachedBlockDrafter:
    """An untrained drafter on top of a tiny model: it starts from the verifier's last layer, widely spread."""
    layers = model.model.architecture.decoder.layers
    shape = CachedDrafterShape(**({"block_size": 5, "feed_forward": 64, "hidden_layers": (1, layers),
                                   "follow_width": 32} | settings))  # fmt: skip
    torch.manual_seed(seed)
    drafter = CachedDrafter(CachedDrafterConfig(model.model.architecture, shape, model.fingerprint()))
    drafter = drafter.to(model.model.dtype).eval().requires_grad_(False)
    drafter.start_from(model.model)
    drafter.slots *= 30
    if drafter.follow is not None:
        for part in (drafter.follow.state, drafter.follow.token, drafter.follow.out):
            torch.nn.init.normal_(part.weight, std=0.2)
    return CachedBlockDrafter(drafter)


def under_processors(model: Seq2Seq) -> Seq2Seq:
    """The same model with a generation config that asks for all that there is."""
    config = copy.deepcopy(model.generation_config)
    config.update(
        no_repeat_ngram_size=2, repetition_penalty=1.2, min_length=5, suppress_tokens=[7], begin_suppress_tokens=[8],
        bad_words_ids=[[9], [10, 11]], sequence_bias=[[[12], 2.5]], exponential_decay_length_penalty=(3, 1.4),
        forced_eos_token_id=model.config.eos_token_id, remove_invalid_values=True, renormalize_logits=True,
    )  # fmt: skip
    return Seq2Seq(model.model, model.config, None, config)
