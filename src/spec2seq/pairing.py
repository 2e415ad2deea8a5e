"""Whether a little model can draft for a verifier."""

from typing import Any
from weakref import WeakKeyDictionary

from spec2seq.decoding.drafters import LittleModel
from spec2seq.errors import UsageError

# Comparing two vocabularies takes milliseconds. Verifier → drafter → the verifier's tokenizer then.
_checked: WeakKeyDictionary[Any, WeakKeyDictionary[LittleModel, Any]] = WeakKeyDictionary()


def check_pair(verifier: Any, drafter: LittleModel) -> None:
    """Raise UsageError unless `drafter` has the vocabulary, the positions and the device of `verifier`
    (a `Seq2Seq`). Each pair is compared once."""
    known = _checked.setdefault(verifier.model, WeakKeyDictionary())  # its settings may change from call to call
    if drafter in known and known[drafter] is verifier.tokenizer:
        return
    check_same_vocabulary(verifier, drafter)
    ours, theirs = (model.architecture.max_positions for model in (verifier.model, drafter.model))
    if theirs is not None and (ours is None or theirs < ours):
        raise UsageError(f"the drafter has {theirs} positions and the verifier {ours or 'any number'}; give it more")
    if verifier.model.device != drafter.model.device:
        raise UsageError(
            f"the verifier is on {verifier.model.device} and the drafter on {drafter.model.device}; load both on one"
        )
    known[drafter] = verifier.tokenizer


def check_same_vocabulary(verifier: Any, drafter: LittleModel) -> None:
    """Raises UsageError naming the first difference. Padded vocabularies of one tokenizer are the same."""
    ours, theirs = verifier.tokenizer, drafter.tokenizer
    a, b = verifier.model.architecture, drafter.model.architecture
    for name in ("eos_token_id", "pad_token_id", "decoder_start_token_id", "source_vocabulary"):
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
