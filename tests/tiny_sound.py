"""A tiny model that hears, with widely spread random weights: a window is a second, and rows end at different steps."""

import functools

import numpy as np
import tokenizers
import torch
import transformers

from spec2seq import Seq2Seq

BINS, PLACES, RATE = 8, 50, 16000
WORDS = 60  # ids below the end token are text
LANGUAGES, TASKS = ("en", "de", "fr"), ("translate", "transcribe")
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in LANGUAGES),
           *(f"<|{task}|>" for task in TASKS), "<|startoflm|>", "<|startofprev|>", "<|nospeech|>",
           "<|notimestamps|>"]  # fmt: skip
IDS = {token: WORDS + place for place, token in enumerate(SPECIAL)}
END, START, SILENT = IDS["<|endoftext|>"], IDS["<|startoftranscript|>"], IDS["<|notimestamps|>"]
FIRST = SILENT + 1
VOCABULARY = FIRST + PLACES + 1


def config(layers: int = 2, width: int = 32) -> transformers.WhisperConfig:
    return transformers.WhisperConfig(
        vocab_size=VOCABULARY, num_mel_bins=BINS, encoder_layers=layers, decoder_layers=layers, d_model=width,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=2 * width, decoder_ffn_dim=2 * width,
        max_source_positions=PLACES, max_target_positions=64, pad_token_id=END, bos_token_id=END, eos_token_id=END,
        decoder_start_token_id=START, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip


@functools.cache
def transformers_model(seed: int = 0, english: bool = False):
    """A Transformers model in float64; `english`: it knows no other language."""
    torch.manual_seed(seed)
    model = transformers.WhisperForConditionalGeneration(config()).double().eval()
    for name, parameter in model.named_parameters():
        if "embed_positions" in name:
            std = 0.5 if "decoder" in name else None
        elif parameter.dim() == 1:
            std = None if "norm" in name else 0.1
        else:
            std = 0.6 if "encoder_attn" in name else 0.25 if "embed_tokens" in name else 0.15
        if std is not None:
            torch.nn.init.normal_(parameter, std=std)
    said = model.generation_config
    said._from_model_config = False  # or else Transformers makes it up again when it loads a folder
    said.no_timestamps_token_id, said.max_length = SILENT, 64
    said.begin_suppress_tokens, said.suppress_tokens = [3, END], [5, 6, IDS["<|startoflm|>"], IDS["<|startofprev|>"]]
    said.prev_sot_token_id = IDS["<|startofprev|>"]
    said.is_multilingual = not english
    if not english:
        said.lang_to_id = {f"<|{code}|>": IDS[f"<|{code}|>"] for code in LANGUAGES}
        said.task_to_id = {task: IDS[f"<|{task}|>"] for task in TASKS}
    with torch.no_grad():
        model.model.decoder.layer_norm.weight *= 4
        table = model.model.decoder.embed_tokens.weight
        table[END] *= 1.5
        table[FIRST:] *= 0.6
    return model


def extractor() -> transformers.WhisperFeatureExtractor:
    return transformers.WhisperFeatureExtractor(feature_size=BINS, sampling_rate=RATE, chunk_length=1)


@functools.cache
def tokenizer():
    names = {f"w{index}": index for index in range(WORDS)} | IDS
    names |= {f"<|{0.02 * place:.2f}|>": FIRST + place for place in range(PLACES + 1)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(names, unk_token="w0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=SPECIAL[0], eos_token=SPECIAL[0], unk_token="w0"
    )
    made.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    return made


@functools.cache
def seq2seq(seed: int = 0, english: bool = False) -> Seq2Seq:
    return Seq2Seq.from_transformers(transformers_model(seed, english), tokenizer(), extractor())


def sounds(count: int, seconds: float = 0.9, seed: int = 0) -> list[np.ndarray]:
    """Chords that change, of several lengths up to so many seconds."""
    made, draws = [], np.random.default_rng(seed)
    for _ in range(count):
        time = np.arange(int(RATE * seconds * draws.uniform(0.4, 1.0))) / RATE
        tones = draws.uniform(100, 7000, (3, 4))
        part = (time * 12).astype(int) % 4
        sound = sum(np.sin(2 * np.pi * tones[voice][part] * time) for voice in range(3))
        made.append((sound * draws.uniform(0.05, 0.3) + 0.01 * draws.standard_normal(len(time))).astype(np.float32))
    return made
