"""Methods are (drafter, length rule, acceptance rule); the named ones are presets of that."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

from spec2seq.config import check_choice, check_range
from spec2seq.decoding import costs
from spec2seq.decoding.acceptance import AcceptanceRule, Exact, RejectionSampling, Rollback, TopBeta
from spec2seq.decoding.drafters import Drafter, LittleModel
from spec2seq.decoding.lengths import AdaptiveLength, Chooser, ConfidenceLength, FixedLength, LengthRule
from spec2seq.decoding.lookup import NgramLookup
from spec2seq.decoding.processors import Processor
from spec2seq.decoding.sampling import Sampling
from spec2seq.errors import UsageError

STARTS = ("drafter", "verifier")


@dataclass(frozen=True)
class Speculative:
    """Any drafter with any length rule and any acceptance rule. Without a drafter it is autoregressive.

    `starts` says who writes a row's first token. Without `verify_tail` a draft that holds the end token ends its row
    as it stands, unverified; a row that ends at its cap ends with a token of the verifier's in any case.
    """

    drafter: Drafter | None = None
    length: LengthRule = field(default_factory=AdaptiveLength)
    acceptance: AcceptanceRule = field(default_factory=Exact)
    starts: str = "drafter"
    verify_tail: bool = True
    _choosers: WeakKeyDictionary = field(default_factory=WeakKeyDictionary, init=False, repr=False, compare=False)

    def __post_init__(self):
        check_choice("starts", self.starts, STARTS)
        for name, part, what in (("length", "chooser", "a LengthRule"), ("acceptance", "judge", "an AcceptanceRule")):
            if not hasattr(getattr(self, name), part):
                raise UsageError(f"{name} is {getattr(self, name)!r}; allowed: {what}")
        if hasattr(self.drafter, "drafter"):
            raise UsageError(f"{type(self.drafter).__name__} is no drafter; a Seq2Seq becomes one by .drafter()")
        if self.drafter is not None and self.length.confidence is not None and not self.drafter.has_confidence:
            raise UsageError(
                f"{type(self.drafter).__name__} gives no confidence; use a length rule without a confidence threshold"
            )
        if getattr(self.acceptance, "needs_distributions", False) and not getattr(self.drafter, "distributions", False):
            raise UsageError(
                f"{type(self.drafter).__name__} gives no distributions; use the distance cross-entropy, or a "
                "LittleModel with distributions=True"
            )
        longest = None if self.drafter is None else self.drafter.longest
        if longest is not None and isinstance(self.length, FixedLength) and self.length.cap > longest:
            raise UsageError(f"the draft length is {self.length.cap}; allowed with this drafter: at most {longest}")

    def chooser(
        self, verifier: Any, slots: int, processors: list[Processor] | None = None, ends: int = 1
    ) -> Chooser:  # fmt: skip
        """The running state of the length rule, kept from run to run for each verifier, batch size, and number of
        tokens that end a row."""
        known = self._choosers.setdefault(verifier, {})
        key = slots, ends
        if key not in known:
            longest = None if self.drafter is None else self.drafter.longest
            rule = self.length if longest is None else replace(self.length, cap=min(self.length.cap, longest))
            method, near = replace(self, length=rule), 1 << (slots.bit_length() - 1)  # few batch sizes are measured
            known[key] = rule.chooser(lambda: costs.of_iterations(verifier, method, processors or [], near, ends))
        return known[key]

    @property
    def sampling(self) -> Sampling | None:
        """How tokens are drawn; None: they are not."""
        return self.acceptance.sampling

    @property
    def lossless(self) -> bool:
        """Whether the output is the verifier's greedy output, token for token."""
        return self.acceptance.lossless and (self.verify_tail or self.drafter is None)

    def completed(self, settings: Mapping[str, Any]) -> "Speculative":
        """This, with what it leaves open taken from a model's generation config.

        Raises UsageError where that asks for several outputs a source.
        """
        several = settings.get("num_return_sequences")
        if several not in (None, 1):
            raise UsageError(
                f"generation setting num_return_sequences={several} is not supported by this method; Beam gives several"
            )
        if self.sampling is None:
            return self
        other = replace(self, acceptance=replace(self.acceptance, sampling=self.sampling.completed(settings)))
        object.__setattr__(other, "_choosers", self._choosers)  # what was learned stays with this object
        return other


@dataclass(frozen=True)
class Beam:
    """Beam search as Transformers defines it: sums of log-probabilities over length ** length_penalty.

    early_stopping True ends a sentence as soon as `num_beams` hypotheses are finished; False goes on while the
    best running beam could still beat the worst of them at its present length, "never" while it could at any length.
    The `num_return_sequences` best are returned. What is None comes from the model's generation config; where that
    says nothing it is 5 beams, 1.0, False and 1.

    With `sampling` it is Transformers' beam sampling: of each step's continuations, filtered, 2 * num_beams are drawn
    without replacement in proportion to e ** score, where beam search takes the best.
    """

    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    num_return_sequences: int | None = None
    sampling: Sampling | None = None

    lossless = False

    def __post_init__(self):
        check_range("num_beams", self.num_beams, low=1)
        check_range("length_penalty", self.length_penalty)
        check_choice("early_stopping", self.early_stopping, (None, False, True, "never"))
        check_range("num_return_sequences", self.num_return_sequences, low=1, high=self.num_beams)

    def completed(self, settings: Mapping[str, Any]) -> "Beam":
        """This, with what is None taken from a model's generation config, or the default.

        Raises UsageError for beam sampling where that asks to renormalize: it would have to come after the filters.
        """
        if self.sampling is not None and settings.get("renormalize_logits"):
            raise UsageError("generation setting renormalize_logits=True is not supported by Beam with sampling")
        found = {"num_beams": 5, "length_penalty": 1.0, "early_stopping": False, "num_return_sequences": 1}
        for name in found:
            own, said = getattr(self, name), settings.get(name)
            if own is not None:
                found[name] = own
            elif said is not None and (name, said) != ("num_beams", 1):  # which says not to search
                found[name] = said
        return Beam(**found, sampling=self.sampling and self.sampling.completed(settings))


def Greedy() -> Speculative:
    """The verifier alone, its likeliest token each time."""
    return Speculative()


def Sample(
    temperature: float | None = None, top_k: int | None = None, top_p: float | None = None, seed: int = 0,
    drafter: Drafter | None = None, length: LengthRule | None = None, *, min_p: float | None = None,
    typical_p: float | None = None,
) -> Speculative:  # fmt: skip
    """Draws from the verifier's distribution; with a drafter, speculative sampling from the same distribution.

    A filter that is None is the one of the model's generation config, if that has one.
    """
    rule = RejectionSampling(Sampling(temperature, top_k, top_p, seed, min_p, typical_p))
    return Speculative(drafter, length or FixedLength(4), rule)


def Assisted(
    drafter: Drafter,
    num_assistant_tokens: int | None = None,
    assistant_confidence_threshold: float | None = None,
    acceptance: AcceptanceRule | None = None,
) -> Speculative:
    """A little model drafts, the verifier keeps what it would have written itself: lossless.

    num_assistant_tokens None chooses the draft length by measurement, and 0 where speculation does not pay.
    """
    if drafter is None:
        raise UsageError("Assisted needs a drafter; without one use Greedy")
    threshold = assistant_confidence_threshold
    check_range("num_assistant_tokens", num_assistant_tokens, low=0 if threshold is None else 1)
    length: LengthRule
    if num_assistant_tokens is None:
        length = AdaptiveLength(confidence=threshold)
    elif threshold is not None:
        length = ConfidenceLength(threshold, num_assistant_tokens)
    else:
        length = FixedLength(num_assistant_tokens)
    return Speculative(drafter, length, acceptance or Exact())


def SpecDec(
    drafter: Drafter, block_size: int | None = None, beta: int | None = None, tau: float | None = None
) -> Speculative:
    """Speculative decoding with a block drafter (SpecDec, Xia et al. 2023): `block_size` tokens in one pass.

    block_size None chooses it by measurement, up to what the drafter was trained for, and 0 where drafting does not
    pay. Without `beta` and `tau` the output is the verifier's own; with either, a token stands if it is among the
    verifier's top `beta` (3) and at most `tau` (1.0) nats below the best.
    """
    trained = getattr(drafter, "block_size", None)
    if trained is None:
        raise UsageError(f"{type(drafter).__name__} is no block drafter; use Assisted")
    check_range("block_size", block_size, low=1)
    length = AdaptiveLength(trained) if block_size is None else FixedLength(block_size)
    given = {name: value for name, value in (("beta", beta), ("tau", tau)) if value is not None}
    return Speculative(drafter, length, TopBeta(**given) if given else Exact())


def BiLD(
    drafter: Drafter,
    fallback_threshold: float | None = 0.6,
    rollback_threshold: float | None = 2.0,
    max_draft_tokens: int | None = 10,
    *,
    starts: str = "drafter",
    verify_tail: bool = False,
    distance: str = "cross-entropy",
    sampling: Sampling | None = None,
) -> Speculative:
    """Big Little Decoder (Kim et al. 2023, section 3): the little model writes until its top probability is below
    `fallback_threshold` (or for `max_draft_tokens`), then the verifier checks what was written, rolls back from the
    first token that surprises it by more than `rollback_threshold` nats, and writes one token itself.

    None switches a policy off; 0 is a value: never fall back, keep only the verifier's own tokens. The latter with
    `verify_tail` is the verifier's greedy output. With `sampling` both models draw their tokens (the paper's appendix);
    `Sample(drafter=...)` is the sampling that keeps the verifier's distribution. In a batch every row drafts to its
    own end before the verifier runs, so that a row is what it is alone (docs/bild.md). Not so with max_draft_tokens
    None, which chooses the cap by measurement, up to 10, and 0, the verifier alone, where drafting does not pay.
    """
    check_range("fallback_threshold", fallback_threshold, low=0.0, high=1.0)
    check_range("max_draft_tokens", max_draft_tokens, low=1)
    rule = Rollback(rollback_threshold, distance, sampling)
    if rule.needs_distributions and isinstance(drafter, LittleModel):
        drafter = replace(drafter, distributions=True)
    length: LengthRule
    if max_draft_tokens is None:
        length = AdaptiveLength(10, fallback_threshold)
    else:
        length = ConfidenceLength(fallback_threshold, max_draft_tokens)
    return Speculative(drafter, length, rule, starts, verify_tail)


def Lookup(
    num_lookup_tokens: int | None = None,
    max_matching_ngram_size: int = 3,
    min_matching_ngram_size: int = 1,
    acceptance: AcceptanceRule | None = None,
) -> Speculative:
    """Copies from source and output what followed the last tokens there: lossless, no second model."""
    check_range("num_lookup_tokens", num_lookup_tokens, low=0)
    length = AdaptiveLength() if num_lookup_tokens is None else FixedLength(num_lookup_tokens)
    return Speculative(NgramLookup(max_matching_ngram_size, min_matching_ngram_size), length, acceptance or Exact())
