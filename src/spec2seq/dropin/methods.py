"""Which of our methods does what a generation config of Transformers asks for."""

from collections.abc import Mapping
from typing import Any

import torch

from spec2seq.api import Method
from spec2seq.decoding.drafters import Drafter
from spec2seq.decoding.methods import Assisted, Beam, Greedy, Lookup, Sample, SpecDec, Speculative
from spec2seq.decoding.sampling import Sampling
from spec2seq.errors import UsageError


def asked_for(settings: Mapping[str, Any], speculation: Speculative | None, seed: int) -> Method:
    """The method that `settings`, a generation config, describes; `speculation`, lossless, stands in for greedy.

    Raises UsageError for combinations that we do not have, naming them.
    """
    beams = (settings.get("num_beams") or 1) > 1
    drawn, copied = bool(settings.get("do_sample")), settings.get("prompt_lookup_num_tokens")
    for name, asked in (("a drafter", speculation), ("prompt_lookup_num_tokens", copied)):
        if beams and asked:
            raise UsageError(f"num_beams={settings['num_beams']} and {name} do not go together; allowed: one of them")
    if speculation is not None and copied:
        raise UsageError("a drafter and prompt_lookup_num_tokens do not go together; allowed: one of them")
    if beams:
        return Beam(sampling=Sampling(seed=seed) if drawn else None)  # with the settings' own parameters
    if drawn:
        return Sample(seed=seed, drafter=None if speculation is None else speculation.drafter)
    if copied:
        return Lookup(copied, settings.get("max_matching_ngram_size") or 3)
    return speculation or Greedy()


def seed_of(settings: Mapping[str, Any]) -> int:
    """For draws, if there are any: as with Transformers they differ from call to call, and torch.manual_seed repeats
    them."""
    return int(torch.randint(2**31, ())) if settings.get("do_sample") else 0


def repeats(method: Method, config: Any) -> int:
    """How often each source is decoded: each draw is a row of its own, which a generation config no longer says
    then; beam search has several by itself."""
    if not isinstance(method, Speculative) or method.sampling is None:
        return 1
    asked, config.num_return_sequences = config.num_return_sequences or 1, 1
    return asked


def drafted(drafter: Drafter) -> Speculative:
    """The lossless method for a drafter of either kind."""
    return Assisted(drafter) if getattr(drafter, "block_size", None) is None else SpecDec(drafter)


def drawing(method: Method, settings: Mapping[str, Any], seed: int) -> Method | None:
    """What draws as `settings` say, with the drafter of a method that gives the verifier's own output or draws from its
    own distribution; None: there is no such with another rule of acceptance."""
    if isinstance(method, Beam):
        return asked_for({**settings, "num_beams": 1}, None, seed)
    if isinstance(method, Speculative) and (method.lossless or method.sampling is not None):
        return asked_for({**settings, "num_beams": 1}, method, seed)
    return None


def check_agrees(method: Method, asked: Mapping[str, Any]) -> None:
    """Raises UsageError where the settings of a call ask for something else than the method that was given."""
    beams = asked.get("num_beams") or 1
    own = getattr(method, "num_beams", None) if isinstance(method, Beam) else 1
    if beams > 1 and own not in (None, beams):
        raise UsageError(f"num_beams is {beams}, but the method given is {_name(method)}; leave one of them out")
    if asked.get("do_sample") and method.sampling is None:
        raise UsageError(f"do_sample is True, but the method given is {_name(method)}; leave one of them out")


def _name(method: Method) -> str:
    if isinstance(method, Beam):
        return f"Beam({method.num_beams or ''})"
    return "greedy" if isinstance(method, Speculative) and method.drafter is None else type(method).__name__
