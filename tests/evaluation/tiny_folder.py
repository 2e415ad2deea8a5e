"""A verifier's folder with a little model in it: tiny, random, with a real SentencePiece vocabulary."""

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path

import sentencepiece
import torch
import transformers
from tiny import transformers_model

from spec2seq.evaluation.sample import Pair, committed_sample

VOCABULARY = 400
MAX_NEW_TOKENS = 24


@functools.cache
def models() -> Path:
    """The folder; it is there until the tests end."""
    root = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    folder = root / "ende"
    tokenizer = _tokenizer(root)
    verifier = transformers_model("marian", seed=3, vocabulary=VOCABULARY).float()
    little = transformers_model("marian", seed=3, vocabulary=VOCABULARY).float()
    torch.manual_seed(4)
    for parameter in little.parameters():  # often right, sometimes not
        if parameter.dim() == 2:
            parameter.data += 0.1 * parameter.std() * torch.randn_like(parameter)
    for model, place in ((verifier, folder), (little, folder / "little")):
        model.generation_config.max_length = MAX_NEW_TOKENS + 1
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
    return folder


def _tokenizer(root: Path):
    texts = [text for pair in committed_sample() for text in (pair.source, pair.reference)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(root / "joint"), vocab_size=VOCABULARY - 1, eos_id=0, unk_id=1,
        bos_id=-1, pad_id=-1, character_coverage=0.98, byte_fallback=True, minloglevel=2, num_threads=1,
    )  # fmt: skip
    spm = str(root / "joint.model")
    pieces = sentencepiece.SentencePieceProcessor(model_file=spm)
    entries = {pieces.id_to_piece(index): index for index in range(len(pieces))} | {"<pad>": VOCABULARY - 1}
    (root / "vocab.json").write_text(json.dumps(entries), encoding="utf-8")
    return transformers.MarianTokenizer(spm, spm, str(root / "vocab.json"), model_max_length=512)


def pairs(count: int) -> list[Pair]:
    """Short lines of the sample: the tiny models have few positions."""
    return sorted(committed_sample(), key=lambda pair: len(pair.source))[:count]
