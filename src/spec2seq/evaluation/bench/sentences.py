"""Sentences with the text of each token and which model wrote it."""

from collections.abc import Sequence
from typing import Any

from spec2seq.evaluation.sample import Pair, stratified_indices

SENTENCES = 10


def sentences(pairs: Sequence[Pair], tokenizer: Any, output: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Lines of all lengths from the output of a method that drafts; none without one."""
    if output is None:
        return []
    special = set(tokenizer.all_special_ids)
    made = []
    for index in stratified_indices(pairs, SENTENCES):
        tokens, trace = output["sequences"][index], output["extra"]["traces"][index]
        shown = [(token, by) for token, by in zip(tokens, trace, strict=True) if token not in special]
        pieces = token_texts(tokenizer, [token for token, _ in shown])
        made.append({
            "source": pairs[index].source, "reference": pairs[index].reference, "new_tokens": len(tokens),
            "verifier_calls": output["extra"]["calls"][index],
            "tokens": [{"text": text, "by": by} for text, (_, by) in zip(pieces, shown, strict=True)],
        })  # fmt: skip
    return made


def token_texts(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """What each token adds to the text; joined they are the text. A character that several tokens spell (its UTF-8
    bytes) belongs to the last of them."""
    texts, before = [], ""
    for count in range(1, len(tokens) + 1):
        text = tokenizer.decode(list(tokens[:count]))
        whole = text.startswith(before) and (not text.endswith("\ufffd") or count == len(tokens))
        texts.append(text[len(before) :] if whole else "")
        before = text if whole else before
    return texts
