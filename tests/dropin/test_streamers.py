"""Transformers' streamer protocol, in `model.generate`, `spec2seq.generate` and `Seq2Seq.generate`."""

import threading

import pytest
import tiny
import torch
from dropin.modules import CAP, inputs, noisy
from transformers import TextIteratorStreamer, TextStreamer
from transformers.generation.streamers import BaseStreamer

import spec2seq
from spec2seq import Assisted, Beam, Lookup, OfficialBiLD, Sample, Seq2Seq, UsageError

SETTINGS = dict(num_beams=1, do_sample=False, max_new_tokens=CAP)


class Recorder(BaseStreamer):
    def __init__(self):
        self.parts, self.ended = [], 0

    def put(self, value):
        assert not self.ended and value.device.type == "cpu" and value.dtype == torch.long
        self.parts.append(value.flatten().tolist())

    def end(self):
        self.ended += 1

    @property
    def tokens(self) -> list[int]:
        return [token for part in self.parts for token in part]


def one(module):
    return tiny.encoder_inputs(module, tiny.sources(module, 3, 75)[2:])


def recorded(run) -> Recorder:
    recorder = Recorder()
    run(recorder)
    assert recorder.ended == 1
    return recorder


def test_greedy_puts_what_transformers_puts(family):
    module = tiny.transformers_model(family)
    batch = one(module)
    theirs = recorded(lambda s: module.generate(**batch, **SETTINGS, streamer=s))
    for run in (
        lambda s: module.generate(**batch, **SETTINGS, streamer=s, custom_generate=spec2seq.custom_generate()),
        lambda s: module.generate(**batch, **SETTINGS, custom_generate=spec2seq.custom_generate(streamer=s)),
        lambda s: spec2seq.generate(module, **batch, **SETTINGS, streamer=s),
        lambda s: tiny.seq2seq(family).generate(batch["input_ids"].tolist(), max_new_tokens=CAP, streamer=s),
    ):
        assert recorded(run).parts == theirs.parts


@pytest.mark.parametrize("method", ["lookup", "assisted", "sampled"])
def test_speculation_puts_several_tokens_at_once(method):
    module = tiny.transformers_model("bart")
    batch, model = one(module), tiny.seq2seq("bart")
    made = {
        "lookup": Lookup(4), "assisted": Assisted(Seq2Seq.from_transformers(noisy(module)).drafter(), 4),
        "sampled": Sample(seed=3, drafter=tiny.noisy_copy(model, 0.01).drafter()),
    }[method]  # fmt: skip
    done = model.generate(batch["input_ids"].tolist(), made, max_new_tokens=CAP)
    recorder = recorded(lambda s: spec2seq.generate(module, **batch, max_new_tokens=CAP, method=made, streamer=s))
    start = module.config.decoder_start_token_id
    assert recorder.parts[0] == [start] and recorder.tokens[1:] == done.sequences[0]
    assert len(recorder.parts) - 1 == done.stats.verifier_calls
    assert method == "lookup" or max(map(len, recorder.parts)) > 1


def test_the_text_streamers_of_transformers(capsys):
    module = tiny.transformers_model("marian")
    batch, tokenizer = one(module), tiny.tokenizer(tiny.seq2seq("marian"))
    lookup = spec2seq.custom_generate(Lookup(4))

    def printed(**more) -> str:
        module.generate(**batch, **SETTINGS, streamer=TextStreamer(tokenizer, skip_special_tokens=True), **more)
        return capsys.readouterr().out

    assert printed(custom_generate=lookup) == printed() != "\n"
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=30)
    call = dict(batch, **SETTINGS, streamer=streamer, custom_generate=lookup)
    thread = threading.Thread(target=module.generate, kwargs=call)
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer.decode(module.generate(**batch, **SETTINGS)[0, 1:])


def test_what_cannot_be_streamed():
    module = tiny.transformers_model("bart")
    model = tiny.seq2seq("bart")
    with pytest.raises(UsageError, match="streamer cannot be used with Beam; allowed: greedy"):
        spec2seq.generate(module, **one(module), num_beams=3, max_new_tokens=CAP, streamer=Recorder())
    with pytest.raises(UsageError, match="streamer follows one source at a time; there are 4"):
        spec2seq.generate(module, **inputs(module), **SETTINGS, streamer=Recorder())
    for method, name in ((Beam(2), "Beam"), (OfficialBiLD(model.drafter()), "OfficialBiLD")):
        with pytest.raises(UsageError, match=f"streamer cannot be used with {name}"):
            model.generate([[5, 2]], method, streamer=Recorder())
    with pytest.raises(UsageError, match="there are 2"):
        model.generate([[5, 2], [6, 2]], streamer=Recorder())
