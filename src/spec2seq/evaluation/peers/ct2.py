"""CTranslate2, from the same folder, converted on the fly."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from spec2seq.config import check_choice
from spec2seq.errors import missing_extra
from spec2seq.evaluation.peers import Run, Workload


class CTranslate2:
    """A Translator with one worker and the workload's threads. `dtype` is its compute type, such as int8."""

    def __init__(self, workload: Workload):
        try:
            import ctranslate2
        except ImportError:
            raise missing_extra("ctranslate2", "bench") from None
        from transformers import AutoTokenizer

        self.workload = workload
        tokenizer = AutoTokenizer.from_pretrained(workload.models)
        self.id_of = tokenizer.get_vocab()
        self.sources = [tokenizer.convert_ids_to_tokens(source) for source in workload.sources]
        with TemporaryDirectory() as name:
            folder = convert(workload.models, Path(name) / "model")
            self.translator = ctranslate2.Translator(
                str(folder), device="cpu", compute_type=workload.dtype, inter_threads=1,
                intra_threads=workload.threads or 0,
            )  # fmt: skip

    def run(self, method: str, parameters: dict[str, Any], count: bool = False) -> Run:
        """Greedy, line by line. Its tokens are strings; they become ids outside of the time."""
        check_choice("method", method, ("greedy",))
        made, seconds = [], []
        for source in self.sources:
            started = time.perf_counter()
            result = self.translator.translate_batch(
                [source], beam_size=1, max_decoding_length=self.workload.max_new_tokens, min_decoding_length=0,
                max_input_length=0, return_end_token=True, **parameters,
            )  # fmt: skip
            made.append(result[0].hypotheses[0])
            seconds.append(time.perf_counter() - started)
        sequences = [[self.id_of[token] for token in tokens] for tokens in made]
        return Run(sequences, seconds, sum(map(len, sequences)) if count else None)


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
