"""CTranslate2, from the same folder, converted on the fly."""

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from spec2seq.config import check_choice
from spec2seq.errors import Spec2SeqError, UsageError, missing_extra
from spec2seq.evaluation.peers import Job, Run, Workload

METHODS = ("greedy", "beam")
LACKING = ("sequence_bias", "begin_suppress_tokens", "exponential_decay_length_penalty")  # generation settings


class CTranslate2:
    """A Translator with one worker and the workload's threads. `dtype` is its compute type, such as int8."""

    def __init__(self, workload: Workload):
        try:
            import ctranslate2
        except ImportError:
            raise missing_extra("ctranslate2", "bench") from None
        self.workload = workload
        with TemporaryDirectory() as name:
            folder = _convert_apart(workload.models, Path(name) / "model")
            vocabulary = json.loads((folder / "shared_vocabulary.json").read_text(encoding="utf-8"))
            self.translator = ctranslate2.Translator(
                str(folder), device=workload.device, compute_type=workload.dtype, inter_threads=1,
                intra_threads=workload.threads or 0,
            )  # fmt: skip
        self.id_of = {token: index for index, token in enumerate(vocabulary)}
        self.vocabulary = vocabulary
        self.sources = [[vocabulary[token] for token in source] for source in workload.sources]

    def run(self, job: Job, count: bool = False) -> Run:
        """Its tokens are strings; they become ids outside of the time. Greedy has a pass for each token.

        Raises UsageError naming a setting of the generation config that it has no option for."""
        check_choice("method", job.method, METHODS)
        options = {"beam_size": 1} if job.method == "greedy" else {"beam_size": 5, "length_penalty": 1.0}
        options |= options_of(self.workload.settings, self.vocabulary, job.method)
        first, last = (self.workload.settings.get(f"forced_{kind}_token_id") for kind in ("bos", "eos"))
        cap = job.cap(self.workload)
        places = range(len(self.sources)) if job.lines is None else job.lines
        sources = [self.sources[place] for place in places]
        # It sorts and cuts into batches by itself; alone, each line is a call.
        calls = [[source] for source in sources] if job.batch_size == 1 else [sources]
        made, seconds = [], []
        for call in calls:
            started = time.perf_counter()
            results = self.translator.translate_batch(
                call, None if first is None else [[self.vocabulary[first]]] * len(call),
                max_decoding_length=cap, max_input_length=0, return_end_token=True,
                max_batch_size=job.batch_size, **options | job.parameters,
            )  # fmt: skip
            made += [result.hypotheses[0] for result in results]
            seconds.append(time.perf_counter() - started)
        sequences = [[self.id_of[token] for token in tokens] for tokens in made]
        if last is not None:  # what it would write in the last place has no part in anything
            sequences = [[*row[:-1], last] if len(row) == cap else row for row in sequences]
        passes = sum(map(len, sequences)) if count and job.method == "greedy" else None
        return Run(sequences, seconds if job.batch_size == 1 else [], passes)


def options_of(settings: dict[str, Any], vocabulary: list[str], method: str) -> dict[str, Any]:
    """Its options for what a generation config asks for but forced tokens. Raises UsageError naming a setting for which
    there is none."""
    ends = settings.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    penalty = settings.get("repetition_penalty") or 1.0
    lacking = [name for name in LACKING if settings.get(name)]
    if method == "beam" and settings.get("renormalize_logits"):
        lacking.append("renormalize_logits")
    if penalty != 1.0 and settings.get("decoder_start_token_id") in ends:  # Transformers' counts the start as written
        lacking.append("repetition_penalty")
    if isinstance(settings.get("forced_eos_token_id"), list):
        lacking.append("forced_eos_token_id")
    if lacking:
        shown = f"{lacking[0]}={settings[lacking[0]]!r}"
        raise UsageError(f"generation setting {shown} has no counterpart in CTranslate2")
    fewest = settings.get("min_new_tokens")
    if fewest is None:  # the other counts the start token
        fewest = max(0, (settings.get("min_length") or 0) - 1)
    banned = [word for word in settings.get("bad_words_ids") or [] if word not in [[end] for end in ends]]
    banned += [[token] for token in settings.get("suppress_tokens") or []]
    return {
        "repetition_penalty": penalty,
        "no_repeat_ngram_size": settings.get("no_repeat_ngram_size") or 0,
        "min_decoding_length": fewest,
        "suppress_sequences": [[vocabulary[token] for token in word] for word in banned] or None,
        "end_token": [vocabulary[end] for end in ends] if len(ends) > 1 else None,
    }


def _convert_apart(models: Path, out: Path) -> Path:
    """Convert in a process of its own, so that the memory it takes is not counted as this engine's."""
    command = [sys.executable, "-m", "spec2seq.evaluation.peers.ct2", str(models), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise Spec2SeqError(f"the conversion to CTranslate2 failed: {last[0]}")
    return out


def convert(models: Path, out: Path) -> Path:
    """Convert a Transformers folder to float32 files of CTranslate2, the same function of the same weights.

    CTranslate2's Marian loader assumes that decoding starts from a zero embedding, as in models that Marian itself
    trained, and drops the padding entry. A model trained in Transformers with tied embeddings has learned values in
    that row, and Transformers starts from them, so that row is kept and used here.
    """
    from ctranslate2.converters import TransformersConverter
    from ctranslate2.converters import transformers as theirs

    class KeepsStartEmbedding(theirs.MarianMTLoader):
        set_decoder = theirs.BartLoader.set_decoder
        get_vocabulary = theirs.BartLoader.get_vocabulary

        def set_config(self, config, model, tokenizer):
            super().set_config(config, model, tokenizer)
            config.decoder_start_token = tokenizer.convert_ids_to_tokens(model.config.decoder_start_token_id)

        def _remove_pad_weights(self, spec):
            pass

    stock = theirs._MODEL_LOADERS["MarianConfig"]
    theirs._MODEL_LOADERS["MarianConfig"] = KeepsStartEmbedding()
    try:
        TransformersConverter(str(models)).convert(str(out), quantization="float32")
    finally:
        theirs._MODEL_LOADERS["MarianConfig"] = stock
    return out


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
