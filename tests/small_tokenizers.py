"""Tokenizers of Transformers' own classes, with small vocabularies trained on the spot."""

import functools
import io
import json
from pathlib import Path

import sentencepiece
import tokenizers
import transformers
from tokenizers import pre_tokenizers, trainers
from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES as MBART
from transformers.models.mbart50.tokenization_mbart50 import FAIRSEQ_LANGUAGE_CODES as MBART_50

LINES = (
    "the cache is full of words and the model reads them",
    "a small model writes a draft and a big one reads it",
    "def add ( a , b ) : return a + b",
    "der kleine Hund liest das Buch und die Katze schreibt",
)
START = ("<s>", "<pad>", "</s>", "<unk>")


@functools.cache
def pieces() -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 3), model_writer=model, vocab_size=90, hard_vocab_limit=False, minloglevel=2
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def unigrams(before: tuple[str, ...], after: tuple[str, ...] = ()) -> list[tuple[str, float]]:
    """The trained pieces with their scores, between special tokens."""
    own = [(pieces().id_to_piece(index), pieces().get_score(index)) for index in range(3, len(pieces()))]
    return [*((name, 0.0) for name in before), *own, *((name, 0.0) for name in after)]


def nllb(folder: Path):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=90, special_tokens=[*START], show_progress=False))
    merges = [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    return transformers.NllbTokenizer(vocab=backend.get_vocab(), merges=merges)


def mbart(folder: Path):
    return transformers.MBartTokenizer(vocab=unigrams(START, (*MBART, "<mask>")))


def mbart50(folder: Path):
    return transformers.MBart50Tokenizer(vocab=unigrams(START, (*MBART_50, "<mask>")))


def m2m_100(folder: Path):
    file = _sentencepiece_file(folder)
    (folder / "v.json").write_text(json.dumps({name: index for index, (name, _) in enumerate(unigrams(START))}))
    return transformers.M2M100Tokenizer(vocab_file=str(folder / "v.json"), spm_file=file)


def plbart(folder: Path):
    return transformers.PLBartTokenizer(vocab_file=_sentencepiece_file(folder))


def t5(folder: Path):
    return transformers.T5Tokenizer(vocab=unigrams(("<pad>", "</s>", "<unk>")), extra_ids=3)


def pegasus(folder: Path):
    first = ("<pad>", "</s>", "<mask_1>", "<mask_2>", "<unk_2>", "<unk>")
    return transformers.PegasusTokenizer(vocab=unigrams(first), offset=3)


def _sentencepiece_file(folder: Path) -> str:
    (folder / "sentencepiece.bpe.model").write_bytes(pieces().serialized_model_proto())
    return str(folder / "sentencepiece.bpe.model")
