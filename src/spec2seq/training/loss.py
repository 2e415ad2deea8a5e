"""Label-smoothed cross entropy over a vocabulary, fused with the output projection and taken in chunks."""

from typing import Any

import torch


class SmoothedCrossEntropy(torch.autograd.Function):
    """Sum of (1-e)·NLL + e·mean over the vocabulary of −log p, from hidden states [N, D] and weight [V, D].

    The gradient is computed in the forward pass chunk by chunk: no [N, V] tensor is kept. The smoothing needs no pass
    over the logits, because their mean is the state times the mean row of the weight, and the gradient of that is of
    rank one. Returns (smoothed loss, plain NLL) in nats, sums over the N labels. `bias` [V] or None gets no gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden, weight, bias, labels, smoothing: float, dtype: torch.dtype,
                chunk: int | None = None):  # fmt: skip
        chunk = chunk or (512 if hidden.device.type == "cpu" else 8192)  # a CPU's chunk stays in its cache
        smooth = torch.zeros((), dtype=torch.float32, device=hidden.device)
        plain = torch.zeros_like(smooth)
        states, matrix = hidden.to(dtype), weight.to(dtype)
        mean_row = weight.float().mean(0)
        mean_bias = 0.0 if bias is None else bias.float().mean()
        hidden_grad = torch.empty(states.shape, dtype=torch.float32, device=hidden.device)
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(labels), chunk):
            rows, wanted = states[start : start + chunk], labels[start : start + chunk, None]
            logits = rows @ matrix.T
            if bias is not None:
                logits = logits + bias
            grad = torch.softmax(logits, dim=-1, dtype=torch.float32)
            nll = -grad.gather(1, wanted).clamp_min(1e-30).log().sum()
            mean_logits = (rows.float() @ mean_row + mean_bias).sum()
            plain += nll
            smooth += nll + smoothing * (logits.gather(1, wanted).float().sum() - mean_logits)
            grad.scatter_add_(1, wanted, torch.full_like(wanted, smoothing - 1, dtype=torch.float32))
            grad = grad.to(dtype)
            hidden_grad[start : start + chunk] = grad @ matrix
            if weight_grad is not None:
                weight_grad += grad.T @ rows
        hidden_grad -= smoothing * mean_row
        if weight_grad is not None:
            weight_grad -= smoothing / weight.shape[0] * states.float().sum(0)
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(plain)
        return smooth, plain

    @staticmethod
    def backward(ctx: Any, grad_output, _plain):
        hidden_grad, weight_grad = ctx.saved_tensors
        hidden_type, weight_type = ctx.dtypes
        if weight_grad is not None:
            weight_grad = (weight_grad * grad_output).to(weight_type)
        return (hidden_grad * grad_output).to(hidden_type), weight_grad, None, None, None, None, None


def decoder_states(model: Any, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """What enters the output projection, [B, T, D], for Marian, BART and T5 classes of Transformers; before it, where
    the model has one, the same of its early exit."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    exit_layer = getattr(model.config, "early_exit", None)
    more = {} if exit_layer is None else {"output_hidden_states": True}
    if hasattr(model, "model"):
        done = model.model(**inputs, use_cache=False, **more)
        exits = [] if exit_layer is None else [done.decoder_hidden_states[exit_layer]]
        return [*exits, done.last_hidden_state]
    encoded = model.encoder(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    done = model.decoder(
        input_ids=inputs["decoder_input_ids"], encoder_hidden_states=encoded,
        encoder_attention_mask=inputs["attention_mask"], use_cache=False, **more,
    )  # fmt: skip
    exits = [] if exit_layer is None else [model.decoder.final_layer_norm(done.hidden_states[exit_layer])]
    scaled = getattr(model.config, "scale_decoder_outputs", model.config.tie_word_embeddings)
    return [states * model.config.d_model**-0.5 if scaled else states for states in (*exits, done.last_hidden_state)]


def sequence_loss(
    model: Any, batch: dict[str, torch.Tensor], smoothing: float, dtype: torch.dtype, chunk: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(smoothed loss, plain NLL, number of labels) of a batch; both losses are sums in nats over real tokens. With an
    early exit the smoothed loss is the mean of both exits'; the plain one is always the last layer's."""
    exits = decoder_states(model, batch)
    kept = batch["labels"] != -100
    labels = batch["labels"][kept]
    bias = getattr(model, "final_logits_bias", None)
    if bias is not None and not bias.any():
        bias = None
    losses = [
        SmoothedCrossEntropy.apply(states[kept], model.lm_head.weight, bias, labels, smoothing, dtype, chunk)
        for states in exits
    ]
    smooth = sum(loss for loss, _ in losses) / len(losses)
    return smooth, losses[-1][1], len(labels)


def narrow_residuals(model: Any) -> None:
    """Under autocast, keep the residual stream of Marian or BART in the autocast type: a third fewer copies on CPUs."""

    def cast(_module: Any, inputs: tuple, keywords: dict) -> tuple[tuple, dict]:
        device = (inputs[0] if inputs else keywords["hidden_states"]).device.type
        if not torch.is_autocast_enabled(device):
            return inputs, keywords
        dtype = torch.get_autocast_dtype(device)
        if inputs:
            return (inputs[0].to(dtype), *inputs[1:]), keywords
        return inputs, {**keywords, "hidden_states": keywords["hidden_states"].to(dtype)}

    if hasattr(model, "model"):
        for stack in (model.model.encoder, model.model.decoder):
            stack.layers[0].register_forward_pre_hook(cast, with_kwargs=True)
