"""Models of a known shape with random weights: they say what a pass takes, and nothing of what is written."""

from typing import Any

import torch
from torch import nn

from spec2seq.api import Seq2Seq
from spec2seq.decoding.cached_blocks import CachedBlockDrafter
from spec2seq.models.cached_drafter import CachedDrafter
from spec2seq.models.cached_drafter_shape import CachedDrafterConfig, CachedDrafterShape
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.families import family_of

STD = 0.02


@torch.no_grad()
def random_model(config: Any, dtype: torch.dtype, device: torch.device) -> Seq2Seq:
    """A model of a Transformers configuration that runs by graphs where there are any; one table for both embeddings
    and the head."""
    torch.manual_seed(1)
    with device:
        model = EncoderDecoder(family_of(config, "the shape").architecture(config), tied_head=True, logit_bias=False)
    model.source_embedding = model.target_embedding
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=STD)
    model.to(dtype).requires_grad_(False)
    model.graphs = True
    return Seq2Seq(model, config)


def random_drafter(model: Seq2Seq, block_size: int, shortlist: int) -> CachedBlockDrafter:
    """A cached drafter for a model, of one layer, as training would start it."""
    a = model.model.architecture
    shape = CachedDrafterShape(
        block_size, feed_forward=a.decoder.ffn_width, hidden_layers=(a.decoder.layers // 2, a.decoder.layers),
        shortlist=shortlist,
    )  # fmt: skip
    drafter = CachedDrafter(CachedDrafterConfig(a, shape))
    drafter.start_from(model.model)
    return CachedBlockDrafter(drafter.to(model.model.device, model.model.dtype).requires_grad_(False))
