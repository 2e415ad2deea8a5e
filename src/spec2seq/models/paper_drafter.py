"""The drafter of SpecDec (Xia et al. 2023): non-autoregressive, with an encoder of its own.

Its decoder reads the accepted tokens, not shifted, and behind them k mask slots; place i of the output predicts token
i itself. Attention is bidirectional over prefix and masks, so nothing can be cached from block to block.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spec2seq.config import check_range
from spec2seq.models import drafter_folder
from spec2seq.models.architecture import Architecture, StackShape
from spec2seq.models.layers import CrossAttention, DropoutLayer, SelfAttention, cross_keys_values, padding_mask

KIND = "paper"
INITIAL_STD = 0.02


@dataclass  # not frozen: Transformers' trainer writes `use_cache` into what a model calls its config
class PaperConfig:
    """Shape and special tokens of a drafter.

    `source_positions` and `target_positions` are the most tokens of a source, and of prefix and block together.
    A prefix token that equals `mask_token_id` is read as a mask slot: drafters of the original repository, whose mask
    is <unk>, were trained so. None: every prefix token is an ordinary one. `verifier` is the fingerprint of the model
    that it was trained for, or None.
    """

    vocabulary: int
    width: int
    heads: int
    ffn_width: int
    encoder_layers: int
    decoder_layers: int
    source_positions: int
    target_positions: int
    eos_token_id: int
    pad_token_id: int
    block_size: int = 25
    activation: str = "gelu"
    dropout: float = 0.1
    mask_token_id: int | None = None
    verifier: str | None = None

    def __post_init__(self):
        check_range("block_size", self.block_size, low=1, high=self.target_positions)
        check_range("dropout", self.dropout, low=0.0, high=1.0)

    @property
    def architecture(self) -> Architecture:
        """What the shared layers want to know: post-norm, biases everywhere."""
        encoder, decoder = (
            StackShape(layers, self.heads, self.width // self.heads, self.ffn_width)
            for layers in (self.encoder_layers, self.decoder_layers)
        )
        return Architecture(
            self.vocabulary, self.width, encoder, decoder, self.activation,
            self.pad_token_id, self.eos_token_id, decoder_start_token_id=self.eos_token_id,
        )  # fmt: skip


@dataclass(frozen=True)
class EncodedSource:
    """Sources `[rows, length]`, right-padded, of `lengths[rows]` tokens, and their cross-attention keys and values
    `[layers, 2, rows, heads, length, head_width]`."""

    tokens: Tensor
    lengths: Tensor
    key_value: Tensor


class PaperDrafter(nn.Module):
    """Encoder and decoder with learned positions and GELU; one embedding is input, output and head."""

    def __init__(self, config: PaperConfig):
        super().__init__()
        self.config, a = config, config.architecture
        self.embedding = nn.Parameter(torch.empty(config.vocabulary, config.width))
        self.source_positions = nn.Parameter(torch.empty(config.source_positions, config.width))
        self.target_positions = nn.Parameter(torch.empty(config.target_positions, config.width))
        self.copy_query = nn.Linear(config.width, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder, self.decoder = (
            nn.ModuleList(DropoutLayer(a, shape, cross, config.dropout) for _ in range(shape.layers))
            for shape, cross in ((a.encoder, False), (a.decoder, True))
        )
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=INITIAL_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "PaperDrafter":
        """Load what `save_pretrained` wrote, in evaluation mode. Raises Spec2SeqError for anything else."""
        return drafter_folder.load(folder, KIND, PaperConfig, cls)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write configuration and weights. Raises Spec2SeqError if `folder` exists."""
        drafter_folder.save(folder, KIND, dataclasses.asdict(self.config), self)

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    def encode(self, tokens: Tensor, lengths: Tensor) -> EncodedSource:
        """Encode sources `[rows, length]`, right-padded, of `lengths[rows]` tokens, end token included."""
        rows, length = tokens.shape
        mask = padding_mask(lengths, length, self.dtype) if rows > 1 else None
        x = self.dropout(F.embedding(tokens, self.embedding) + self.source_positions[:length])
        x = x.view(-1, self.config.width)
        for index, layer in enumerate(self.encoder):
            x = layer(x, index, SelfAttention(rows, length, mask), None)
        return EncodedSource(tokens, lengths, cross_keys_values(self.decoder, x.view(rows, length, -1)))

    def block_states(self, source: EncodedSource, tokens: Tensor, is_mask: Tensor, lengths: Tensor | None) -> Tensor:
        """Run the decoder over prefix and mask slots.

        Args:
            source: what `encode` returned for the rows.
            tokens: `[rows, length]`, prefixes and then anything.
            is_mask: `[rows, length]`, which places are mask slots; what `tokens` says there does not matter.
            lengths: `[rows]`, prefix and mask slots together; what follows is padding. None: there is none.

        Returns:
            `[rows, length, width]`.
        """
        rows, length = tokens.shape
        own = None if lengths is None else padding_mask(lengths, length, self.dtype)
        padding = padding_mask(source.lengths, source.tokens.shape[1], self.dtype) if rows > 1 else None
        cross = CrossAttention(source.key_value, source.lengths if rows > 1 else None)
        positions = self.target_positions[:length]
        copied = self._copied(source, positions, padding)
        x = torch.where(is_mask[:, :, None], copied, F.embedding(tokens, self.embedding))
        for index, layer in enumerate(self.decoder):
            x = self.dropout(x.view(rows, length, -1) + positions).view(rows * length, -1)
            x = layer(x, index, SelfAttention(rows, length, own), cross)
        return x.view(rows, length, -1)

    def logits(self, states: Tensor) -> Tensor:
        """States `[..., width]` → logits `[..., vocabulary]`."""
        return F.linear(states, self.embedding)

    def block_logits(
        self, source: EncodedSource, tokens: Tensor, is_mask: Tensor, lengths: Tensor | None, asked: Tensor
    ) -> Tensor:
        """Like `block_states`, scored at the places `asked[rows, n]` only: `[rows, n, vocabulary]`."""
        states = self.block_states(source, tokens, is_mask, lengths)
        return self.logits(states.gather(1, asked[:, :, None].expand(-1, -1, states.shape[2])))

    def draft(self, source: EncodedSource, tokens: Tensor, prefix: Tensor, longest: int, k: int) -> Tensor:
        """The likeliest k tokens after each prefix, `[rows, k]`, all in one pass.

        tokens `[rows, at least longest + k]` begin with prefixes of `prefix[rows]` tokens, at most `longest`. Tokens
        whose place is beyond the position table are meaningless.
        """
        width = min(longest + k, self.config.target_positions)
        tokens, step = tokens[:, :width], torch.arange(max(width, k), device=tokens.device)
        is_mask = step[:width] >= prefix[:, None]
        if self.config.mask_token_id is not None:
            is_mask = is_mask | (tokens == self.config.mask_token_id)
        lengths = (prefix + k).clamp(max=width) if len(prefix) > 1 else None
        asked = (prefix[:, None] + step[:k]).clamp(max=width - 1)
        return self.block_logits(source, tokens, is_mask, lengths, asked).argmax(-1)

    def _copied(self, source: EncodedSource, positions: Tensor, padding: Tensor | None) -> Tensor:
        """The input of mask slots at `positions[length, width]`: a soft copy of the source, `[rows, length, width]`.

        Queries are made of the position alone, so the mask has no embedding; scores are not scaled.
        """
        words = F.embedding(source.tokens, self.embedding)
        keys = words + self.source_positions[: words.shape[1]]
        scores = self.copy_query(positions) @ keys.transpose(1, 2)
        if padding is not None:
            scores = scores + padding[:, 0]
        return scores.softmax(-1) @ words
