"""Texts in and out with the tokenizers of Transformers: language tokens, prefixes, vocabularies with padding."""

import itertools
import warnings

import pytest
import small_tokenizers
import tiny
import torch
import transformers

from spec2seq import Assisted, Lookup, Seq2Seq, UsageError
from spec2seq.training import cache as training_cache
from spec2seq.training.make_drafter import make_drafter

TEXTS = ["the cache is full", "a small model reads the words and writes them", "words"]
CAP = 12
# tokenizer → family, languages, and how Transformers is told the target language
CASES = {
    "nllb": ("m2m_100", "eng_Latn", "deu_Latn", "forced_bos_token_id"),
    "m2m_100": ("m2m_100", "en", "de", "forced_bos_token_id"),
    "mbart50": ("mbart", "en_XX", "de_DE", "forced_bos_token_id"),
    "mbart": ("mbart", "en_XX", "ro_RO", "decoder_start_token_id"),
    "plbart": ("plbart", "python", "en_XX", "decoder_start_token_id"),
    "t5": ("t5", None, None, None),
    "mt5": ("mt5", None, None, None),
    "pegasus": ("pegasus", None, None, None),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with a tiny model and a tokenizer, whose vocabulary is smaller than the model's."""
    made = {}

    def folder(kind: str):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            tokenizer = getattr(small_tokenizers, {"mt5": "t5"}.get(kind, kind))(tmp_path_factory.mktemp("files"))
            family, _, target, setting = CASES[kind]
            model = tiny.transformers_model(family, vocabulary=vocabulary(kind, tokenizer))
            if setting == "decoder_start_token_id":
                model.config.decoder_start_token_id = language(tokenizer, target)
            model.save_pretrained(made[kind])
            model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id
            tokenizer.save_pretrained(made[kind])
        return made[kind]

    return folder


def vocabulary(kind: str, tokenizer) -> int:
    """What the model has rows for: more than the tokenizer has tokens, but PLBART's fails at the first of them."""
    last = max(len(tokenizer) - 1, *getattr(tokenizer, "lang_code_to_id", {"": 0}).values(), 0)
    return last + 1 + (0 if kind == "plbart" else 6)


def language(tokenizer, name: str) -> int:
    if isinstance(tokenizer, transformers.M2M100Tokenizer):
        return tokenizer.get_lang_id(name)
    if isinstance(tokenizer, transformers.PLBartTokenizer):
        return tokenizer.lang_code_to_id[f"__{name}__"]
    return tokenizer.convert_tokens_to_ids(name)


def theirs(folder, kind: str, texts: list[str], source: str | None, target: str | None, prefix: str = ""):
    """What Transformers' own pipeline of tokenizer, model and tokenizer makes of the texts."""
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float64)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    told = {}
    if source is not None:
        tokenizer.src_lang = source
        told = {CASES[kind][3]: language(tokenizer, target)}
    inputs = tokenizer([prefix + text for text in texts], padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with warnings.catch_warnings(action="ignore"):
        ids = model.generate(**inputs, max_new_tokens=CAP, num_beams=1, do_sample=False, **told)
    rows, eos = [row[1:] for row in ids.tolist()], model.config.eos_token_id
    rows = [row[: row.index(eos) + 1] if eos in row else row for row in rows]
    return rows, tokenizer.batch_decode(rows, skip_special_tokens=True)


@pytest.mark.parametrize("kind", CASES)
def test_texts_become_what_transformers_makes_of_them(kind, folders):
    _, source, target, _ = CASES[kind]
    folder = folders(kind)
    prefix = "a draft : " if source is None else ""
    rows, texts = theirs(folder, kind, TEXTS, source, target, prefix)
    model = Seq2Seq.from_pretrained(folder, "float64", src_lang=source, tgt_lang=target, prefix=prefix)
    assert model.model.architecture.vocabulary == vocabulary(kind, model.tokenizer)
    done = model.generate(TEXTS, max_new_tokens=CAP)
    assert done.sequences == rows and done.texts == texts
    assert len(set(map(tuple, rows))) > 1 and any(texts)
    for method in (Lookup(3), Assisted(tiny.noisy_copy(model, 0.02).drafter(), 3)):
        assert model.generate(TEXTS, method, max_new_tokens=CAP, batch_size=2).sequences == rows


@pytest.mark.parametrize("kind", [kind for kind, case in CASES.items() if case[1]])
def test_one_model_serves_several_directions(kind, folders):
    folder, (_, source, target, _) = folders(kind), CASES[kind]
    there = Seq2Seq.from_pretrained(folder, "float64", src_lang=source, tgt_lang=target)
    back = there.for_task(src_lang=target, tgt_lang=source)
    assert back.model.head.weight is there.model.head.weight
    for model, languages in ((back, (target, source)), (there, (source, target)), (back, (target, source))):
        rows, texts = theirs(folder, kind, TEXTS[:2], *languages)
        done = model.generate(TEXTS[:2], max_new_tokens=CAP)
        assert done.sequences == rows and done.texts == texts
    assert back.score(TEXTS[:1], TEXTS[1:2]) != there.score(TEXTS[:1], TEXTS[1:2])


@pytest.mark.parametrize("kind", [kind for kind, case in CASES.items() if case[1]])
def test_an_output_that_is_scored_is_what_the_model_would_write(kind, folders):
    """The language token first, but not where the decoder starts with it."""
    _, source, target, setting = CASES[kind]
    model = Seq2Seq.from_pretrained(folders(kind), src_lang=source, tgt_lang=target)
    token, ids = language(model.tokenizer, target), model.encode_text(TEXTS[0], target=True)
    assert ids[-1] == model.config.eos_token_id
    assert (ids[0] == token) == (setting == "forced_bos_token_id")
    assert ids.count(token) == (setting == "forced_bos_token_id")


@pytest.mark.parametrize("kind", ["nllb", "mbart"])
def test_a_drafter_is_made_for_a_direction(kind, folders, tmp_path):
    """It learns what the model writes in that language, from sources that say which one they are in."""
    folder, (_, source, target, _) = folders(kind), CASES[kind]
    direction = {"src_lang": source, "tgt_lang": target}
    words = " ".join(TEXTS).split()
    texts = list(dict.fromkeys(" ".join(pair) for pair in itertools.product(words, repeat=2)))[:60]
    (tmp_path / "sources.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    options = {"minutes": 0.02, "dev_lines": 5, "block_size": 3, "lines": 40}
    read = []
    real = training_cache.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_cache, "encode", lambda *given: read.append(real(*given)) or read[-1])
        made = make_drafter(folder, tmp_path / "sources.txt", tmp_path / "out", **direction, **options)
    model = Seq2Seq.from_pretrained(folder, **direction)
    assert f", {source} → {target}: 1 layer(s)" in (made.folder / "README.md").read_text(encoding="utf-8")
    lossless = made.facts["lossless"]
    assert lossless["equal"] + lossless["ties"] == lossless["lines"] == 5
    known = {tuple(model.encode_text(text)) for text in texts}
    assert read[0] and {tuple(ids) for ids in read[0]} <= known
    with pytest.raises(UsageError, match="nowhere"):
        make_drafter(folder, tmp_path / "sources.txt", tmp_path / "other", **(direction | {"tgt_lang": "nowhere"}))


def test_cutting_keeps_the_end_and_the_language_behind_it(folders):
    model = Seq2Seq.from_pretrained(folders("mbart"), src_lang="en_XX", tgt_lang="ro_RO")
    ids = model.source_ids(" ".join(["words"] * 200), "here", truncate=True)
    assert len(ids) == 96
    assert ids[-2:] == [model.config.eos_token_id, language(model.tokenizer, "en_XX")]


@pytest.mark.parametrize(
    ("kind", "languages", "message"),
    [
        (
            "nllb",
            {"tgt_lang": "deu_Latin"},
            "tgt_lang is 'deu_Latin'; allowed: the model's 202 languages, such as deu_",
        ),
        ("m2m_100", {"src_lang": "the"}, "src_lang is 'the'; allowed: the model's 100 languages"),
        ("t5", {"src_lang": "en"}, "src_lang is 'en', but this model's tokenizer has no language tokens"),
    ],
)
def test_a_language_that_the_model_does_not_have(kind, languages, message, folders):
    with pytest.raises(UsageError) as error:
        Seq2Seq.from_pretrained(folders(kind), **languages)
    assert str(error.value).startswith(message)
