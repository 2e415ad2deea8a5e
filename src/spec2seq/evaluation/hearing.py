"""Whisper beside its peers on a CPU: the same weights, the same spectrograms and prompts, a window at a time and in
batches.

python -m spec2seq.evaluation.hearing --model FOLDER [--drafter FOLDER] --sounds FILE.tsv --out docs/results

FILE.tsv names a sound of at most a window and what is said in it, in English: file TAB transcript, files from where it
lies. All engines take turns in one process and have the same number of threads.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import eq
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from spec2seq.api import Method, Seq2Seq
from spec2seq.decoding.block_drafters import BlockDrafter
from spec2seq.decoding.methods import Greedy, SpecDec
from spec2seq.errors import Spec2SeqError, missing_extra
from spec2seq.evaluation.command import run_main
from spec2seq.evaluation.document import markdown_table as table
from spec2seq.evaluation.manifest import manifest
from spec2seq.evaluation.progress import progress
from spec2seq.evaluation.tables import manifest_table, number, ratio, share
from spec2seq.evaluation.timing import interleave, set_threads
from spec2seq.files import write_json, write_text
from spec2seq.speech.audio import read_audio
from spec2seq.speech.vocabulary import SpeechVocabulary

CAP = 200  # new tokens of a window
DRAFTED = ", drafted"  # what behind the name of our greedy decoding is that with drafts
BASELINES = {"float32": "Transformers float32", "int8": "CTranslate2 int8"}
Engine = Callable[[Sequence[torch.Tensor], int], list[list[int]]]  # spectrograms [bins, frames], batch size -> tokens


@dataclass(frozen=True)
class Heard:
    """A sound: its spectrogram `[bins, frames]`, seconds, and what is said in it."""

    features: torch.Tensor
    seconds: float
    said: str


def read_sounds(path: Path, model: Seq2Seq) -> list[Heard]:
    """Raises Spec2SeqError, naming the line, for what is no sound with a transcript, or longer than a window."""
    found, extractor = [], model.extractor
    for index, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        file, _, said = line.partition("\t")
        if not said:
            raise Spec2SeqError(f"{path}: line {index}: expected file TAB transcript")
        samples, where = read_audio(path.parent / file, f"line {index}", extractor.sampling_rate)
        if len(samples) > extractor.n_samples:
            raise Spec2SeqError(f"{where} is longer than a window of the model")
        features = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="pt").input_features[0]
        found.append(Heard(features, len(samples) / extractor.sampling_rate, said))
    if not found:
        raise Spec2SeqError(f"{path}: no sounds")
    return found


class Ours:
    """Our engine, greedy or drafting; `calls` is the last run's tokens per verifier call."""

    def __init__(self, model: Seq2Seq, method: Method, prompt: list[int]):
        self.model, self.method, self.prompt = model, method, prompt
        self.calls = 0.0

    def __call__(self, sounds: Sequence[torch.Tensor], batch_size: int) -> list[list[int]]:
        made = self.model.generate(
            sounds, self.method, batch_size=batch_size, max_new_tokens=CAP, prompts=[self.prompt] * len(sounds)
        )
        self.calls = made.stats.tokens_per_verifier_call
        return made.sequences


def ours(folder: Path, drafter: Path | None, prompt: list[int]) -> dict[str, Ours]:
    """By name."""
    engines = {}
    for dtype in ("float32", "int8"):
        model = Seq2Seq.from_pretrained(folder, dtype)
        engines[f"spec2seq {dtype}"] = Ours(model, Greedy(), prompt)
        if drafter is not None:
            block = BlockDrafter.from_pretrained(drafter, dtype)
            engines[f"spec2seq {dtype}{DRAFTED}"] = Ours(model, SpecDec(block), prompt)
    return engines


def transformers_engine(folder: Path, prompt: list[int]) -> Engine:
    import transformers

    transformers.logging.set_verbosity_error()
    model = transformers.WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    spoken = {"language": "en", "task": "transcribe"} if len(prompt) > 1 else {}

    @torch.inference_mode()
    def run(sounds: Sequence[torch.Tensor], batch_size: int) -> list[list[int]]:
        made: list[list[int]] = []
        for start in range(0, len(sounds), batch_size):
            part = torch.stack(list(sounds[start : start + batch_size]))
            made += model.generate(part, max_new_tokens=CAP, do_sample=False, num_beams=1, **spoken).tolist()
        return made

    return run


def ctranslate2_engine(folder: Path, dtype: str, prompt: list[int], start: int, threads: int) -> Engine:
    try:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter
    except ImportError:
        raise missing_extra("ctranslate2", "bench") from None
    with TemporaryDirectory() as name:
        converted = Path(name) / "model"
        TransformersConverter(str(folder)).convert(str(converted), quantization="float32")
        model = ctranslate2.models.Whisper(str(converted), compute_type=dtype, intra_threads=threads, inter_threads=1)
    length = CAP + 1 + len(prompt)

    def run(sounds: Sequence[torch.Tensor], batch_size: int) -> list[list[int]]:
        made: list[list[int]] = []
        for at in range(0, len(sounds), batch_size):
            part = torch.stack(list(sounds[at : at + batch_size]))
            view = ctranslate2.StorageView.from_array(part.numpy())
            found = model.generate(view, [[start, *prompt]] * len(part), beam_size=1, max_length=length)
            made += [one.sequences_ids[0] for one in found]
        return made

    return run


def study(
    folder: Path, drafter: Path | None, path: Path, rounds: int, threads: int, sizes: Sequence[int], command: str
) -> dict[str, Any]:
    """Measure; returns what hearing.json holds."""
    model = Seq2Seq.from_pretrained(folder)
    words = SpeechVocabulary.of(model)
    prompt = words.prompt(words.language("en"), "transcribe", False)
    sounds = read_sounds(path, model)
    engines: dict[str, Engine] = ours(folder, drafter, prompt)
    engines["Transformers float32"] = transformers_engine(folder, prompt)
    for dtype in ("float32", "int8"):
        engines[f"CTranslate2 {dtype}"] = ctranslate2_engine(
            folder, dtype, prompt, model.model.architecture.decoder_start_token_id, threads
        )
    heard = [sound.features for sound in sounds]
    results: dict[str, Any] = {
        "manifest": manifest(command, {"model": folder} | ({"drafter": drafter} if drafter else {}),
                             "float32 and int8", threads),
        "data": {"sounds": len(sounds), "seconds": sum(sound.seconds for sound in sounds), "rounds": rounds},
        "rows": [],
    }  # fmt: skip
    with progress("rounds", len(engines) * (rounds * len(sizes) + 1)) as advance:
        tokens = {}
        for name, engine in engines.items():
            rows = engine(heard, sizes[-1])  # some give the end token and padding, some do not
            tokens[name] = [[token for token in row if token not in model.eos_token_ids] for row in rows]
            advance()
        for size in sizes:
            turns = {name: lambda engine=engine, size=size: engine(heard, size) for name, engine in engines.items()}
            timings = interleave(turns, rounds, warmup=0, after=advance)
            for name, engine in engines.items():
                row = {"engine": name, "batch_size": size, "seconds": timings.median(name) / len(sounds),
                       "tokens_per_verifier_call": getattr(engine, "calls", 1.0)}  # fmt: skip
                baselines = {kind: timings.speedup(name, peer).as_dict() for kind, peer in BASELINES.items()}
                if name.endswith(DRAFTED):
                    baselines["own"] = timings.speedup(name, name.removesuffix(DRAFTED)).as_dict()
                results["rows"].append(row | {"speedup": baselines})
    peer = tokens["Transformers float32"]
    for name, found in tokens.items():
        texts = [model.tokenizer.decode(row, skip_special_tokens=True) for row in found]
        results.setdefault("quality", {})[name] = {
            "word_error_rate": word_errors(model.tokenizer, texts, [sound.said for sound in sounds]),
            "same_tokens": sum(map(eq, found, peer)) / len(sounds),
            "same_as_greedy": sum(map(eq, found, tokens[name.removesuffix(DRAFTED)])) / len(sounds),
            "new_tokens": sum(map(len, found)),
        }
    return results


def word_errors(tokenizer: Any, found: Sequence[str], said: Sequence[str]) -> float:
    """Word error rate after Whisper's own normalization of English (Radford et al. 2023, appendix C)."""
    try:
        import jiwer
    except ImportError:
        raise missing_extra("jiwer", "eval") from None
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normal = EnglishTextNormalizer(getattr(tokenizer, "english_spelling_normalizer", None) or {})
    return jiwer.wer([normal(text) for text in said], [normal(text) for text in found])


def hearing_page(results: dict[str, Any]) -> str:
    """hearing.json as Markdown."""
    data, made = results["data"], results["manifest"]
    head = ["engine", "windows at a time", "seconds a window", "tokens per verifier call",
            "against our greedy of this type", *(f"against {peer}" for peer in BASELINES.values())]  # fmt: skip
    speed = [
        [row["engine"], row["batch_size"], number(row["seconds"], 3), number(row["tokens_per_verifier_call"], 2),
         *(ratio(row["speedup"].get(kind)) for kind in ("own", *BASELINES))]
        for row in results["rows"]
    ]  # fmt: skip
    quality = [
        [name, f"{100 * one['word_error_rate']:.1f}%", share(one["same_tokens"]),
         share(one["same_as_greedy"]) if name.endswith(DRAFTED) else "–", one["new_tokens"]]
        for name, one in results["quality"].items()
    ]  # fmt: skip
    parts = [
        "# Whisper beside its peers", "",
        f"Made by `{made['command']}`; do not edit. {data['sounds']} sounds of {data['seconds']:.0f} seconds in all, "
        "each in a window of its own, greedy decoding without timestamps; drafted: blocks of a drafter, verified "
        "exactly, of adaptive length. Spectrograms are made before; encoding, prompts and decoding are timed, in "
        f"{data['rounds']} interleaved rounds, whose medians these are; ratios are of rounds, with their interquartile "
        "range.", "",
        "## Time", "", *table(head, speed), "",
        "## What they write", "",
        *table(
            ["engine", "word error rate", "same tokens as Transformers", "same as our greedy of this type", "tokens"],
            quality,
        ), "",
        *manifest_table(made),
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write hearing.json and hearing.md."""
    parser = argparse.ArgumentParser(prog="python -m spec2seq.evaluation.hearing", description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--drafter", type=Path)
    parser.add_argument("--sounds", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    asked = parser.parse_args(arguments)
    drafter = f" --drafter {asked.drafter.name}" if asked.drafter else ""
    command = f"python -m spec2seq.evaluation.hearing --model {asked.model.name}{drafter} --sounds {asked.sounds.name}"
    threads = set_threads(asked.threads)
    results = study(asked.model, asked.drafter, asked.sounds, asked.rounds, threads, asked.batch_sizes, command)
    write_json(asked.out / "hearing.json", results)
    write_text(asked.out / "hearing.md", hearing_page(results))
    print(f"{asked.out / 'hearing.json'}\n{asked.out / 'hearing.md'}")


if __name__ == "__main__":
    run_main(main)
