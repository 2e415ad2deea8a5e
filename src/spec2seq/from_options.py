"""Options → the model, its drafter and the method that they describe."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spec2seq.errors import UsageError
from spec2seq.options import BESIDE, FILTERS, TASK, UNSET, MethodOptions, RunOptions, is_block_drafter

if TYPE_CHECKING:  # both import torch, and the command line must answer --help without it
    from spec2seq.api import Method, Seq2Seq
    from spec2seq.decoding.drafters import Drafter

EARLY_EXIT = "early-exit"  # as a drafter's name


def load(run: RunOptions, options: MethodOptions) -> "tuple[Seq2Seq, Method]":
    """Load the model, and the drafter if there is one, and make the method."""
    from spec2seq.api import Seq2Seq

    if run.threads is not UNSET:
        import torch

        torch.set_num_threads(run.threads)
    place = run.given("dtype", "device", "executor")
    model = Seq2Seq.from_pretrained(run.model, **place, **run.given(*TASK, "device_memory"))
    drafter = None
    if options.drafter is not UNSET:
        drafter = load_drafter(options.drafter, model, languages=run.given("src_lang", "tgt_lang"), **place)
    return model, make_method(options, drafter)


def load_drafter(
    name: str, verifier: "Seq2Seq", tokenizer: str | None = None, languages: Mapping[str, str] | None = None,
    **place: str,
) -> "Drafter":  # fmt: skip
    """The drafter in a folder, of whichever kind, a little model of the hub, or the verifier's early exit; `place` is
    dtype, device and executor."""
    from spec2seq import BlockDrafter, Seq2Seq

    if name == EARLY_EXIT:
        return verifier.early_exit()
    if is_block_drafter(name):
        return BlockDrafter.from_pretrained(name, **place)
    words = {} if tokenizer is None else {"tokenizer": tokenizer}
    return Seq2Seq.from_pretrained(name, **words, **place, **(languages or {})).drafter()


def make_method(options: MethodOptions, drafter: "Drafter | None" = None) -> "Method":
    """The method that the options describe; what they leave unset has the library's defaults."""
    from spec2seq.decoding import methods

    if options.method in BESIDE and drafter is None:
        raise UsageError(f"method {options.method} needs a drafter")
    given = options.given
    match options.method:
        case "greedy":
            return methods.Greedy()
        case "beam":
            best = {} if options.n_best is UNSET else {"num_return_sequences": options.n_best}
            return methods.Beam(**given("num_beams", "length_penalty", "early_stopping"), **best)
        case "sample":
            filters = given(*FILTERS)
            length = given("num_assistant_tokens", "assistant_confidence_threshold")
            if drafter is not None and length:
                length = methods.Assisted(drafter, **({"num_assistant_tokens": 4} | length)).length
            return methods.Sample(**filters, drafter=drafter, length=length or None)
        case "assisted":
            length = given("num_assistant_tokens", "assistant_confidence_threshold")
            return methods.Assisted(drafter, **length, acceptance=_acceptance(options))
        case "specdec":
            return methods.SpecDec(drafter, **given("block_size", "beta", "tau"))
        case "bild":
            return _bild(options, drafter)
        case _:
            lookup = given("num_lookup_tokens", "max_matching_ngram_size", "min_matching_ngram_size")
            return methods.Lookup(**lookup, acceptance=_acceptance(options))


def _bild(options: MethodOptions, drafter: "Drafter") -> "Method":
    from spec2seq.decoding import methods, official
    from spec2seq.decoding.sampling import Sampling

    values = options.given("fallback_threshold", "rollback_threshold", "max_draft_tokens")
    policy = "paper" if options.policy is UNSET else options.policy
    if policy == "compat":
        return official.OfficialBiLD(drafter, **values)
    values |= options.given("starts", "verify_tail", "distance")
    if policy == "lossless":
        values |= {"rollback_threshold": 0.0, "verify_tail": True}
    if policy == "sampling":
        values["sampling"] = Sampling(**options.given(*FILTERS))
    return methods.BiLD(drafter, **values)


def _acceptance(options: MethodOptions) -> Any:
    from spec2seq.decoding.acceptance import TopBeta

    given = options.given("beta", "tau")
    return TopBeta(**given) if given else None
