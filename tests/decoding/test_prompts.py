"""Outputs that begin with a prompt: what comes behind it is what would have come anyway, whoever drafts."""

import copy
import functools

import pytest
import tiny
import torch
from decoding.test_static_loop import fixed
from models.native_models import needs_compiler
from models.native_models import seq2seq as compiled

from spec2seq import Assisted, Beam, BiLD, Greedy, Lookup, OfficialBiLD, Sample, SpecDec, UsageError
from spec2seq.decoding.graphs import Graphs

CAP = 20


def methods(model) -> dict:
    little = tiny.noisy_copy(model, 0.02).drafter()
    return {
        "greedy": Greedy(), "specdec": SpecDec(tiny.cached_drafter(model), 3), "assisted": Assisted(little, 4),
        "paper": SpecDec(tiny.paper_drafter(model, seed=9), 4), "lookup": Lookup(3),
        "no states": SpecDec(tiny.cached_drafter(model, hidden_layers=(), follow_width=0), 3),
        "bild": BiLD(little, rollback_threshold=0.0, starts="verifier", verify_tail=True),
    }  # fmt: skip


NAMES = ["greedy", "specdec", "no states", "assisted", "paper", "lookup", "bild"]


@functools.cache
def known(family: str) -> tuple[list, list]:
    """Sources, and what greedy decoding writes for each alone."""
    model = tiny.seq2seq(family)
    sources = tiny.sources(model, 9, 21)
    return sources, model.generate(sources, max_new_tokens=CAP, batch_size=1).sequences


def cut(row: list[int], number: int) -> int:
    """Prompts of all lengths, none at all among them; never a whole output."""
    return min((0, 5, 1, 3, 0, 9, 2)[number % 7], len(row) - 1)


def check(model, family: str, method, batch_size: int):
    """A prompt that greedy decoding would have written changes nothing of what follows."""
    sources, whole = known(family)
    places = [cut(row, number) for number, row in enumerate(whole)]
    prompts = [row[:place] for row, place in zip(whole, places, strict=True)]
    found = model.generate(sources, method, max_new_tokens=CAP, batch_size=batch_size, prompts=prompts, trace=True)
    for row, given, place in zip(found.rows, whole, places, strict=True):
        assert row.tokens[: CAP - place] == given[place:]
        assert row.counts.new_tokens == len(row.tokens) == len(row.trace)
    return found


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_what_follows_is_the_rest(family, name, batch_size):
    model = tiny.seq2seq(family)
    found = check(model, family, methods(model)[name], batch_size)
    assert (found.stats.drafted > 0) is (name != "greedy")


@needs_compiler
@pytest.mark.parametrize("name", ["greedy", "specdec", "assisted", "lookup"])
def test_in_the_compiled_executor(family, name):
    """The tokens that it writes by itself stand in for those in float64."""
    model = compiled(family, "float32")
    sources, _ = known(family)
    whole = model.generate(sources, max_new_tokens=CAP, batch_size=1).sequences
    prompts = [row[: cut(row, number)] for number, row in enumerate(whole)]
    found = model.generate(sources, methods(model)[name], max_new_tokens=CAP, batch_size=4, prompts=prompts)
    for row, given, prompt in zip(found.sequences, whole, prompts, strict=True):
        assert row[: CAP - len(prompt)] == given[len(prompt) :]


@pytest.mark.parametrize("name", ["greedy", "specdec", "no states"])
def test_over_fixed_tensors(family, name, monkeypatch):
    """Whose graphs are kept: nothing is put elsewhere when rows with prompts come."""
    model, forgotten = fixed(tiny.seq2seq(family)), []
    method = methods(model)[name]
    check(model, family, method, 4)
    monkeypatch.setattr(Graphs, "forget", lambda self: forgotten.append(self))
    check(model, family, method, 4)
    assert not forgotten


SETTINGS = {
    "words": {"suppress_tokens": [7, 9], "begin_suppress_tokens": [11, 12, 13], "min_new_tokens": 2,
              "max_new_tokens": CAP},
    "length": {"max_length": CAP + 3, "min_length": 9}, "decay": {"exponential_decay_length_penalty": (2, 1.4),
                                                                  "max_length": CAP + 3},
}  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("beams", [1, 4])
def test_transformers_continues_alike(family, beams, settings):
    """Prompts that the model would not have written, of one length as Transformers wants them."""
    model, theirs = tiny.seq2seq(family), tiny.transformers_model(family)
    sources = tiny.sources(model, 6, 3)
    start, words = model.config.decoder_start_token_id, torch.Generator().manual_seed(5)
    prompts = torch.randint(3, model.config.vocab_size - 1, (6, 3), generator=words)
    inputs = tiny.encoder_inputs(theirs, sources)
    begins = torch.cat([torch.full((6, 1), start), prompts], 1)
    wanted = theirs.generate(**inputs, decoder_input_ids=begins, do_sample=False, num_beams=beams,
                             length_penalty=1.3, **settings).tolist()  # fmt: skip
    other = model.for_task()
    other.generation_config = type(model.generation_config)(**(model.generation_config.to_dict() | settings))
    method = Beam(beams, length_penalty=1.3) if beams > 1 else Greedy()
    found = other.generate(sources, method, prompts=prompts.tolist()).sequences
    eos = model.config.eos_token_id
    rests = [row[4:] for row in wanted]
    assert found == [row[: row.index(eos) + 1] if eos in row else row for row in rests]
    assert len(set(map(tuple, found))) > 1


def test_beams_of_prompts_of_several_lengths():
    model = tiny.seq2seq("bart")
    sources, whole = known("bart")
    prompts = [row[: cut(row, number)] for number, row in enumerate(whole)]
    found = model.generate(sources, Beam(3), max_new_tokens=CAP, batch_size=4, prompts=prompts)
    for source, prompt, row in zip(sources, prompts, found.sequences, strict=True):
        assert model.generate([source], Beam(3), max_new_tokens=CAP, prompts=[prompt]).sequences == [row]


def test_draws_do_not_depend_on_the_batch():
    model = tiny.seq2seq("t5")
    sources, whole = known("t5")
    prompts = [row[: cut(row, number)] for number, row in enumerate(whole)]
    runs = [
        model.generate(sources, Sample(seed=3), max_new_tokens=CAP, batch_size=size, prompts=prompts).sequences
        for size in (1, 4)
    ]
    assert runs[0] == runs[1]


def test_a_prompt_may_be_a_text():
    base = tiny.seq2seq("marian")
    model = type(base)(base.model, base.config, tiny.tokenizer(base), base.generation_config)
    by_ids = model.generate(["w5 w6"], max_new_tokens=CAP, prompts=[[8, 9]])
    assert model.generate(["w5 w6"], max_new_tokens=CAP, prompts=["w8 w9"]).sequences == by_ids.sequences
    assert not by_ids.texts[0].startswith("w8 w9 w8 w9")


def test_a_streamer_gets_the_prompt_first():
    model, got = tiny.seq2seq("bart"), []

    class Streamer:
        put, end = staticmethod(lambda ids: got.append(ids.tolist())), staticmethod(lambda: None)

    model.generate([[5, 2]], max_new_tokens=4, prompts=[[8, 9]], streamer=Streamer())
    assert got[0] == [[model.config.decoder_start_token_id, 8, 9]]


@pytest.mark.parametrize("name", NAMES)
def test_a_long_prompt_beside_a_row_that_is_far(name):
    """The row that is new is read whole, and the other filled up to as many tokens, beyond what it has room for."""
    model, method = tiny.seq2seq("t5"), methods(tiny.seq2seq("t5"))[name]
    sources, prompt = tiny.sources(model, 8, 21), [5 + place % 50 for place in range(58)]
    far = next(source for source in sources if len(model.generate([source], max_new_tokens=40).sequences[0]) == 40)
    alone = [model.generate([far], method, max_new_tokens=40).sequences[0],
             model.generate([sources[0]], method, max_new_tokens=5, prompts=[prompt]).sequences[0]]  # fmt: skip
    engine, found = model.engine(method, 2), {}
    engine.submit(far, 40)
    while engine.rows.count == 0 or engine.rows.horizon < 20:
        engine.step()
    engine.submit(sources[0], 5, prompt=prompt)
    while engine.busy:
        found |= {done.id: done.tokens for done in engine.step()}
    assert [found[0], found[1]] == alone


@pytest.mark.parametrize(
    ("prompts", "said"),
    [([[1]], "prompts is to be a list of 2"), ("w5", "prompts is to be a list of 2"),
     (iter([[1], [2]]), "prompts is to be a list of 2"),
     ([[1], None], "prompt 2 is None; allowed: a text, or token ids"),
     ([[1], [64]], "prompt 2 has the token id 64; allowed: 0 to 63")],
)  # fmt: skip
def test_what_is_no_prompt(prompts, said):
    with pytest.raises(UsageError, match=said):
        tiny.seq2seq("bart").generate([[5, 2], [6, 2]], prompts=prompts)


@pytest.mark.parametrize("method", [Greedy(), Beam(3)])
def test_a_prompt_takes_positions(method):
    model = tiny.small_positions("bart", 10)
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.suppress_tokens = [model.config.eos_token_id]  # all go on to the end
    alone = model.generate([[5, 2]], method).sequences[0]
    together = model.generate([[5, 2], [6, 2]], method, prompts=[[], [7, 8, 9]]).sequences
    assert together[0] == alone and len(alone) == 10  # a row is what it is alone
    assert len(together[1]) == 7
    with pytest.raises(
        UsageError, match="max_new_tokens is 8; allowed: 1 to 7, the model's positions behind a prompt of 3"
    ):
        model.generate([[5, 2]], method, max_new_tokens=8, prompts=[[7, 8, 9]])
    with pytest.raises(UsageError, match="prompt 1 has 10 tokens; allowed: 9 of the model's positions"):
        model.generate([[5, 2]], method, prompts=[[7] * 10])


def test_the_official_program_takes_none():
    model = tiny.seq2seq("bart")
    with pytest.raises(UsageError, match="OfficialBiLD takes no prompts"):
        model.generate([[5, 2]], OfficialBiLD(tiny.noisy_copy(model, 0.02).drafter()), prompts=[[7]])
