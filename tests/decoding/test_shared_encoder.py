"""A little model that was distilled under the verifier's own encoder reads what the verifier has encoded."""

import copy

import pytest
import tiny
import tiny_sound
import torch

from spec2seq import Assisted, Seq2Seq
from spec2seq.decoding import costs
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.quantize import quantize
from spec2seq.speech.transcribe import transcribe

CAP = 12


def distilled(model: Seq2Seq, layers: int = 1) -> Seq2Seq:
    """A model of its own with the first layers of the decoder and a copy of everything else."""
    little = copy.deepcopy(model.model.first_layers(layers))
    return Seq2Seq(little, model.config, model.tokenizer, model.generation_config)


@pytest.fixture
def encoded(monkeypatch):
    """Which models have encoded sources."""
    who, encode = [], EncoderDecoder.encode
    monkeypatch.setattr(EncoderDecoder, "encode", lambda self, *given: who.append(self) or encode(self, *given))
    return who


def test_it_does_not_encode(family, encoded):
    model = tiny.seq2seq(family)
    little, sources = distilled(model), tiny.sources(model, 9, 5)
    wanted = model.generate(sources, Assisted(model.early_exit(1), 3), max_new_tokens=CAP, batch_size=4)
    encoded.clear()
    found = model.generate(sources, Assisted(little.drafter(), 3), max_new_tokens=CAP, batch_size=4)
    assert found.sequences == wanted.sequences and found.stats.drafted == wanted.stats.drafted > 0
    assert {id(one) for one in encoded} == {id(model.model)}


@pytest.mark.parametrize("part", ["encoder", "source_embedding", "norm"])
def test_another_encoder_is_used(part, encoded):
    model = tiny.seq2seq("bart")
    little, sources = distilled(model), tiny.sources(model, 4, 5)
    own = little.model.state_dict()
    name = {"encoder": "encoder.layers.1.ffn_out.weight", "norm": "encoder.layers.0.self_norm.bias"}.get(part, part)
    changed = torch.nn.Parameter(own[name] + 1e-6, False)
    parent, _, last = name.rpartition(".")
    setattr(little.model.get_submodule(parent), last, changed)
    wanted = model.generate(sources, max_new_tokens=CAP).sequences
    encoded.clear()
    assert model.generate(sources, Assisted(little.drafter(), 3), max_new_tokens=CAP).sequences == wanted
    assert {id(one) for one in encoded} == {id(model.model), id(little.model)}


def test_sounds_are_heard_once(encoded):
    model = tiny_sound.seq2seq(0)
    little, sounds = distilled(model), tiny_sound.sounds(4)
    wanted = transcribe(model, sounds, language="en", max_new_tokens=CAP).transcripts
    encoded.clear()
    assert (
        transcribe(model, sounds, Assisted(little.drafter(), 3), language="en", max_new_tokens=CAP).transcripts
        == wanted
    )
    assert {id(one) for one in encoded} == {id(model.model)}


def test_in_int8_and_its_costs():
    model = tiny.seq2seq("t5")
    both = []
    for one in (model, distilled(model)):
        both.append(copy.deepcopy(one.model).float())
        quantize(both[-1])
    assert both[1].reads_as(both[0]) and not both[1].reads_as(model.model)
    little = Seq2Seq(both[1], model.config).drafter()
    assert costs.measure(both[0], Assisted(little, 3), [], 2).reading == 0.0
