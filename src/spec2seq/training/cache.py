"""Tokenised training data, kept beside the run so that a resumed run starts at once."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from spec2seq.checks import check_ids
from spec2seq.errors import UsageError
from spec2seq.models import languages
from spec2seq.training.batches import TokenizedPairs
from spec2seq.training.data import Pair, filter_pairs, read_pairs
from spec2seq.training.recipe import DataConfig


def tokenized(path: Path, data: DataConfig, tokenizer: Any, folder: Path, vocabulary: int) -> TokenizedPairs:
    """The filtered pairs of `path` as token ids, from the cache in `folder` if data and vocabulary are the same.

    Raises UsageError if no line passes the filters, or `data.target_tokens` are no ids below `vocabulary`.
    """
    about = path.stat()
    known = sorted(tokenizer.get_vocab().items())
    key = json.dumps([path.name, about.st_size, about.st_mtime_ns, asdict(data), known])
    file = folder / f"tokens-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if file.is_file():
        arrays = np.load(file)
        return TokenizedPairs(*(arrays[name] for name in ("source", "source_ends", "target", "target_ends")))
    pairs = list(filter_pairs(read_pairs(path, data), data))
    sources = encode([pair.source for pair in pairs], tokenizer)
    if data.truncate:
        sources = [languages.cut(ids, data.max_tokens, tokenizer.eos_token_id) for ids in sources]
    if data.target_tokens is None:
        targets = encode([pair.target for pair in pairs], tokenizer, True)
    else:
        targets = written(pairs, vocabulary, f"{path}: ")
    kept = [i for i in range(len(pairs)) if max(len(sources[i]), len(targets[i])) <= data.max_tokens]
    if not kept:
        raise UsageError(f"{path}: none of its lines passes the recipe's data filters")
    rows = TokenizedPairs.from_lists([sources[i] for i in kept], [targets[i] for i in kept])
    folder.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial.npz")
    np.savez(
        partial, source=rows.source, source_ends=rows.source_ends, target=rows.target, target_ends=rows.target_ends
    )
    partial.rename(file)
    return rows


def written(pairs: Sequence[Pair], vocabulary: int, where: str = "") -> list[tuple[int, ...]]:
    """The target's ids of each. Raises UsageError, beginning with `where`, for one that has none below `vocabulary`."""
    for pair in pairs:
        record = f"{where}the record of {pair.source[:40]!r}"
        if not pair.tokens:
            raise UsageError(f"{record} has no token ids of its target; needed: what distill wrote")
        check_ids(pair.tokens, record, vocabulary)
    return [pair.tokens for pair in pairs]


def encode(texts: list[str], tokenizer: Any, is_target: bool = False) -> list[list[int]]:
    """Token ids of each text with EOS at the end, not truncated."""
    pieces = getattr(tokenizer, "spm_target" if is_target else "spm_source", None)
    if pieces is None or type(tokenizer).__name__ != "MarianTokenizer":
        return tokenizer(texts, add_special_tokens=True).input_ids if texts else []
    # Marian's tokenizer is a slow Python one; SentencePiece itself takes all lines at once. It knows neither special
    # tokens nor languages (>>deu<<).
    special = re.compile("|".join([">>.*<<", *map(re.escape, tokenizer.get_added_vocab())]))
    vocabulary, unknown, end = tokenizer.get_vocab(), tokenizer.unk_token_id, tokenizer.eos_token_id
    ids = np.array([vocabulary.get(pieces.id_to_piece(i), unknown) for i in range(len(pieces))])
    return [
        tokenizer(text).input_ids if special.search(text) else [*ids[row].tolist(), end] if row else [end]
        for text, row in zip(texts, pieces.encode(texts, out_type=int), strict=True)
    ]
