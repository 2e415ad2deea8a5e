"""The generation config's rules in the compiled executor do to a place what the processors do over tensors."""

import copy

import pytest
import tiny
import tiny_sound
import torch
from models.native_models import METHODS, block_drafter, little_model, needs_compiler, seq2seq

from spec2seq import Beam, Greedy, Lookup, Seq2Seq, transcribe
from spec2seq.decoding.beam import Search
from spec2seq.decoding.logits import processors_from
from spec2seq.decoding.native_rules import NativeRules
from spec2seq.decoding.processors import Suppress
from spec2seq.models import native

pytestmark = needs_compiler
CAP, ROWS = 15, 7
SETTINGS = {
    "words": {"bad_words_ids": [[7], [9, 11], [12, 13, 14], [8, 10]], "renormalize_logits": True},
    "repeats": {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    "negative": {"no_repeat_ngram_size": 1, "repetition_penalty": 0.7},
    "lengths": {"min_length": 8, "forced_eos_token_id": None},
    "new tokens": {"min_new_tokens": 6, "suppress_tokens": [5, 6]},
    "start": {"forced_bos_token_id": 20, "begin_suppress_tokens": [21, 22, 23], "no_repeat_ngram_size": 3},
    "begin": {"begin_suppress_tokens": [*range(4, 30)], "repetition_penalty": 1.1, "min_length": 5},
}  # fmt: skip


def configured(plain: Seq2Seq, name: str, sources: list[list[int]]) -> Seq2Seq:
    config, settings = copy.deepcopy(plain.generation_config), dict(SETTINGS[name])
    if "forced_eos_token_id" in settings:
        settings["forced_eos_token_id"] = plain.config.eos_token_id
    if "bad_words_ids" in settings:  # of what it would write
        rows = plain.generate(sources, max_new_tokens=CAP).sequences
        settings["bad_words_ids"] += [row[at : at + 1 + at % 3] for at, row in enumerate(rows) if len(row) > at + 3]
    config.update(**settings)
    return Seq2Seq(plain.model, plain.config, plain.tokenizer, config)


def without(monkeypatch) -> None:
    """The executor runs passes, and knows no rules."""
    monkeypatch.setattr(NativeRules, "known", lambda processors, vocabulary: not processors)


def found(model: Seq2Seq, sources, method, **asked):
    out = model.generate(sources, method, trace=True, **asked)
    counts = {name: value for name, value in vars(out.stats).items() if name not in ("seconds", "phases")}
    return out.sequences, [row.trace for row in out.rows], counts


@pytest.mark.parametrize(
    ("dtype", "batch_size", "prompted"), [("float32", 3, False), ("int8", 1, False), ("int8", 4, True)]
)
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("family", ["marian", "t5"])
def test_every_method_writes_what_it_writes_over_tensors(family, name, dtype, batch_size, prompted, monkeypatch):
    plain = seq2seq(family, dtype)
    sources = tiny.sources(tiny.transformers_model(family), ROWS)
    model = configured(plain, name, sources)
    asked = {"max_new_tokens": CAP, "batch_size": batch_size}
    if prompted:
        asked["prompts"] = [[20 + row, 9][: row % 3] for row in range(ROWS)]
    greedy = plain.generate(sources, Greedy(), **asked).sequences
    block = block_drafter(family, dtype, shortlist=40, hidden_layers=(1, 2))
    little, runs = little_model(family, dtype), []
    for known in (True, False):
        if not known:
            without(monkeypatch)
        methods = {kind: make(block, little) for kind, make in METHODS.items()}
        runs.append({kind: found(model, sources, method, **asked) for kind, method in methods.items()})
        assert all((model.engine(method, 3).native is not None) is known for method in methods.values())
    for kind in METHODS:
        assert runs[0][kind] == runs[1][kind], kind
    assert runs[0]["greedy"][0] != greedy  # the settings matter
    for kind in ("exact", "adaptive", "assisted", "lookup"):
        assert runs[0][kind][0] == runs[0]["greedy"][0], kind


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("family", ["marian", "t5"])
def test_beams_are_those_over_tensors(family, name, dtype, monkeypatch):
    sources = tiny.sources(tiny.transformers_model(family), ROWS)
    model = configured(seq2seq(family, dtype), name, sources)
    scored, runs = [], []
    monkeypatch.setattr(
        Search,
        "_score_natively",
        lambda self, logits, real=Search._score_natively: (scored.append(1), real(self, logits)),
    )
    for known in (True, False):
        if not known:
            without(monkeypatch)
        runs.append(model.generate(sources, Beam(4, num_return_sequences=3), max_new_tokens=CAP, batch_size=3))
        assert bool(scored) is known
        scored.clear()
    for mine, theirs in zip(*(run.rows for run in runs), strict=True):
        for one, other in zip(mine.hypotheses, theirs.hypotheses, strict=True):
            assert one.tokens == other.tokens
            assert one.score == pytest.approx(other.score, abs=2e-5)


@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_timestamps_are_those_over_tensors(timestamps, batch_size, monkeypatch):
    base = tiny_sound.seq2seq(0)
    heard = copy.deepcopy(base.model).float()
    native.attach(heard)
    model = Seq2Seq(heard, base.config, base.tokenizer, base.generation_config)
    model.extractor = base.extractor
    sounds, runs = tiny_sound.sounds(5, 4.0 if timestamps else 0.9), []
    for known in (True, False):
        if not known:
            without(monkeypatch)
        for method in (Greedy(), Lookup(3), Beam(3)):
            made = transcribe(model, sounds, method, language="en", timestamps=timestamps, batch_size=batch_size)
            runs.append([[(part.start, part.end, part.tokens) for part in one.segments] for one in made.transcripts])
    assert runs[:3] == runs[3:]
    assert runs[0] == runs[1] != runs[2]
    assert any(len(parts) > 1 for parts in runs[0]) is timestamps


def test_what_the_executor_does_not_know_runs_over_tensors():
    model = seq2seq("marian", "float32")
    for settings in (
        {"sequence_bias": [[[7], 2.0]]}, {"exponential_decay_length_penalty": (2, 1.2)},
        {"remove_invalid_values": True},
    ):  # fmt: skip
        assert not NativeRules.known(processors_from(settings, (0,), 64), 64)
        config = copy.deepcopy(model.generation_config)
        config.update(**settings)
        assert Seq2Seq(model.model, model.config, None, config).engine().native is None
    assert not NativeRules.known([Suppress((10**6,))], 64)


def test_where_all_is_banned_nothing_stands(monkeypatch):
    """A token that is forced and forbidden: the verifier has no choice, and no draft is right."""
    plain, runs = seq2seq("marian", "int8"), []
    config = copy.deepcopy(plain.generation_config)
    config.forced_bos_token_id, config.suppress_tokens = 39, [39]  # Transformers' `update` refuses them
    model = Seq2Seq(plain.model, plain.config, None, config)
    sources, little = tiny.sources(tiny.transformers_model("marian"), ROWS), little_model("marian", "int8")
    for known in (True, False):
        if not known:
            without(monkeypatch)
        for kind in ("bild", "assisted"):
            runs.append(found(model, sources, METHODS[kind](None, little), max_new_tokens=CAP))
    assert runs[:2] == runs[2:]


def test_equal_processors_are_equal():
    for name, settings in SETTINGS.items():
        made = [processors_from(settings, (0,), 64) for _ in range(2)]
        assert made[0] == made[1] and hash(tuple(made[0])) == hash(tuple(made[1])), name
    assert torch.equal(*(processors_from({"suppress_tokens": [3]}, (0,), 64)[0]._on(torch.device("cpu")) for _ in "ab"))
