"""Language tokens: how a multilingual model is told what it reads and what it writes."""

import difflib
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from spec2seq.errors import UsageError

# Of a tokenizer by src_lang and tgt_lang: its own, and what it was left at here.
_known: WeakKeyDictionary[Any, dict[str, tuple[str | None, str | None]]] = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Direction:
    """The languages that a multilingual model is used for: a drafter is of one direction."""

    src_lang: str | None = None
    tgt_lang: str | None = None

    @property
    def direction(self) -> dict[str, str | None]:
        """As `Seq2Seq.from_pretrained` takes them."""
        return {"src_lang": self.src_lang, "tgt_lang": self.tgt_lang}


def language_tokens(tokenizer: Any) -> dict[str, int]:
    """The languages that a tokenizer of Transformers has tokens for, and the ids of these."""
    if not hasattr(tokenizer, "src_lang"):
        return {}
    known = getattr(tokenizer, "lang_code_to_id", None)
    if known is None:  # NLLB's are special tokens like others, which look like <s>
        names = (name for name in tokenizer.all_special_tokens if not name.startswith("<"))
        known = {name: tokenizer.convert_tokens_to_ids(name) for name in names}
    # A language of the family that this model lacks has the id of unknown tokens.
    return {name.strip("_"): token for name, token in known.items() if token != tokenizer.unk_token_id}


def language_token(tokenizer: Any, name: str, language: str) -> int:
    """The id of a language's token. Raises UsageError, calling the language `name`, if there is none."""
    tokens = language_tokens(tokenizer)
    if not tokens:
        raise UsageError(f"{name} is {language!r}, but this model's tokenizer has no language tokens")
    if language not in tokens:
        near = difflib.get_close_matches(language, tokens, n=3) or list(tokens)[:3]
        raise UsageError(
            f"{name} is {language!r}; allowed: the model's {len(tokens)} languages, such as {', '.join(near)}"
        )
    return tokens[language]


def target_setting(tokenizer: Any, start: int | None, language: str) -> dict[str, int]:
    """The generation setting that makes a model write `language`.

    One that starts with a language token gets another to start with (mBART, PLBART), and so does one that says
    nothing of its `start`. Others write the token first (mBART-50, M2M100, NLLB). Raises UsageError.
    """
    token = language_token(tokenizer, "tgt_lang", language)
    by_start = start is None or start in language_tokens(tokenizer).values()
    return {"decoder_start_token_id" if by_start else "forced_bos_token_id": token}


def set_languages(tokenizer: Any, source: str | None, target: str | None) -> None:
    """Make a tokenizer ready for a direction; it may have served another in the meantime. None: the language that its
    files, or somebody else since, gave it."""
    known = _known.setdefault(tokenizer, {})
    for name, language in (("src_lang", source), ("tgt_lang", target)):
        present = getattr(tokenizer, name, None)
        own, left = known.get(name, (present, present))
        own = own if present == left else present
        language = own if language is None else language
        if language not in (None, present):
            setattr(tokenizer, name, language)
        known[name] = own, getattr(tokenizer, name, None)


def cut(ids: list[int], most: int, eos_token_id: int) -> list[int]:
    """A source of at most `most` tokens; of a longer one the end token stays, and a language behind it."""
    if len(ids) <= most:
        return ids
    behind = 2 if ids[-2] == eos_token_id else 1
    return [*ids[: max(0, most - behind)], *ids[-behind:]]
