"""What the layers need to know about a model, free of any family's vocabulary of names."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StackShape:
    """The shape of an encoder or a decoder."""

    layers: int
    heads: int
    head_width: int
    ffn_width: int


@dataclass(frozen=True)
class SoundShape:
    """What a model that hears reads: `bins` of a spectrogram in each frame, two frames to each of its `places`."""

    bins: int
    places: int


@dataclass(frozen=True)
class Architecture:
    """A Transformer encoder–decoder. `families.py` makes one from a Hugging Face configuration."""

    vocabulary: int  # of the target, and of the source where `source_vocabulary` is None
    width: int
    encoder: StackShape
    decoder: StackShape
    activation: str
    pad_token_id: int
    eos_token_id: int
    decoder_start_token_id: int
    gated: bool = False  # feed-forward with a multiplicative gate (T5 v1.1)
    bias: bool = True
    rms_norm: bool = False
    norm_eps: float = 1e-5
    pre_norm: bool = False
    embedding_norm: bool = False
    final_norm: bool = False
    embedding_scale: float = 1.0
    attention_scale: float | None = None  # None: head_width ** -0.5
    logit_scale: float = 1.0
    position_rows: int | None = None  # rows of the position table; None: relative positions
    position_offset: int = 0
    relative_buckets: int = 0
    relative_max_distance: int = 0
    relative_per_layer: bool = False  # each layer has biases of its own (UMT5), not all those of the first
    skip_padding: bool = False  # a padding token within a text has the row of zeros and no place (fairseq)
    source_vocabulary: int | None = None
    source_positions: int | None = None  # where a source may have another number of tokens than a target
    sound: SoundShape | None = None  # a source is a spectrogram, not a text

    @property
    def max_positions(self) -> int | None:
        """The most tokens a source or a target may have; None where positions are relative."""
        return None if self.position_rows is None else self.position_rows - self.position_offset

    @property
    def max_source_positions(self) -> int | None:
        """The same of a source alone."""
        return self.source_positions or self.max_positions
