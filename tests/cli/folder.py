"""A tiny model folder with a little model in it, as `spec2seq train` leaves them: random weights, real tokenizer."""

import json
from pathlib import Path

import torch
import transformers

from spec2seq.training.recipe import VocabularyConfig
from spec2seq.training.vocabulary import load_tokenizer, train_vocabulary

POSITIONS = 64
NOISE = 0.01
LINES = [
    "The cache is full.",
    "Every directory has a name which can contain any letters or symbols.",
    "Remove the package and install it again.",
    "This option is useful when the network is slow.",
    "Read the manual page of the command.",
    "A signal ends the program.",
    "The file system keeps the time of the last change.",
    "Ask the maintainer before you upload.",
]


def make_folder(folder: Path, family: str = "marian", lines: list[str] = LINES, seed: int = 0) -> Path:
    """Write a model to `folder` and a little one, which often agrees with it, to `folder`/little."""
    tokens = folder.with_name(folder.name + "-tokenizer")
    train_vocabulary(lines, VocabularyConfig(size=330, byte_fallback=True), family, tokens, threads=1)
    tokenizer = load_tokenizer(tokens)
    torch.manual_seed(seed)
    theirs = transformers.AutoModelForSeq2SeqLM.from_config(_config(family, len(tokenizer), tokenizer))
    for name, parameter in theirs.named_parameters():
        if parameter.dim() == 2 and "embed_positions" not in name:
            table = any(part in name for part in ("shared", "embed_tokens", "lm_head"))
            torch.nn.init.normal_(parameter, std=0.25 if table else 1.0)
    if family == "marian":
        theirs.final_logits_bias[0, 0] = 2.0  # some rows end early
    theirs.generation_config.max_new_tokens = 12
    theirs.generation_config.forced_eos_token_id = None
    _save(theirs, tokenizer, folder)
    for parameter in theirs.parameters():
        if parameter.dim() == 2:
            parameter.data += NOISE * parameter.std() * torch.randn_like(parameter)
    _save(theirs, tokenizer, folder / "little")
    return folder


def _save(model, tokenizer, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _config(family: str, size: int, tokenizer) -> transformers.PretrainedConfig:
    if family == "t5":
        return transformers.T5Config(
            vocab_size=size, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
    return transformers.MarianConfig(
        vocab_size=size, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=POSITIONS,
        pad_token_id=tokenizer.pad_token_id, decoder_start_token_id=tokenizer.pad_token_id, eos_token_id=0,
        scale_embedding=True, activation_function="swish", forced_eos_token_id=None,
        tie_word_embeddings=False,
    )  # fmt: skip


def edit_json(path: Path, **values) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
