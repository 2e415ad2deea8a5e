"""Whether a Transformers module can be decoded in drafts: by its model type, and by trying."""

from typing import Any

import torch
from torch import Tensor

from spec2seq.errors import Spec2SeqError
from spec2seq.models import families

REFUSED = {
    "prophetnet": "its decoder takes one token at a time over a cache",
    "seamless_m4t": "its decoder starts with a language that only its own generate knows",
    "seamless_m4t_v2": "its decoder starts with a language that only its own generate knows",
    **dict.fromkeys(("speech_to_text", "speecht5", "moonshine"), "of models that read sound only Whisper is here"),
}
# Of the largest logit. Norms may be in float32 throughout; in half precision another expert may be taken.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.5}


def check_kind(config: Any, where: str) -> None:
    """Raises Spec2SeqError unless Transformers has an encoder–decoder of this model type that can be tried."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as KINDS

    kind = getattr(config, "model_type", None)
    if kind in REFUSED:
        raise Spec2SeqError(f"{where}: model type {kind!r} is not supported: {REFUSED[kind]}")
    if kind not in KINDS or not getattr(config, "is_encoder_decoder", False):
        families.family_of(config, where)  # which says so
    fraction = getattr(config, "moe_eval_capacity_token_fraction", 1.0)  # NLLB-MoE: tokens of a pass crowd others out
    if fraction < 1.0:
        raise Spec2SeqError(f"{where}: moe_eval_capacity_token_fraction is {fraction}; allowed: at least 1.0")


@torch.inference_mode()
def difference(model: Any) -> float:
    """How far blocks over ragged slots are from what Transformers does one token after another, of the largest logit.

    Two rows get a token each; one of them is rolled back; both get three more.
    """
    a, words = model.architecture, torch.Generator().manual_seed(0)
    known = range(min(a.vocabulary, a.source_vocabulary or a.vocabulary, 1000))
    usual = torch.tensor([word for word in known if word not in (a.pad_token_id, a.eos_token_id)])
    sources, tokens = usual[torch.randint(len(usual), (2, 2, 6), generator=words)].to(model.device)
    lengths = torch.tensor([6, 4], device=model.device)
    sources[0, 5] = sources[1, 3] = a.eos_token_id
    tokens[:, 0] = a.decoder_start_token_id
    cache = model.new_cache(2)
    model.admit(cache, 0, model.encode(sources, lengths))
    first = model.decode_block(cache, tokens[:, :1], torch.zeros_like(lengths), 1, uniform=True).logits
    starts = torch.tensor([1, 0], device=model.device)
    block = torch.stack([tokens[0, 1:4], tokens[1, :3]])
    rest = model.decode_block(cache, block, starts, 4).logits
    ours = [torch.cat([first[0], rest[0]]), rest[1]]
    worst = []
    for row, (length, found) in enumerate(zip(lengths.tolist(), ours, strict=True)):
        expected = _one_by_one(model, sources[row : row + 1, :length], tokens[row : row + 1, : len(found)])
        worst.append((found - expected).abs().max() / expected.abs().max())
    return float(torch.stack(worst).max())  # NaN, if there is one


def _one_by_one(model: Any, source: Tensor, tokens: Tensor) -> Tensor:
    """Logits `[length, vocabulary]` of Transformers' own cached steps."""
    encoded, past, steps = model.encode(source, source.new_tensor([source.shape[1]])), None, []
    for step in tokens.split(1, 1):
        found = model.run(encoded.states, encoded.lengths, decoder_input_ids=step, past_key_values=past)
        past = found.past_key_values
        steps.append(found.logits[0])
    return torch.cat(steps)
