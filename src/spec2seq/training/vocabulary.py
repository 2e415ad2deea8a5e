"""One joint SentencePiece vocabulary, and the tokenizer files of the model's family around it."""

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spec2seq.errors import UsageError, missing_extra
from spec2seq.training.recipe import VocabularyConfig

TOKENIZER_FILES = (
    "source.spm", "target.spm", "vocab.json", "spiece.model", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


def train_vocabulary(
    texts: Iterable[str], config: VocabularyConfig, family: str, folder: Path, threads: int = 2, seed: int = 1
) -> None:
    """Train the pieces on `texts` (source and target alike) and write the tokenizer files into `folder`.

    Byte fallback spells a character outside the vocabulary by its UTF-8 bytes: nothing becomes <unk>.
    Raises UsageError if the texts are too few for the size.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        model = Path(name) / "joint"
        _fit(texts, config, family, model, threads)
        spm = model.with_suffix(".model")
        _write_marian(spm, folder) if family == "marian" else _write_t5(spm, folder)


def _fit(texts: Iterable[str], config: VocabularyConfig, family: str, prefix: Path, threads: int) -> None:
    try:
        import sentencepiece
    except ImportError:
        raise missing_extra("sentencepiece", "train") from None
    ids = dict(eos_id=0, unk_id=1, pad_id=-1) if family == "marian" else dict(pad_id=0, eos_id=1, unk_id=2)
    # Marian keeps <pad> as the last entry of vocab.json, outside of the SentencePiece model.
    size = config.size - 1 if family == "marian" else config.size
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_prefix=str(prefix), model_type="unigram", vocab_size=size, bos_id=-1,
            character_coverage=config.character_coverage, byte_fallback=config.byte_fallback, num_threads=threads,
            input_sentence_size=300_000, shuffle_input_sentence=True, max_sentence_length=8192, minloglevel=2,
            normalization_rule_name="nmt_nfkc", **ids,
        )  # fmt: skip
    except (RuntimeError, OSError) as error:
        raise UsageError(f"vocabulary.size is {config.size}; SentencePiece cannot train it: {error}") from None


def _write_marian(spm: Path, folder: Path) -> None:
    import sentencepiece
    from transformers import MarianTokenizer

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(spm))
    entries = {pieces.id_to_piece(index): index for index in range(len(pieces))}
    entries["<pad>"] = len(entries)
    vocab = spm.with_name("vocab.json")
    vocab.write_text(json.dumps(entries, ensure_ascii=False, indent=0), encoding="utf-8")
    MarianTokenizer(str(spm), str(spm), str(vocab), model_max_length=512).save_pretrained(folder)


def _write_t5(spm: Path, folder: Path) -> None:
    import sentencepiece
    from transformers import T5Tokenizer

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(spm))
    entries = [(pieces.id_to_piece(index), pieces.get_score(index)) for index in range(len(pieces))]
    T5Tokenizer(vocab=entries, extra_ids=0, model_max_length=512).save_pretrained(folder)
    shutil.copyfile(spm, folder / "spiece.model")


def copy_vocabulary(source: Path, folder: Path) -> None:
    """Copy the tokenizer files of a trained folder: the models then share every token id."""
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise UsageError(f"vocabulary.from is {str(source)!r}; allowed: a folder with tokenizer files")
    folder.mkdir(parents=True, exist_ok=True)
    for path in found:
        shutil.copyfile(path, folder / path.name)


def load_tokenizer(folder: Path) -> Any:
    """The Transformers tokenizer of a folder. Raises UsageError if there is none."""
    from transformers import AutoTokenizer, MarianTokenizer, T5Tokenizer

    try:
        if (folder / "source.spm").is_file():
            return MarianTokenizer.from_pretrained(folder)
        if (folder / "spiece.model").is_file():
            return T5Tokenizer.from_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{folder}: no tokenizer that Transformers loads: {error}") from None
