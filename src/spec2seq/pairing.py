"""Whether a little model can draft for a verifier."""

from typing import Any
from weakref import WeakKeyDictionary

from spec2seq.decoding.drafters import LittleModel
from spec2seq.errors import UsageError
from spec2seq.models.architecture import Architecture

# Comparing two vocabularies takes milliseconds. Verifier → drafter → the verifier's tokenizer then.
_checked: WeakKeyDictionary[Any, WeakKeyDictionary[LittleModel, Any]] = WeakKeyDictionary()


def check_pair(verifier: Any, drafter: LittleModel) -> None:
    """Raise UsageError unless `drafter` has the vocabulary, the positions and the device of `verifier`
    (a `Seq2Seq`). Each pair is compared once."""
    known = _checked.setdefault(verifier.model, WeakKeyDictionary())  # its settings may change from call to call
    if drafter in known and known[drafter] is verifier.tokenizer:
        return
    check_alike(verifier.model.architecture, drafter.model.architecture, verifier.tokenizer, drafter.tokenizer)
    if verifier.model.device != drafter.model.device:
        raise UsageError(
            f"the verifier is on {verifier.model.device} and the drafter on {drafter.model.device}; load both on one"
        )
    known[drafter] = verifier.tokenizer


def check_alike(verifier: Architecture, drafter: Architecture, ours: Any, theirs: Any) -> None:
    """Raises UsageError naming the first difference that matters between two models with their tokenizers."""
    check_same_vocabulary(verifier, drafter, ours, theirs)
    most, fewest = verifier.max_positions, drafter.max_positions
    if fewest is not None and (most is None or fewest < most):
        raise UsageError(f"the drafter has {fewest} positions and the verifier {most or 'any number'}; give it more")


def check_same_vocabulary(a: Architecture, b: Architecture, ours: Any, theirs: Any) -> None:
    """Raises UsageError naming the first difference. Padded vocabularies of one tokenizer are the same."""
    for name in ("eos_token_id", "pad_token_id", "decoder_start_token_id", "source_vocabulary", "sound"):
        if getattr(a, name) != getattr(b, name):
            raise UsageError(
                f"verifier and drafter differ: {name} is {getattr(a, name)} and {getattr(b, name)}; they must be equal"
            )
    if ours is None or theirs is None:
        if a.vocabulary != b.vocabulary:
            raise UsageError(f"verifier and drafter have vocabularies of {a.vocabulary} and {b.vocabulary} entries")
        return
    mine = {index: token for token, index in ours.get_vocab().items()}
    other = {index: token for token, index in theirs.get_vocab().items()}
    for index in sorted(mine.keys() | other.keys()):
        if mine.get(index) != other.get(index):
            raise UsageError(
                f"verifier and drafter have different vocabularies: token {index} is {mine.get(index)!r} in the "
                f"verifier and {other.get(index)!r} in the drafter; a drafter must have the verifier's vocabulary"
            )
