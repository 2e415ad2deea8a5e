"""Dictionaries of fairseq and byte-pair codes of subword-nmt as tokenizers of Transformers."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from tokenizers import decoders, pre_tokenizers, processors

from spec2seq.errors import Spec2SeqError

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3
SEPARATOR, END = "@@", "</w>"
OVERWRITE = "#fairseq:overwrite"


def read_dictionary(path: str | Path) -> dict[str, int]:
    """A fairseq dictionary as token → id: line i (from 0) has id i + 4.

    A line is a token, a space, a count, and may end in a flag that lets it replace an earlier line of the same token.
    Raises Spec2SeqError for a line that is none.
    """
    ids = {token: index for index, token in enumerate(SPECIAL)}
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise Spec2SeqError(f"{path}: not readable as a dictionary: {error}") from None
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines):
        entry = line.rstrip("\r")
        flagged = entry.endswith(" " + OVERWRITE)
        token, space, count = entry.removesuffix(" " + OVERWRITE).rpartition(" ")
        if not space or not count.lstrip("-").isdigit():
            raise Spec2SeqError(f"{path}, line {number + 1}: {line!r} is not a token and a count")
        if token in ids:
            if not flagged:
                raise Spec2SeqError(f"{path}, line {number + 1}: {token!r} occurs twice; allowed: once")
            ids[f"{token} {ids[token]}"] = ids[token]  # nothing looks it up any more, but every id has a name
        ids[token] = number + len(SPECIAL)
    return ids


def read_codes(path: str | Path) -> list[str]:
    """The lines of a subword-nmt codes file. Raises Spec2SeqError for a line that is not two symbols."""
    try:
        lines = Path(path).read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise Spec2SeqError(f"{path}: not readable as BPE codes: {error}") from None
    lines = [line.strip("\r\n ") for line in lines]
    for number, line in enumerate(lines):
        if not (number == 0 and line.startswith("#version:")) and len(line.split(" ")) != 2:
            raise Spec2SeqError(f"{path}, line {number + 1}: {line!r} is not two symbols")
    return lines


class Codes:
    """Byte-pair encoding as subword-nmt applies it (Sennrich et al. 2016).

    In version 0.1, which has no header, the end of a word is a symbol of its own at first; in 0.2 it is part of the
    last character.
    """

    def __init__(self, lines: Sequence[str]):
        header = lines[0].startswith("#version:") if lines else False
        version = lines[0].split()[-1] if header else "0.1"
        if version not in ("0.1", "0.2"):
            raise Spec2SeqError(f"BPE codes of version {version}; allowed: 0.1, 0.2")
        self.end_alone = version == "0.1"
        self.ranks: dict[tuple[str, ...], int] = {}
        for rank, line in enumerate(lines[header:]):
            self.ranks.setdefault(tuple(line.split(" ")), rank)

    def split(self, word: str) -> tuple[str, ...]:
        """The subwords of a word, all but the last marked with @@."""
        symbols = [*word, END] if self.end_alone else [*word[:-1], word[-1] + END]
        while len(symbols) > 1:
            pairs = list(zip(symbols, symbols[1:], strict=False))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            merged, place = [], 0
            while place < len(symbols):
                found = place < len(pairs) and pairs[place] == best
                merged.append("".join(best) if found else symbols[place])
                place += 2 if found else 1
            symbols = merged
        if symbols[-1] == END:
            symbols.pop()
        symbols[-1] = symbols[-1].removesuffix(END)
        return (*(symbol + SEPARATOR for symbol in symbols[:-1]), symbols[-1])


def word_tokenizer(ids: dict[str, int], **settings: Any) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of text that is segmented already, as fairseq reads and writes it; with `settings`, a
    `SubwordTokenizer`.

    Tokens are separated by white space; what the dictionary lacks is <unk>, which is shown in the output; </s> ends
    every line. Decoding joins subwords, also where the last one of a line is marked.
    """
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token=SPECIAL[3]))
    backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\x1c-\x1f]+"), "removed")  # Python's \s
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[(SPECIAL[2], 2)])
    backend.decoder = decoders.Sequence(
        [
            decoders.WordPiece(prefix="\0", cleanup=False),  # a space between tokens
            decoders.Fuse(),
            decoders.Replace(f"{SEPARATOR} ", ""),
            decoders.Replace(tokenizers.Regex(f"{SEPARATOR}$"), ""),
        ]
    )
    kind = SubwordTokenizer if settings else transformers.PreTrainedTokenizerFast
    tokenizer = kind(
        tokenizer_object=backend, bos_token=SPECIAL[0], pad_token=SPECIAL[1], eos_token=SPECIAL[2],
        clean_up_tokenization_spaces=False, model_input_names=["input_ids", "attention_mask"],
        split_special_tokens=True,  # "</s>" is an end token where it is a word, not inside one
        **settings,
    )  # fmt: skip
    if settings:
        tokenizer.segment("")  # wrong settings are an error now
    return tokenizer


class SubwordTokenizer(transformers.PreTrainedTokenizerFast):
    """`word_tokenizer` with what comes before it: Moses' tokenizer where the setting `moses` names two languages
    ("en-de"), and BPE where `codes` has the lines of a codes file. Decoding undoes both.

    Moses here is sacremoses: normalized punctuation, hyphens split off, special characters escaped.
    """

    # Settings are read when needed: a class with an __init__ of its own would not get its tokenizer.json.
    @functools.cached_property
    def bpe(self) -> Codes | None:
        return Codes(self.init_kwargs["codes"]) if self.init_kwargs.get("codes") else None

    @functools.cached_property
    def moses(self) -> "Moses | None":
        return Moses(self.init_kwargs["moses"]) if self.init_kwargs.get("moses") else None

    def segment(self, text: str) -> str:
        """The text as the dictionary's tokens, separated by spaces."""
        if self.moses is not None:
            text = self.moses.tokenize(text)
        if self.bpe is not None:
            text = " ".join(part for word in text.split() for part in self.bpe.split(word))
        return text

    def _encode_plus(self, text: Any, text_pair: Any = None, **settings: Any) -> Any:
        if not isinstance(text, str) and not all(isinstance(line, str) for line in text):
            raise Spec2SeqError("this tokenizer takes a text or a list of texts")
        text = self.segment(text) if isinstance(text, str) else [self.segment(line) for line in text]
        return super()._encode_plus(text, text_pair, **settings)

    def _decode(self, *arguments: Any, **settings: Any) -> str:
        text = super()._decode(*arguments, **settings)
        return text if self.moses is None else self.moses.detokenize(text)


class Moses:
    """Tokenizes the source language and detokenizes the target language of a pair such as "en-de"."""

    def __init__(self, languages: str):
        import sacremoses

        source, _, target = languages.partition("-")
        if not source or not target:
            raise Spec2SeqError(f"moses is {languages!r}; allowed: two languages, such as en-de")
        self.normalizer, self.tokenizer = sacremoses.MosesPunctNormalizer(source), sacremoses.MosesTokenizer(source)
        self.detokenizer = sacremoses.MosesDetokenizer(target)

    def tokenize(self, text: str) -> str:
        normal = self.normalizer.normalize(text)
        return self.tokenizer.tokenize(normal, aggressive_dash_splits=True, return_str=True)

    def detokenize(self, text: str) -> str:
        return self.detokenizer.detokenize(text.split())


class _SubwordConfig(transformers.PretrainedConfig):
    """Only a key under which AutoTokenizer keeps the class."""

    model_type = "spec2seq-subwords"


def register() -> None:
    """Let AutoTokenizer find `SubwordTokenizer` by its name. Without this it loads a `word_tokenizer`."""
    transformers.AutoTokenizer.register(_SubwordConfig, tokenizer_class=SubwordTokenizer, exist_ok=True)
