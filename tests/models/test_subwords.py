"""Dictionaries of fairseq, byte-pair codes of subword-nmt, and the tokenizers made of them."""

import io
import random
from collections import Counter

import fairseq_state
import pytest
import small_tokenizers
import subword_nmt.apply_bpe
from golden_specdec import FOLDER, SEED11

from spec2seq import Seq2Seq, Spec2SeqError
from spec2seq.models import languages, subwords
from spec2seq.models.fairseq import import_fairseq
from spec2seq.models.subwords import Codes, read_codes, read_dictionary


@pytest.mark.parametrize(("line", "said"), [("word", "is not a token and a count"), ("w4 1", "occurs twice")])
def test_bad_dictionaries_are_refused(tmp_path, line, said):
    path = fairseq_state.write_dictionary(tmp_path / "dict.txt", 6)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(Spec2SeqError, match=f"dict.txt, line 3.*{said}"):
        read_dictionary(path)


def test_a_flagged_line_replaces_an_earlier_one(tmp_path):
    path = fairseq_state.write_dictionary(tmp_path / "dict.txt", 6)
    path.write_text(path.read_text() + "w4 1 #fairseq:overwrite\nspaced\u3000word 2\n", encoding="utf-8")
    ids = read_dictionary(path)
    assert (ids["w4"], ids["w5"], ids["spaced\u3000word"]) == (6, 5, 7) and sorted(ids.values()) == list(range(8))


TEXT = "low lower lowest newer wider new aaaa aaaaa abab the other mother brother öfter a b 🙂🙂 don't 日本語"
WORDS = TEXT.split()


def learned(version: str, merges: int = 40) -> list[str]:
    """Merges of the most frequent pairs of WORDS, in the format of a version of subword-nmt."""
    alone = version == "0.1"
    corpus = [[*word, "</w>"] if alone else [*word[:-1], word[-1] + "</w>"] for word in WORDS if "日" not in word]
    lines = [] if alone else ["#version: 0.2"]
    for _ in range(merges):
        counts = Counter(pair for word in corpus for pair in zip(word, word[1:], strict=False))
        if not counts:
            break
        pair = max(counts, key=lambda pair: (counts[pair], pair))
        lines.append(" ".join(pair))
        for word in corpus:
            for place in range(len(word) - 2, -1, -1):
                if tuple(word[place : place + 2]) == pair:
                    word[place : place + 2] = ["".join(pair)]
    return lines


@pytest.mark.parametrize("version", ["0.1", "0.2"])
@pytest.mark.parametrize("merges", [3, 12, 40])
def test_codes_are_applied_as_subword_nmt_does(version, merges):
    lines = learned(version, merges)
    reference = subword_nmt.apply_bpe.BPE(io.StringIO("\n".join(lines) + "\n"))
    draw = random.Random(0)
    letters = sorted({letter for word in WORDS for letter in word}) + ["q", "ß"]
    words = WORDS + ["".join(draw.choices(letters, k=draw.randint(1, 9))) for _ in range(300)]
    codes = Codes(lines)
    for word in words:
        assert [*codes.split(word)] == reference.segment_tokens([word])


@pytest.mark.parametrize("version", ["0.1", "0.2"])
def test_codes_and_dictionary_become_a_tokenizer(tmp_path, version):
    """Loaded by AutoTokenizer it gives subword-nmt's subwords the dictionary's ids, and <unk> to what it lacks."""
    lines = learned(version)
    (tmp_path / "codes").write_text("\n".join(lines) + "\n", encoding="utf-8")
    reference = subword_nmt.apply_bpe.BPE(io.StringIO("\n".join(lines) + "\n"))
    segmented = [reference.segment(word) for word in WORDS]
    entries = sorted({token for words in segmented[:-3] for token in words.split()})
    (tmp_path / "dict.txt").write_text("".join(f"{token} 1\n" for token in entries), encoding="utf-8")
    vocabulary = len(entries) + 4
    state = fairseq_state.random_state("transformer", vocabulary)
    checkpoint = fairseq_state.write(tmp_path / "v.pt", "transformer", state)
    import_fairseq(checkpoint, tmp_path / "dict.txt", tmp_path / "out", codes=tmp_path / "codes")
    model = Seq2Seq.from_pretrained(tmp_path / "out")
    ids = read_dictionary(tmp_path / "dict.txt")
    for word, parts in zip(WORDS, segmented, strict=True):
        assert model.encode_text(f" {word} low ") == [*(ids.get(part, 3) for part in f"{parts} low".split()), 2]
    assert 3 in model.encode_text("日本語") and 3 not in model.encode_text("lower")
    text = "lower 🙂🙂 newest brother"
    assert model.tokenizer.decode(model.encode_text(text), skip_special_tokens=True).split("<unk>")[0] in text
    batch = model.tokenizer(["low lower", "new"], padding=True)["input_ids"]
    assert batch == [model.encode_text("low lower"), [*model.encode_text("new"), 1]]
    model.save_pretrained(tmp_path / "again")
    assert Seq2Seq.from_pretrained(tmp_path / "again").encode_text(text) == model.encode_text(text)


def test_decoding_joins_subwords():
    tokenizer = subwords.word_tokenizer(read_dictionary(FOLDER / SEED11 / "dict.en.txt"))
    ids = read_dictionary(FOLDER / SEED11 / "dict.en.txt")
    numbers = [0, ids["un@@"], ids["un@@"], ids["light"], 3, ids["a@@b"], ids["un@@"], 2, 1]
    assert tokenizer.decode(numbers, skip_special_tokens=True) == "ununlight <unk> a@@b un"
    assert tokenizer.decode([2], skip_special_tokens=True) == ""
    # A special token counts where it is a word, not inside one.
    assert tokenizer("light</s> </s> <unk>")["input_ids"] == [3, 2, 3, 2]


def test_moses_before_and_after(tmp_path):
    words = ["Der", "Cache", "ist", "voll", "@-@", "ja", ".", "&apos;s", "It"]
    (tmp_path / "dict.txt").write_text("".join(f"{word} 1\n" for word in words), encoding="utf-8")
    ids = read_dictionary(tmp_path / "dict.txt")
    tokenizer = subwords.word_tokenizer(ids, moses="en-de")
    assert tokenizer("It's voll-ja.")["input_ids"] == [ids[w] for w in ("It", "&apos;s", "voll", "@-@", "ja", ".")] + [
        2
    ]
    german = [ids[word] for word in ("Der", "Cache", "ist", "voll", "@-@", "ja", ".")]
    assert tokenizer.decode([*german, 2], skip_special_tokens=True) == "Der Cache ist voll-ja."
    with pytest.raises(Spec2SeqError, match="moses is 'en'; allowed: two languages"):
        subwords.word_tokenizer(ids, moses="en")


@pytest.mark.parametrize(("text", "said"), [("a b c\n", "line 1.*is not two symbols"), ("#version: 0.3\na b\n", "0.3")])
def test_bad_codes_are_refused(tmp_path, text, said):
    path = tmp_path / "codes"
    path.write_text(text)
    with pytest.raises(Spec2SeqError, match=said):
        Codes(read_codes(path))


def test_a_language_that_nobody_names_is_the_tokenizers_own(tmp_path):
    tokenizer = small_tokenizers.nllb(tmp_path)
    for asked, wanted in ((None, "eng_Latn"), ("deu_Latn", "deu_Latn"), (None, "eng_Latn")):
        languages.set_languages(tokenizer, asked, None)
        assert tokenizer.src_lang == wanted
    tokenizer.src_lang = "deu_Latn"  # by whoever owns it
    for asked, wanted in (("eng_Latn", "eng_Latn"), (None, "deu_Latn")):
        languages.set_languages(tokenizer, asked, None)
        assert tokenizer.src_lang == wanted
