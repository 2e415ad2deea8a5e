"""How likely an output is under a model."""

import torch

from spec2seq.decoding.rows import padded
from spec2seq.decoding.scheduler import Source
from spec2seq.models.encoder_decoder import EncoderDecoder


@torch.inference_mode()
def log_probability(model: EncoderDecoder, source: Source, output: list[int]) -> float:
    """Sum over `output` of each token's log-probability, in nats, given the source and the tokens before it."""
    if not output:
        return 0.0
    tokens = torch.tensor([[model.architecture.decoder_start_token_id, *output]], device=model.device)
    lengths = torch.tensor([len(source)], device=model.device)
    cache = model.new_cache(1)
    model.admit(cache, 0, model.encode(padded([source], 0).to(model.device), lengths))
    decoded = model.decode_block(cache, tokens[:, :-1], torch.zeros_like(lengths), len(output), uniform=True)
    logits = decoded.logits if model.dtype == torch.float64 else decoded.logits.float()
    return float(logits.log_softmax(-1).gather(2, tokens[:, 1:, None]).sum())
