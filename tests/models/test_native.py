"""The compiled executor computes what PyTorch does, and every row by itself."""

import copy

import native_models
import pytest
import tiny
import torch
import transformers
from native_models import DTYPES, branching, needs_compiler, teacher_forced
from torch.profiler import ProfilerActivity, profile

from spec2seq import Beam, Greedy, Seq2Seq, runner
from spec2seq.decoding import native_loop
from spec2seq.kernels import library
from spec2seq.models import native
from spec2seq.models.layers import Block
from spec2seq.models.quantize import QuantizedLinear, codes, quantize

pytestmark = needs_compiler
VOCABULARY = tiny.VOCABULARY
CALL = native.call


def words(rows: int, length: int, seed: int = 5) -> torch.Tensor:
    return torch.randint(3, VOCABULARY - 1, (rows, length), generator=torch.Generator().manual_seed(seed))


def sources(family: str, count: int) -> list[list[int]]:
    return tiny.sources(tiny.transformers_model(family), count)


def test_float32_is_pytorch(family):
    fed = [words(3, 7), words(3, 1), words(3, 4)]
    given = sources(family, 3)
    exact = teacher_forced(tiny.seq2seq(family).model, given, fed)
    for ours, wanted in zip(teacher_forced(native_models.model(family, "float32"), given, fed), exact, strict=True):
        torch.testing.assert_close(ours.double(), wanted, atol=5e-4, rtol=1e-5)  # logits of up to 20


def test_int8_is_pytorchs_int8(family):
    """With the sources' keys and values in 16 bits. One code that rounds the other way moves a result by a 127th of a
    row, so whole models agree less closely."""
    fed, given = [words(3, 7), words(3, 1)], sources(family, 3)
    ours = teacher_forced(native_models.model(family, "int8"), given, fed)
    theirs = teacher_forced(native_models.model(family, "int8", "torch"), given, fed, rounded=True)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert (mine - wanted).abs().median() < 1e-3 * wanted.abs().max()


@pytest.mark.parametrize(("inputs", "outputs"), [(32, 64), (64, 3), (33, 200), (256, 129)])
@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 13])
def test_a_linear_layer_in_int8(inputs, outputs, rows):
    torch.manual_seed(0)
    layer = QuantizedLinear.of(torch.nn.Linear(inputs, outputs))
    x = torch.randn(rows, inputs) * torch.logspace(-3, 3, rows)[:, None]
    x[0, 0] = 0
    torch.testing.assert_close(native.NativeLinear(layer)(x), layer(x), atol=1e-6, rtol=1e-6)
    assert not native.NativeLinear(layer)(torch.zeros(2, inputs)).isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "outputs"), [(33, 200), (128, 64), (300, 129)])
@pytest.mark.parametrize("rows", [6, 7, 20, 200])
def test_a_row_of_a_linear_layer_is_the_same_bits_among_others(inputs, outputs, rows, dtype):
    """More inputs and rows than meet at a time."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(inputs, outputs)
    layer = native.NativeLinear(QuantizedLinear.of(plain) if dtype == "int8" else plain)
    x = torch.randn(rows, inputs)
    together = layer(x)
    assert torch.equal(together, torch.cat([layer(x[row : row + 1]) for row in range(rows)]))
    if dtype == "float32":
        torch.testing.assert_close(together, plain(x), atol=1e-5, rtol=1e-5)


def test_codes_are_by_token():
    x = torch.tensor([[1.0, -0.5], [1000.0, 0.2]])
    code, scale = codes(x)
    assert code[0].tolist() == codes(x[:1])[0][0].tolist() == [127, -64]  # its neighbour does not matter
    torch.testing.assert_close(scale[:, 0], torch.tensor([1.0, 1000.0]) / 127)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_is_the_same_bits_in_any_block(family, dtype):
    model, given, fed = native_models.model(family, dtype), sources(family, 3), words(3, 14)
    alone = torch.cat(teacher_forced(model, given, list(fed.split(1, 1))), 1)
    for sizes in ([14], [3, 2, 9], [7, 6, 1], [8, 5, 1]):
        assert torch.equal(torch.cat(teacher_forced(model, given, list(fed.split(sizes, 1))), 1), alone), sizes


@pytest.mark.parametrize("heads", [1, 2])  # of 64 and 32 numbers, whose keys are met sixteen at a time
@pytest.mark.parametrize("dtype", DTYPES)
def test_queries_that_read_a_long_source_together_are_the_same_bits(heads, dtype):
    torch.manual_seed(0)
    config = tiny.config("bart", width=64)
    config.max_position_embeddings = 300
    config.encoder_attention_heads = config.decoder_attention_heads = heads
    theirs = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    base = Seq2Seq.from_transformers(theirs).model
    pair = [base, copy.deepcopy(base)]
    if dtype == "int8":
        for model in pair:
            quantize(model)
    native.attach(pair[1])
    given, fed = [torch.randint(3, 60, (length,)).tolist() for length in (205, 77)], words(2, 20)
    wanted, alone = (torch.cat(teacher_forced(model, given, list(fed.split(1, 1))), 1) for model in pair)
    torch.testing.assert_close(alone, wanted, rtol=0, atol=1e-4 if dtype == "float32" else 0.5)
    for sizes in ([20], [2, 3, 4, 5, 6], [7, 13], [12, 8]):
        assert torch.equal(torch.cat(teacher_forced(pair[1], given, list(fed.split(sizes, 1))), 1), alone), sizes


@pytest.mark.parametrize("dtype", DTYPES)
def test_sources_are_read_without_their_padding(family, dtype, monkeypatch):
    """Their states are the same bits alone and beside longer ones, and nobody computes what lies behind them."""
    model, given = native_models.model(family, dtype), sources(family, 5)
    tokens, lengths = tiny.padded(given, model.architecture.pad_token_id)
    computed = []
    monkeypatch.setattr(native, "call", lambda name, *rest: computed.append(rest[1].first) or CALL(name, *rest))
    together = model.encode(tokens, lengths).states
    assert len({*map(len, given)}) > 1 and all(computed)
    for row, source in enumerate(given):
        alone = model.encode(torch.tensor([source]), lengths[row : row + 1]).states
        assert torch.equal(together[row, : len(source)], alone[0])
        assert not together[row, len(source) :].any()


def test_states_of_layers_over_padded_sources(family):
    given = sources(family, 4)
    ours, exact = native_models.model(family, "float32"), tiny.seq2seq(family).model
    tokens, lengths = tiny.padded(given, ours.architecture.pad_token_id)
    found = []
    for model in (ours, exact):
        block = Block(*tokens.shape, tokens.shape[1], lengths=lengths)
        x = model.encoder.embed(model.source_embedding, tokens, slice(0, tokens.shape[1]))
        found.append(model.encoder(x, block, None, (0, 1))[1])
    real = (torch.arange(tokens.shape[1]) < lengths[:, None]).view(-1)
    for layer, states in found[0].items():
        torch.testing.assert_close(states[real].double(), found[1][layer][real], atol=5e-4, rtol=1e-5)


@pytest.mark.parametrize("width", [32, 96, 288])  # heads of 8, 24 and 72 numbers: less than a panel, and more
@pytest.mark.parametrize("kind", ["bart", "t5-gated"])
@torch.inference_mode()
def test_long_sources(kind, width):
    """Attention as products of matrices: nearly PyTorch's, in int8 too, and the same bits in any batch."""
    torch.manual_seed(0)
    config = tiny.config(kind, width=width)
    config.max_position_embeddings = 300
    theirs = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    for name, parameter in theirs.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=1.0 if "relative" in name else width**-0.5)
    lengths = torch.tensor([205, 12, 128, 127, 270, 133])
    tokens = torch.randint(3, tiny.VOCABULARY - 1, (6, 270))
    base = Seq2Seq.from_transformers(theirs).model
    for dtype in DTYPES:
        pair = [copy.deepcopy(base), copy.deepcopy(base)]
        if dtype == "int8":
            for model in pair:
                quantize(model)
        native.attach(pair[1])
        states = [model.encode(tokens, lengths).states for model in pair]
        for row, length in enumerate(lengths.tolist()):
            wanted, found = (both[row, :length] for both in states)
            difference = ((found - wanted).norm() / wanted.norm()).item()
            assert difference < (1e-5 if dtype == "float32" else 0.02), (dtype, row, difference)
            alone = pair[1].encode(tokens[row : row + 1, :length], lengths[row : row + 1]).states
            assert torch.equal(alone[0], found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_bits_in_any_batch(family, dtype):
    model, given, fed = native_models.model(family, dtype), sources(family, 5), words(5, 6)
    together = teacher_forced(model, given, [fed])[0]
    for row in range(5):
        assert torch.equal(teacher_forced(model, given[row : row + 1], [fed[row : row + 1]])[0][0], together[row])


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_ragged_rows_are_the_same_bits(family, dtype):
    model, given, starts = native_models.model(family, dtype), sources(family, 3), [7, 2, 4]
    prefix, fed, cache = words(3, 7), words(3, 4, seed=6), model.new_cache(3)
    tokens, lengths = tiny.padded(given, model.architecture.pad_token_id)
    model.admit(cache, 0, model.encode(tokens, lengths))
    model.decode_block(cache, prefix, torch.zeros(3, dtype=torch.long), 7, uniform=True)
    ragged = model.decode_block(cache, fed, torch.tensor(starts), 11, source_horizon=tokens.shape[1]).logits
    for row, start in enumerate(starts):
        blocks = [prefix[row : row + 1, :start], fed[row : row + 1]]
        assert torch.equal(teacher_forced(model, given[row : row + 1], blocks)[1][0], ragged[row])


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_no_bit(family, dtype):
    model, given = native_models.model(family, dtype), sources(family, 3)
    one = teacher_forced(model, given, [words(3, 5)])[0]
    torch.set_num_threads(3)
    try:
        assert torch.equal(teacher_forced(model, given, [words(3, 5)])[0], one)
    finally:
        torch.set_num_threads(1)


@torch.inference_mode()
def test_hidden_states_and_encoder(family):
    ours, theirs = native_models.model(family, "float32"), copy.deepcopy(tiny.seq2seq(family).model)
    tokens, lengths = tiny.padded(sources(family, 3), ours.architecture.pad_token_id)
    real = torch.arange(tokens.shape[1]) < lengths[:, None]
    encoded = [model.encode(tokens, lengths) for model in (ours, theirs)]
    torch.testing.assert_close(encoded[0].states[real].double(), encoded[1].states[real], atol=1e-4, rtol=1e-4)
    hidden = []
    for model, source in zip((ours, theirs), encoded, strict=True):
        cache = model.new_cache(3)
        model.admit(cache, 0, source)
        start = torch.zeros(3, dtype=torch.long)
        hidden.append(model.decode_block(cache, words(3, 4), start, 4, uniform=True, hidden_layers=(0, 1, 2)).hidden)
    for layer in (0, 1, 2):
        torch.testing.assert_close(hidden[0][layer].double(), hidden[1][layer], atol=2e-3, rtol=1e-3)


@torch.inference_mode()
def test_a_block_that_sees_itself_whole(family):
    ours, theirs = native_models.model(family, "float32"), tiny.seq2seq(family).model
    tokens, lengths = tiny.padded(sources(family, 2), ours.architecture.pad_token_id)
    logits = []
    for model in (ours, theirs):
        cache = model.new_cache(2)
        model.admit(cache, 0, model.encode(tokens, lengths))
        visible = torch.tensor([[1, 2, 5, 5, 5]]).expand(2, -1)
        start = torch.zeros(2, dtype=torch.long)
        logits.append(model.decode_block(cache, words(2, 5), start, 5, uniform=True, visible=visible).logits)
    torch.testing.assert_close(logits[0].double(), logits[1], atol=5e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_beam_search(family, dtype):
    given = sources(family, 4)
    ours, theirs = (native_models.seq2seq(family, dtype, executor) for executor in ("native", "torch"))
    found = ours.generate(given, Beam(3), max_new_tokens=12, batch_size=2).sequences
    assert found == ours.generate(given, Beam(3), max_new_tokens=12, batch_size=4).sequences
    if dtype == "float32":
        assert found == theirs.generate(given, Beam(3), max_new_tokens=12).sequences


@pytest.mark.parametrize(("executor", "dtype"), [("native", "float32"), ("native", "int8"), ("torch", "float32")])
def test_beams_that_change_places(family, executor, dtype):
    """Further than a grain of the cache, which then grows."""
    model, (source,) = native_models.model(family, dtype, executor), sources(family, 1)
    logits, beams = branching(model, source, 40)
    alone = teacher_forced(model, [source] * len(beams), [torch.tensor(beams)])[0][:, -1]
    close = dict(atol=5e-4, rtol=1e-5) if executor == "torch" else dict(atol=0, rtol=0)
    torch.testing.assert_close(logits, alone, **close)


@pytest.mark.parametrize(("beams", "vocabulary"), [(3, 203), (1, 64), (5, 7)])
def test_the_best_continuations(beams, vocabulary):
    generator, wanted = torch.Generator().manual_seed(1), 2 * beams
    logits = 5 * torch.randn(4 * beams, vocabulary, generator=generator)
    logits[0, 1:] = -torch.inf  # as after a forced token
    scores = torch.randn(4, beams, generator=generator)
    best = torch.zeros(4, wanted, 2, dtype=torch.float64)
    asked = library.Continuations(
        logits.data_ptr(), scores.data_ptr(), 4, beams, vocabulary, wanted, best.data_ptr()
    )  # fmt: skip
    native.call("spec2seq_continue", asked)
    totals = (logits.log_softmax(1) + scores.view(-1, 1)).view(4, -1)
    expected = totals.topk(wanted)
    torch.testing.assert_close(best[..., 0].float(), expected.values)
    finite = expected.values.isfinite()
    assert torch.equal(best[..., 1].long()[finite], expected.indices[finite])


def test_a_copy_runs_in_pytorch(family):
    model = native_models.model(family, "float32")
    changed = copy.deepcopy(model)
    assert changed.decoder.native is None and changed.native_head is None
    with torch.no_grad():
        changed.head.weight += 1
    fed, given = [words(2, 3)], sources(family, 2)
    assert not torch.equal(teacher_forced(changed, given, fed)[0], teacher_forced(model, given, fed)[0])


def test_calls_and_operators_of_an_iteration(monkeypatch):
    """A guard against slow paths that needs no clock: what one token of greedy decoding costs."""
    model, calls = native_models.seq2seq("marian", "float32"), []
    call = native.call
    for module in (native, native_loop):
        monkeypatch.setattr(module, "call", lambda name, *rest: calls.append(name) or call(name, *rest))
    monkeypatch.setattr(runner, "AT_ONCE", 3)
    given = sources("marian", 1)

    def run(tokens: int) -> int:
        calls.clear()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            out = model.generate(given, Greedy(), max_new_tokens=tokens, batch_size=1)
        assert out.stats.verifier_passes == tokens
        assert calls == ["spec2seq_stack", "spec2seq_source", *["spec2seq_iterate"] * -(-tokens // 3)]
        return sum(event.count for event in seen.key_averages() if event.key.startswith("aten::"))

    run(2)
    assert (run(6) - run(3)) / 3 <= 4  # operators of PyTorch, nested ones included


def test_the_structures_have_the_size_that_c_gives_them():
    names = (
        "Stack", "Pass", "Layer", "Chooser", "Decoder", "Scored", "Drafter", "Iteration", "LittleDraft", "Lookup",
        "Continuations", "Rule", "Rules",
    )  # fmt: skip
    sizes = [native.ctypes.sizeof(getattr(library, name)) for name in names]
    assert library.find()[0].spec2seq_size() == sum(sizes)
