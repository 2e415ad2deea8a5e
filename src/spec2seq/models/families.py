"""Per family: which configuration fields and weight names become our layers. Nothing else knows a family's name.

Each of our parameters is the concatenation (dimension 0) of one or more of Transformers' tensors, so the same names
load and save.
"""

from typing import Any

import torch
from torch import Tensor

from spec2seq.errors import Spec2SeqError
from spec2seq.models.architecture import Architecture
from spec2seq.models.bart_like import bart_like
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.family import Family
from spec2seq.models.t5_like import t5_like
from spec2seq.models.whisper import whisper

SHARED = "model.shared.weight"
SINUSOIDS = ("embed_positions.weight",)
FAMILIES: dict[str, Family] = {
    "bart": bart_like(offset=2, norms="embedding", shared=SHARED, logit_bias=True),
    "blenderbot": bart_like(offset=0, norms="layer", shared=SHARED, logit_bias=True),  # not BlenderbotSmall
    "fsmt": bart_like(offset=None, head="model.decoder.output_projection.weight", filled=SINUSOIDS),
    "m2m_100": bart_like(offset=None, norms="layer", computed=True, shared=SHARED),  # NLLB too
    "marian": bart_like(offset=0, shared=SHARED, logit_bias=True),
    "mbart": bart_like(offset=2, norms="embedding layer", shared=SHARED, logit_bias=True),  # mBART-50 too
    "mt5": t5_like(scaled=False),
    "mvp": bart_like(  # without prompts
        offset=2, norms="embedding", shared=SHARED, logit_bias=True, filled=("final_logits_bias",)
    ),
    "pegasus": bart_like(offset=0, norms="layer", shared=SHARED, logit_bias=True, filled=SINUSOIDS),
    "plbart": bart_like(offset=2, norms="embedding", shared=SHARED, logit_bias=True),
    "t5": t5_like(),
    "umt5": t5_like(per_layer=True),
    "whisper": whisper(),
}


def load(config: Any, state: dict[str, Tensor], where: str) -> EncoderDecoder:
    """Our model with the weights of a Transformers state dict. Raises Spec2SeqError for another family."""
    family = family_of(config, where)
    if not family.half and any(tensor.dtype == torch.float16 for tensor in state.values()):
        raise Spec2SeqError(f"{where}: {config.model_type.upper()} overflows in float16; use bfloat16 or float32")
    architecture = family.architecture(config)
    logit_bias = state.get("final_logits_bias")
    if logit_bias is not None and not logit_bias.any():
        logit_bias = None  # an addition over the whole vocabulary for nothing
    names = family.names(architecture)
    ours = {name: torch.cat(_tensors(family, parts, state)) for name, parts in names.items()}
    if family.positions is not None:
        table = family.positions(architecture).to(ours["target_embedding"])
        ours |= {"encoder.positions": table, "decoder.positions": table}
    shared_table = "source_embedding" in ours and torch.equal(ours["source_embedding"], ours["target_embedding"])
    tied_head = torch.equal(ours["head.weight"], ours["target_embedding"])
    if logit_bias is not None:
        ours["head.bias"] = logit_bias.flatten()
    return assemble(architecture, ours, shared_table=shared_table, tied_head=tied_head)


def _tensors(family: Family, parts: tuple[str, ...], state: dict[str, Tensor]) -> list[Tensor]:
    """Those of one of our parameters; what Transformers does not have as it is zero has the shape of the last one."""
    return [torch.zeros_like(state[parts[-1]]) if part.endswith(family.zeros) else state[part] for part in parts]


def assemble(
    architecture: Architecture, ours: dict[str, Tensor], *, shared_table: bool, tied_head: bool
) -> EncoderDecoder:
    """A model whose parameters are these very tensors. `shared_table`: both sides have one embedding, the target's."""
    with torch.device("meta"):
        model = EncoderDecoder(architecture, tied_head=tied_head, logit_bias="head.bias" in ours)
    model.load_state_dict(ours, assign=True)
    if shared_table:
        model.target_embedding = model.source_embedding
    if tied_head:
        model.head.weight = model.target_embedding
    return model.requires_grad_(False)


def export(model: EncoderDecoder, config: Any) -> dict[str, Tensor]:
    """The state dict that Transformers' own class loads."""
    family = family_of(config, "this model")
    ours = model.state_dict()
    theirs: dict[str, Tensor] = {}
    for name, parts in family.names(model.architecture).items():
        for part, tensor in zip(parts, ours[name].chunk(len(parts)), strict=True):
            if not part.endswith(family.zeros):
                theirs[part] = tensor.contiguous()
    shares = model.shares_embedding
    if family.shared is not None and (shares or getattr(config, "share_encoder_decoder_embeddings", True)):
        table = ours["source_embedding"]
        theirs[family.shared] = table if shares else table.clone()  # which nobody reads, but it must be there
    if family.logit_bias:
        bias = ours.get("head.bias", torch.zeros(model.architecture.vocabulary))
        theirs["final_logits_bias"] = bias[None].contiguous()
    return theirs


def knows(config: Any) -> bool:
    """Whether our layers can be such a model."""
    return getattr(config, "model_type", None) in FAMILIES and not getattr(config, "use_prompt", False)  # MVP's


def auto_class(config: Any) -> Any:
    """Which of Transformers' classes makes such a model."""
    import transformers  # slow to import

    heard = config.model_type == "whisper"
    return transformers.AutoModelForSpeechSeq2Seq if heard else transformers.AutoModelForSeq2SeqLM


def family_of(config: Any, where: str) -> Family:
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES:
        raise Spec2SeqError(f"{where}: model type {kind!r} is not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[kind]
