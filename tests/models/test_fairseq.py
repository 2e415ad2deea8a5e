"""fairseq checkpoints, read without running code from them, as Transformers' models."""

import io
import json
import os
import pickle
from argparse import Namespace

import fairseq_state
import pytest
import tiny
import torch
import transformers
from golden_specdec import NONTERMINATING, SEED11
from safetensors.torch import load_file

from spec2seq import Seq2Seq, Spec2SeqError
from spec2seq.models import restricted
from spec2seq.models.fairseq import drafter_from, import_fairseq, read_model
from spec2seq.models.restricted import read_checkpoint

KINDS = ("transformer", "bart_base")


def imported(tmp_path, kind, vocabulary=24, name="pair", state=None, legacy=False, **settings):
    """The folder made of a random checkpoint."""
    state = fairseq_state.random_state(kind, vocabulary) if state is None else state
    checkpoint = fairseq_state.write(tmp_path / f"{name}.pt", kind, state, legacy, **settings)
    dictionary = fairseq_state.write_dictionary(tmp_path / "dict.txt", vocabulary)
    import_fairseq(checkpoint, dictionary, tmp_path / name)
    return tmp_path / name


def theirs(folder):
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits_of(model, source, tokens):
    """Transformers' own. FSMT sees ahead in a pass over several tokens unless it is told to keep no cache."""
    return model(torch.tensor([source]), decoder_input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


def our_logits(model, source, tokens):
    cache = model.model.new_cache(1)
    ids, lengths = tiny.padded([source], 1)
    model.model.admit(cache, 0, model.model.encode(ids, lengths))
    return model.model.decode_block(cache, torch.tensor([tokens]), torch.tensor([0]), len(tokens), uniform=True).logits[
        0
    ]


@pytest.mark.parametrize("name", [SEED11, f"{NONTERMINATING}/agreeing"])
def test_verifier_logits_are_the_originals(golden, name):
    pair = golden(name)
    hf = theirs(pair.folder)
    for line in pair.lines:
        wanted = line["verifier_teacher_forced"]
        for logits in (
            our_logits(pair.verifier, line["src_ids"], wanted["decoder_input_ids"]),
            logits_of(hf, line["src_ids"], wanted["decoder_input_ids"]),
        ):
            assert logits.argmax(-1).tolist() == wanted["argmax_all_positions"]
            assert logits[-1, :8].tolist() == pytest.approx(wanted["last_position_logits_first8"], abs=1e-4)
            assert float(logits[-1].logsumexp(-1)) == pytest.approx(wanted["last_position_logsumexp"], abs=1e-4)


def test_transformers_generates_the_originals_ids(golden):
    pair = golden(SEED11)
    hf = theirs(pair.folder)
    for line in pair.lines[:6]:
        found = hf.generate(torch.tensor([line["src_ids"]]))[0].tolist()
        assert found == [2, *line["ar_greedy_ids"], 2]


def test_lines_become_the_originals_ids(golden):
    """Blanks at both ends, tabs and no-break spaces among them."""
    pair = golden(SEED11)
    assert [pair.verifier.encode_text(line["raw_line"]) for line in pair.lines] == pair.sources
    assert {file.name for file in (pair.folder / "drafter").iterdir()} == {"config.json", "model.safetensors"}
    kept = json.loads((pair.folder / "drafter" / "config.json").read_text())
    assert kept["verifier"] == pair.verifier.fingerprint() and kept["drafter_type"] == "paper"
    assert kept["block_size"] == 5 and (kept["source_positions"], kept["target_positions"]) == (100, 250)


@pytest.mark.parametrize("kind", KINDS)
def test_random_verifiers_are_transformers_own(tmp_path, kind):
    folder = imported(tmp_path, kind)
    hf, model = theirs(folder), Seq2Seq.from_pretrained(folder)
    for source in tiny.sources(model, 4):
        logits = our_logits(model, source, [2, 5, 9, 3])
        assert torch.allclose(logits, logits_of(hf, source, [2, 5, 9, 3]), atol=1e-4)
    model.save_pretrained(tmp_path / "again")
    again = Seq2Seq.from_pretrained(tmp_path / "again")
    assert torch.equal(logits, our_logits(again, source, [2, 5, 9, 3]))
    assert again.generation_config.max_new_tokens == 200 and again.generation_config.num_beams == 1


def test_sinusoids_are_fairseqs(tmp_path):
    """Row p is sin(p w) and cos(p w) with w = exp(-i ln(10000) / (half - 1)); the first token has row 2."""
    model = Seq2Seq.from_pretrained(imported(tmp_path, "transformer")).model
    half = fairseq_state.WIDTH // 2
    angle = torch.arange(2.0, 42.0)[:, None] * 10000 ** (-torch.arange(half) / (half - 1))
    assert model.architecture.max_positions == 40
    assert torch.allclose(model.encoder.positions[2:], torch.cat([angle.sin(), angle.cos()], 1), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["old spelling", "legacy file", "half precision"])
def test_every_way_of_saving_gives_the_same(tmp_path, kind, change):
    dtype = torch.float16 if change == "half precision" else torch.float32
    state = fairseq_state.random_state(kind, 24, dtype=dtype)
    wanted = load_file(imported(tmp_path, kind, state=state, name="now") / "model.safetensors")
    other = fairseq_state.old_spelling(state) if change == "old spelling" else state
    found = load_file(imported(tmp_path, kind, state=other, name="other", legacy=True) / "model.safetensors")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert {tensor.dtype for tensor in found.values()} == {dtype}


@pytest.mark.parametrize("rows", [12, 14, 16])
@pytest.mark.parametrize("old", [False, True])
def test_drafters_of_any_number_of_rows(tmp_path, rows, old):
    state = fairseq_state.random_state("block", 21, rows, dtype=torch.float16)
    saved = fairseq_state.old_spelling(state) if old else state
    model = drafter_from(fairseq_state.write(tmp_path / "block.pt", "block", saved), 21)
    assert torch.equal(model.target_positions, state["decoder.embed_positions.weight"][2:])
    assert model.config.source_positions == rows - 2 and model.dtype == torch.float16
    qkv = [state[f"decoder.layers.1.self_attn.{part}_proj.bias"] for part in "qkv"]
    assert torch.equal(model.decoder[1].self_qkv.bias, torch.cat(qkv))


def test_barts_mask_row_is_dropped(tmp_path):
    state = fairseq_state.random_state("bart_base", 25)
    checkpoint = fairseq_state.write(tmp_path / "bart.pt", "bart_base", state)
    import_fairseq(checkpoint, fairseq_state.write_dictionary(tmp_path / "dict.txt", 24), tmp_path / "out")
    model = theirs(tmp_path / "out")
    assert torch.equal(model.model.shared.weight, state["encoder.embed_tokens.weight"][:24])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("call", [(os.system, "touch {}"), (eval, "open({!r}, 'w')"), (getattr, "x")])
def test_a_checkpoint_cannot_run_code(tmp_path, call, legacy):
    """Whatever a file asks for beyond tensors, containers and settings is refused by name, and not called."""

    class Attack:
        def __reduce__(self):
            return call[0], (call[1].format(str(tmp_path / "touched")),)

    path = tmp_path / "attack.pt"
    torch.save({"model": {}, "args": Attack()}, path, _use_new_zipfile_serialization=not legacy)
    # Old pickles say __builtin__ for builtins.
    name = rf"(posix|__builtin__|builtins)\.{call[0].__name__}, which is not allowed"
    with pytest.raises(Spec2SeqError, match=f"attack.pt.*{name}"):
        read_checkpoint(path)
    assert not (tmp_path / "touched").exists()


def test_names_are_not_looked_into():
    """A dotted name, and a class of a settings module, give nothing that runs."""
    for code in (b"cargparse\n_os.system\n(S'exit 3'\ntR.", b"comegaconf\nsystem\n(S'exit 3'\ntR."):
        assert isinstance(restricted._Unpickler(io.BytesIO(code)).load(), restricted.Held)
    with pytest.raises(Spec2SeqError, match="builtins.exec, which"):
        restricted._Unpickler(io.BytesIO(b"cbuiltins\nexec\n(S'1'\ntR.")).load()


def test_settings_may_be_kept_in_cfg(tmp_path):
    state = fairseq_state.random_state("transformer", 24)
    path = tmp_path / "new.pt"
    torch.save({"args": None, "cfg": {"model": Namespace(encoder_attention_heads=4)}, "model": state}, path)
    assert read_model(path, 24)[0] == {"encoder_attention_heads": 4}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: s.update({"encoder.layer_norm.weight": torch.ones(16)}), "normalizes before each layer"),
        (lambda s: s.update({"decoder.output_projection.weight": torch.ones(24, 16)}), "differs from the encoder's"),
        (lambda s: s.update({"decoder.strange": torch.ones(1)}), "strange"),
        (lambda s: s.pop("decoder.layers.1.fc2.bias"), "fc2.bias"),
        (lambda s: s.pop("encoder.embed_tokens.weight"), "embed_tokens.weight is missing"),
        (lambda s: s.update({"decoder.copy_attn.weight": torch.ones(16, 16)}), "is a drafter of architecture block"),
        (lambda s: s.update({"encoder.embed_positions.weight": torch.ones(9, 16)}), "neither a transformer"),
    ],
)
def test_other_models_are_refused(tmp_path, spoil, said):
    state = fairseq_state.random_state("transformer", 24)
    spoil(state)
    with pytest.raises(Spec2SeqError, match=f"pair.pt.*{said}"):
        imported(tmp_path, "transformer", state=state)
    assert not (tmp_path / "pair").exists()


def test_what_does_not_fit_together_is_refused(tmp_path):
    checkpoint = fairseq_state.write(tmp_path / "v.pt", "transformer", fairseq_state.random_state("transformer", 24))
    with pytest.raises(Spec2SeqError, match="vocabulary has 24 entries, and the dictionary 22"):
        import_fairseq(checkpoint, fairseq_state.write_dictionary(tmp_path / "dict.txt", 22), tmp_path / "out")
    with pytest.raises(Spec2SeqError, match="v.pt: no decoder.copy_attn"):
        drafter_from(checkpoint, 24)
    for name, content in (("absent.pt", None), ("text.pt", b"hello"), ("list.pt", pickle.dumps([1]))):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(Spec2SeqError, match=name):
            read_model(tmp_path / name, 24)
