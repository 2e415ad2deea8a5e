"""Pipeline-shaped objects: what the removed pipelines took and returned, with the tokens of `model.generate`."""

import copy
import warnings

import pytest
import small_tokenizers
import tiny
import torch
import transformers

import spec2seq
from spec2seq import Beam, Lookup, Seq2Seq, Spec2SeqError, UsageError

TEXTS = ["w5 w6 w7", "w9", "w20 w21 w22 w23 w24 w25 w26", "w40 w41"]
KEYS = {"translation": "translation", "summarization": "summary", "text2text-generation": "generated"}
CAP = dict(max_new_tokens=12)

pytestmark = pytest.mark.filterwarnings("ignore:input . has")


@pytest.fixture
def module():
    """A live module of one's own, with settings of a generation config that a test may change."""
    return copy.deepcopy(tiny.transformers_model("bart"))


@pytest.fixture
def words():
    return tiny.tokenizer(tiny.seq2seq("bart"))


def theirs(module, tokenizer, texts: list[str], **settings) -> list[list[str]]:
    """What the pipelines of Transformers 4 did: one text at a time, tokenizer, `generate`, tokenizer."""
    settings = {"num_beams": 4, "do_sample": False} | settings
    found = []
    for text in texts:
        inputs = {"input_ids": torch.tensor([tokenizer(text)["input_ids"]])}
        found.append(tokenizer.batch_decode(module.generate(**inputs, **settings), skip_special_tokens=True))
    return found


@pytest.mark.parametrize("task", KEYS)
def test_tasks_name_their_results(task, module, words):
    pipe = spec2seq.pipeline(task, model=module, tokenizer=words, **CAP)
    expected = [found[0] for found in theirs(module, words, TEXTS, **CAP)]
    key = f"{KEYS[task]}_text"
    assert pipe(TEXTS[0]) == [{key: expected[0]}]
    assert pipe(TEXTS) == [{key: text} for text in expected] == pipe(TEXTS, batch_size=3)
    assert list(pipe(text for text in TEXTS)) == [[{key: text}] for text in expected]
    assert pipe([]) == [] and len(set(expected)) > 2


def test_it_decodes_with_4_beams_unless_told_otherwise(module, words):
    pipe = spec2seq.pipeline("translation", model=module, tokenizer=words)

    def texts(**settings) -> list[str]:
        return [found["translation_text"] for found in pipe(TEXTS, **settings)]

    for settings in (CAP, {"max_length": 9}, CAP | {"num_beams": 1}, CAP | {"num_beams": 2, "length_penalty": 2.0},
                     CAP | {"min_length": 8}, CAP | {"no_repeat_ngram_size": 2, "early_stopping": True}):  # fmt: skip
        assert texts(**settings) == [found[0] for found in theirs(module, words, TEXTS, **settings)], settings
    several = pipe(TEXTS[:2], **CAP, num_return_sequences=3)
    expected = theirs(module, words, TEXTS[:2], **CAP, num_return_sequences=3)
    assert several == [[{"translation_text": text} for text in found] for found in expected]
    assert pipe(TEXTS[0], **CAP, num_return_sequences=3) == several[0]


def test_what_the_model_says_counts_more_than_the_defaults(module, words):
    module.generation_config.update(num_beams=2, max_length=8)
    assert Seq2Seq.from_transformers(module).max_new_tokens() == 7  # without a pipeline, too
    pipe = spec2seq.pipeline("text2text-generation", model=module, tokenizer=words)
    expected = theirs(module, words, TEXTS, num_beams=2, max_length=8)
    assert pipe(TEXTS) == [{"generated_text": found[0]} for found in expected]
    expected = theirs(module, words, TEXTS, num_beams=3, max_new_tokens=5)
    config = transformers.GenerationConfig(num_beams=3, max_new_tokens=5)
    assert pipe(TEXTS, generation_config=config) == [{"generated_text": found[0]} for found in expected]
    assert module.generation_config.num_beams == 2


def test_settings_and_prefix_of_a_task(words):
    """As the configurations of T5 have them."""
    module = copy.deepcopy(tiny.transformers_model("t5"))
    words = tiny.tokenizer(tiny.seq2seq("t5"))
    module.config.task_specific_params = {
        "summarization": {"prefix": "w8 w9 ", "num_beams": 3, "max_length": 14, "min_length": 5}
    }
    pipe = spec2seq.pipeline("summarization", model=module, tokenizer=words)
    settings = dict(num_beams=3, max_length=14, min_length=5)
    expected = theirs(module, words, [f"w8 w9 {text}" for text in TEXTS], **settings)
    assert pipe(TEXTS) == [{"summary_text": found[0]} for found in expected]
    other = spec2seq.pipeline("text2text-generation", model=module, tokenizer=words, **CAP)
    assert other(TEXTS) == [{"generated_text": found[0]} for found in theirs(module, words, TEXTS, **CAP)]


def test_tensors_and_texts(module, words):
    pipe = spec2seq.pipeline("translation", model=module, tokenizer=words, **CAP)
    ids = module.generate(torch.tensor([words(TEXTS[0])["input_ids"]]), num_beams=4, **CAP)[0]
    (found,) = pipe(TEXTS[0], return_tensors=True)
    assert [*found] == ["translation_token_ids"] and torch.equal(found["translation_token_ids"], ids)
    (both,) = pipe(TEXTS[0], return_tensors=True, return_text=True)
    assert both["translation_text"] == words.decode(ids, skip_special_tokens=True)
    assert torch.equal(both["translation_token_ids"], ids)
    with pytest.raises(UsageError, match="return_text and return_tensors are both False"):
        pipe(TEXTS[0], return_text=False)


def test_clean_up_reaches_the_tokenizer(module):
    words = tiny.tokenizer(tiny.seq2seq("bart"), {9: ".", 23: ","})
    seen, decode = [], words.decode
    words.decode = lambda ids, **settings: seen.append(settings) or decode(ids, **settings)
    pipe = spec2seq.pipeline("translation", model=module, tokenizer=words, **CAP)
    for clean in (True, False):
        pipe(TEXTS[0], clean_up_tokenization_spaces=clean)
        assert seen[-1] == {"skip_special_tokens": True, "clean_up_tokenization_spaces": clean}
    pipe(TEXTS[0])
    assert seen[-1] == {"skip_special_tokens": True}


def test_truncation(module, words):
    long = " ".join(["w5 w6 w7"] * 50)
    pipe = spec2seq.pipeline("text2text-generation", model=module, tokenizer=words, **CAP)
    for truncation in (None, False, "do_not_truncate"):
        with pytest.raises(Spec2SeqError, match="input 2 has 151 tokens; the model allows 96"):
            pipe([TEXTS[0], long], truncation=truncation)
    cut = [words(long)["input_ids"][:95] + [2]]
    expected = words.decode(module.generate(torch.tensor(cut), num_beams=4, **CAP)[0], skip_special_tokens=True)
    for truncation in (True, "longest_first", transformers.tokenization_utils_base.TruncationStrategy.ONLY_FIRST):
        assert pipe(long, truncation=truncation) == [{"generated_text": expected}]
    words.model_max_length = 20
    cut = [words(long)["input_ids"][:19] + [2]]
    expected = words.decode(module.generate(torch.tensor(cut), num_beams=4, **CAP)[0], skip_special_tokens=True)
    assert pipe(long, truncation=True) == [{"generated_text": expected}]
    with pytest.raises(UsageError, match="truncation is 'sometimes'; allowed: "):
        pipe(long, truncation="sometimes")


def test_it_speculates(module, words):
    little = Seq2Seq.from_transformers(module, words)
    greedy = [found[0] for found in theirs(module, words, TEXTS, **CAP, num_beams=1)]
    for given in ({"method": Lookup(3)}, {"drafter": little}, {"drafter": tiny.cached_drafter(tiny.seq2seq("bart"))},
                  {"drafter": module}):  # fmt: skip
        pipe = spec2seq.pipeline("translation", model=module, tokenizer=words, **CAP, **given)
        assert [found["translation_text"] for found in pipe(TEXTS, batch_size=4)] == greedy
        assert pipe.stats.rows == 4 and (pipe.stats.drafted > 0 or "method" in given)
        with pytest.raises(UsageError, match="num_beams is 2, but the method given is"):
            pipe(TEXTS, num_beams=2)
    assert spec2seq.pipeline("translation", model=module, tokenizer=words, method=Beam(4), **CAP)(TEXTS) == (
        spec2seq.pipeline("translation", model=module, tokenizer=words, **CAP)(TEXTS)
    )
    with pytest.raises(UsageError, match="method and drafter are both given"):
        spec2seq.pipeline("translation", model=module, tokenizer=words, method=Lookup(2), drafter=little)


def test_draws(module, words):
    pipe = spec2seq.pipeline("translation", model=module, tokenizer=words, do_sample=True, num_beams=1, **CAP)
    torch.manual_seed(5)
    first = pipe(TEXTS, num_return_sequences=3, batch_size=2)
    assert [len(found) for found in first] == [3] * 4 and first != pipe(TEXTS, num_return_sequences=3)
    torch.manual_seed(5)
    assert pipe(TEXTS, num_return_sequences=3) == first
    greedy = [{"translation_text": found[0]} for found in theirs(module, words, TEXTS, **CAP, num_beams=1)]
    assert pipe(TEXTS, top_k=1) == greedy


def test_models_of_every_kind(tmp_path, module, words):
    expected = [{"translation_text": found[0]} for found in theirs(module, words, TEXTS, **CAP)]
    module.save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "model")
    words.save_pretrained(tmp_path / "words")
    module.save_pretrained(tmp_path / "bare")
    for given in (
        dict(model=str(tmp_path / "model"), dtype="float64"),
        dict(model=tmp_path / "model", dtype=torch.float64, device=-1, drafter=None),
        dict(model=tmp_path / "bare", tokenizer=tmp_path / "words", dtype="float64", device="cpu"),
        dict(model=Seq2Seq.from_transformers(module, words)),
        dict(model=Seq2Seq.from_transformers(module), tokenizer=words),
        dict(model=module, tokenizer=str(tmp_path / "words")),
    ):
        assert spec2seq.pipeline("translation", **given, **CAP)(TEXTS) == expected
    drafted = spec2seq.pipeline(
        "translation", model=tmp_path / "model", dtype="float64", drafter=tmp_path / "model", **CAP
    )
    assert [found["translation_text"] for found in drafted(TEXTS)] == [
        found[0] for found in theirs(module, words, TEXTS, **CAP, num_beams=1)
    ]


@pytest.mark.parametrize("by", ["task", "argument", "call"])
def test_languages(by, tmp_path):
    words = small_tokenizers.nllb(tmp_path)
    module = tiny.transformers_model("m2m_100", vocabulary=len(words) + 2)
    pair = {"src_lang": "eng_Latn", "tgt_lang": "deu_Latn"}
    task = "translation_eng_Latn_to_deu_Latn" if by == "task" else "translation"
    pipe = spec2seq.pipeline(task, model=module, tokenizer=words, **CAP, **(pair if by == "argument" else {}))
    texts = ["the cache is full", "words"]
    words.src_lang = "eng_Latn"
    forced = {"forced_bos_token_id": words.convert_tokens_to_ids("deu_Latn")}
    expected = [{"translation_text": found[0]} for found in theirs(module, words, texts, **CAP, **forced)]
    words.src_lang = "fra_Latn"  # somebody else has used it in the meantime
    assert pipe(texts, **(pair if by == "call" else {})) == expected
    with pytest.raises(UsageError, match="tgt_lang is 'deu'; allowed: the model's"):
        pipe(texts, src_lang="eng_Latn", tgt_lang="deu")
    if by == "call":
        with pytest.raises(UsageError, match="translates between many languages, and src_lang is not given"):
            pipe(texts)


def test_lengths_are_warned_of(module, words):
    def said(task: str, text: str, **settings) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            spec2seq.pipeline(task, model=module, tokenizer=words)(text, **settings)
        return [str(warning.message) for warning in caught]

    (warning,) = said("summarization", TEXTS[0], max_length=13)
    assert warning.startswith("input 1 has 4 tokens, and its summary may have 12; a smaller max_length")
    (warning,) = said("translation", TEXTS[2], max_new_tokens=8)
    assert warning.startswith("input 1 has 8 tokens, and its translation at most 8; a larger max_length")
    assert "min_length is 12, and an output has at most 6 tokens" in said(
        "summarization", TEXTS[2], max_new_tokens=6, min_length=12
    )
    assert said("text2text-generation", TEXTS[2], max_new_tokens=8) == []
    assert said("translation", TEXTS[0], max_new_tokens=8) == []


def test_what_it_does_not_take(module, words):
    with pytest.raises(UsageError, match="task is 'fill-mask'; allowed: translation, summarization, text2text-gen"):
        spec2seq.pipeline("fill-mask", model=module, tokenizer=words)
    with pytest.raises(UsageError, match="a pipeline reads texts; give its model's tokenizer"):
        spec2seq.pipeline("translation", model=module)
    with pytest.raises(UsageError, match="model is NoneType; allowed: a folder or hub id, a Seq2Seq, or a model of T"):
        spec2seq.pipeline("translation")
    with pytest.raises(UsageError, match="device and dtype are of a model that is loaded; this one is: move it"):
        spec2seq.pipeline("translation", model=module, tokenizer=words, device=-1)
    pipe = spec2seq.pipeline("translation", model=module, tokenizer=words, **CAP)
    with pytest.raises(UsageError, match="stop_sequence is neither an argument of a pipeline nor a generation setting"):
        pipe(TEXTS[0], stop_sequence="w5")
    with pytest.raises(Spec2SeqError, match="max_time=2.0 is not supported"):
        pipe(TEXTS[0], max_time=2.0)
    with pytest.raises(UsageError, match="input 2 is list; allowed: a text"):
        pipe([TEXTS[0], TEXTS[1:]])
    with pytest.raises(UsageError, match="num_beams=4 and prompt_lookup_num_tokens do not go together"):
        pipe(TEXTS[0], prompt_lookup_num_tokens=2)
