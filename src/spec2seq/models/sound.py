"""The front of a model that hears: from a spectrogram to what the encoder's layers read."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spec2seq.models.architecture import SoundShape


class SoundFront(nn.Module):
    """Two convolutions, the second of which halves the frames, and the positions (Radford et al. 2023, section 2.2)."""

    def __init__(self, shape: SoundShape, width: int):
        super().__init__()
        self.bins = shape.bins
        self.first = nn.Conv1d(shape.bins, width, 3, padding=1)
        self.second = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.empty(shape.places, width))

    def forward(self, features: Tensor) -> Tensor:
        """Spectrograms `[rows, places, 2 * bins]`, two frames behind each other → `[rows * places, width]`."""
        rows, places, _ = features.shape
        x = features.to(self.positions.dtype).reshape(rows, 2 * places, self.bins).transpose(1, 2)
        x = F.gelu(self.second(F.gelu(self.first(x)))).transpose(1, 2) + self.positions[:places]
        return x.reshape(rows * places, -1)
