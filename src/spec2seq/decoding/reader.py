"""Sources are encoded in groups; on a GPU the next group already while rows in flight are decoded."""

import contextlib
import functools
from collections.abc import Iterator

import torch

from spec2seq.decoding.rows import padded
from spec2seq.decoding.scheduler import Request, Scheduler
from spec2seq.models.encoder_decoder import Encoded, EncoderDecoder

Group = tuple[list[Request], Encoded]


class Reader:
    """Encodes requests. `read_ahead` does so on a stream of its own, beside whatever the device is at; where there are
    no streams, nothing would run at the same time, and it does nothing."""

    def __init__(self, verifier: EncoderDecoder, scheduler: Scheduler):
        self.verifier, self.scheduler = verifier, scheduler
        self.ahead: Group | None = None
        self.overlaps = verifier.device.type == "cuda"
        self.stream = None
        if self.overlaps:
            self.stream = _stream(verifier.device)
            self.stream.wait_stream(torch.cuda.current_stream(verifier.device))  # the weights may just be coming

    def read_ahead(self) -> None:
        """Encode those who will be next, if that has not been done."""
        if not self.overlaps or self.ahead is not None:
            return
        requests = self.scheduler.upcoming()
        if requests:
            with contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream):
                self.ahead = requests, self._encode(requests)

    def read(self, requests: list[Request]) -> Iterator[Group]:
        """The requests in their order with their encoded sources, in a group or two."""
        if self.ahead is not None and requests:
            first, encoded = self.ahead
            self.ahead = None
            if [request.id for request in requests[: len(first)]] == [request.id for request in first]:
                self._join(encoded)
                yield first, encoded
                requests = requests[len(first) :]
        if requests:
            yield requests, self._encode(requests)

    def _encode(self, requests: list[Request]) -> Encoded:
        device = self.verifier.device
        lengths = torch.tensor([len(request.source) for request in requests])
        sources = padded([request.source for request in requests], self.verifier.architecture.pad_token_id)
        return self.verifier.encode(sources.to(device), lengths.to(device))

    def _join(self, encoded: Encoded) -> None:
        """Let what follows wait for the stream, and keep the tensors until it is through with them."""
        if self.stream is None:
            return
        current = torch.cuda.current_stream(self.verifier.device)
        current.wait_stream(self.stream)
        for tensor in (encoded.tokens, encoded.lengths, encoded.states):
            tensor.record_stream(current)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all engines: PyTorch has 32 and then gives the same ones out again."""
    return torch.cuda.Stream(device)
