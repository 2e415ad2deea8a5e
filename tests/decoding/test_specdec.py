"""SpecDec against the original's own results, and what we do where the original is wrong."""

import dataclasses

import golden_specdec
import pytest
import tiny
import torch
from golden_specdec import NONTERMINATING, SEED11, SETTINGS

from spec2seq import AdaptiveLength, BlockDrafter, Exact, FixedLength, Greedy, SpecDec, Speculative, TopBeta, UsageError
from spec2seq.decoding.block_drafters import PaperBlockDrafter
from spec2seq.decoding.drafter_only import draft_only
from spec2seq.errors import Spec2SeqError
from spec2seq.models.paper_drafter import PaperDrafter

EOS = 2


def words(tokens: list[int]) -> list[int]:
    return [token for token in tokens if token != EOS]


def emitted(row) -> list[int]:
    """Tokens of each iteration, the end token not counted: drafted ones, and the verifier's behind them."""
    parts = row.trace.replace("v", "v ").split()
    counts = [len(part) for part in parts]
    counts[-1] -= row.tokens[-1] == EOS
    return counts


def test_greedy_is_the_originals(golden):
    pair = golden(SEED11)
    found = pair.verifier.generate(pair.sources)
    assert [words(row.tokens) for row in found.rows] == [line["ar_greedy_ids"] for line in pair.lines]
    # D6: the original leaves a mark at the end of a line.
    texts = [line["ar_greedy_text"].removesuffix("@@") for line in pair.lines]
    assert found.texts == texts and texts != [line["ar_greedy_text"] for line in pair.lines]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(("beta", "tau"), SETTINGS)
def test_ids_and_iterations_are_the_originals(golden, beta, tau, batch_size):
    pair, key = golden(SEED11), f"beta{beta}_tau{tau}"
    method = SpecDec(pair.drafter, pair.drafter.block_size, beta, tau)
    found = pair.verifier.generate(pair.sources, method, batch_size=batch_size, trace=True)
    wanted = [line[f"specdec_{key}"] for line in pair.lines]
    assert [words(row.tokens) for row in found.rows] == [line["ids"] for line in wanted]
    assert [emitted(row) for row in found.rows] == [line["emitted_per_iteration"] for line in wanted]
    assert found.texts == [line["text"].removesuffix("@@") for line in wanted]
    batched = pair.expected["batched"][f"specdec_batch4_{key}"]
    # inference.py keeps the sequence up to the end token.
    assert [words(row.tokens) for row in found.rows] == [words(ids) for ids in batched["ids"]]
    statistics = pair.expected["specdec_statistics"][key]
    iterations = sum(row.counts.verifier_calls for row in found.rows)
    tokens = sum(len(words(row.tokens)) for row in found.rows)
    assert (tokens, iterations) == (statistics["total_emitted"], statistics["total_iterations"])


def test_the_drafter_alone_is_the_originals(golden):
    pair = golden(SEED11)
    found, wanted = draft_only(pair.drafter.model, pair.sources), pair.expected["drafter_only"]
    assert found.sequences == wanted["ids"]
    assert found.tokens_per_pass == pytest.approx(wanted["statistics"]["Avg accepted tokens"])
    assert found.passes_per_sequence == pytest.approx(wanted["statistics"]["Avg decoding iteration"])


@pytest.mark.parametrize("name", ["agreeing", "rejecting"])
def test_an_output_that_never_ends_is_cut_at_the_cap(golden, name):
    """D3: after 200 iterations the original leaves its loop. Where every draft was rejected it has 200 tokens and
    returns them with the masks behind them, or in its batched script nothing at all; greedy gives 200 tokens."""
    pair = golden(f"{NONTERMINATING}/{name}")
    for beta, tau in SETTINGS:
        method = SpecDec(pair.drafter, pair.drafter.block_size, beta, tau)
        found = pair.verifier.generate(pair.sources, method, max_new_tokens=200, trace=True)
        assert [row.tokens for row in found.rows] == [line["ar_greedy_ids"] for line in pair.lines]
        for row, line in zip(found.rows, pair.lines, strict=True):
            original = line[f"specdec_beta{beta}_tau{tau}"]
            masks = [3] * 5 if name == "rejecting" else []
            assert original["ids"] == row.tokens + masks
            assert emitted(row) == original["emitted_per_iteration"]


@pytest.mark.parametrize("name", ["agreeing", "rejecting"])
def test_the_drafter_alone_stops_at_the_cap(golden, name):
    """The original needs one more pass to see that it is there: 41 for 200 tokens, and 200 / 41 a pass."""
    pair = golden(f"{NONTERMINATING}/{name}")
    found, wanted = draft_only(pair.drafter.model, pair.sources), pair.expected["drafter_only"]
    assert found.sequences == wanted["ids"]
    assert found.passes == [40] * 4 and found.tokens_per_pass == 5
    assert wanted["statistics"]["Avg decoding iteration"] == 41


def test_presets():
    drafter = tiny.paper_drafter(tiny.seq2seq("bart"))
    assert SpecDec(drafter) == Speculative(drafter, AdaptiveLength(4), Exact())
    assert SpecDec(drafter, 7, beta=1) == Speculative(drafter, FixedLength(7), TopBeta(1, 1.0))
    assert SpecDec(drafter, tau=2.0) == Speculative(drafter, AdaptiveLength(4), TopBeta(3, 2.0))
    with pytest.raises(UsageError, match="LittleModel is no block drafter; use Assisted"):
        SpecDec(tiny.seq2seq("bart").drafter())
    assert SpecDec(drafter).lossless and SpecDec(drafter, beta=1).lossless and not SpecDec(drafter, beta=2).lossless
    for settings in ({"block_size": 0}, {"beta": 0}, {"tau": -1.0}):
        with pytest.raises(UsageError, match=next(iter(settings))):
            SpecDec(drafter, **settings)


@pytest.mark.parametrize("block_size", [1, 3, 4, 9, 200])
@pytest.mark.parametrize("mask_token_id", [None, 3])
def test_beta_1_is_greedy_for_any_block(family, block_size, mask_token_id):
    model = tiny.seq2seq(family)
    drafter, sources = tiny.paper_drafter(model, mask_token_id=mask_token_id), tiny.sources(model, 9)
    wanted = model.generate(sources, Greedy(), max_new_tokens=20).sequences
    for batch_size in (1, 4):
        found = model.generate(sources, SpecDec(drafter, block_size, beta=1), max_new_tokens=20, batch_size=batch_size)
        assert found.sequences == wanted


def test_a_batch_drafts_what_single_rows_draft(golden):
    """Ragged prefixes, sources of different lengths and rows that move do not change a draft (D9, D14)."""
    pair = golden(SEED11)
    alone, together = (
        pair.verifier.generate(pair.sources, SpecDec(pair.drafter, 8), batch_size=size, trace=True) for size in (1, 7)
    )
    assert [row.trace for row in alone.rows] == [row.trace for row in together.rows]
    assert alone.sequences == together.sequences


def test_a_drafted_pad_counts_as_one_token():
    """D9: in the original's batches a pad inside a draft corrupts the lengths."""
    model = tiny.seq2seq("bart")
    drafter = tiny.paper_drafter(model)
    drafter.model.embedding[model.config.pad_token_id] = 100 * drafter.model.decoder[-1].ffn_norm.weight
    drafter.model.decoder[-1].ffn_norm.bias.fill_(1.0)
    sources = tiny.sources(model, 6)
    found = model.generate(sources, SpecDec(drafter, drafter.block_size), max_new_tokens=12, batch_size=3)
    assert found.sequences == model.generate(sources, max_new_tokens=12).sequences


def test_drafts_end_with_the_position_table():
    """D10: prefix and block never index beyond the drafter's table; then the verifier writes alone."""
    model = tiny.seq2seq("bart")
    drafter, sources = tiny.paper_drafter(model, target_positions=10, block_size=6), tiny.sources(model, 6)
    cap = 30
    for batch_size in (1, 4):
        found = model.generate(
            sources, SpecDec(drafter, drafter.block_size), max_new_tokens=cap, batch_size=batch_size, trace=True
        )
        assert found.sequences == model.generate(sources, max_new_tokens=cap).sequences
        assert max(map(len, found.sequences)) > 12
    whole = Speculative(drafter, FixedLength(6), TopBeta(model.model.architecture.vocabulary, 1e9))
    traces = {row.trace for row in model.generate(sources, whole, max_new_tokens=cap, trace=True).rows}
    assert any(trace.startswith("ddddddvdddvv") for trace in traces)  # places 0-5, 7-9, none


def test_a_source_beyond_the_table_is_refused():
    model = tiny.seq2seq("bart")
    method = SpecDec(tiny.paper_drafter(model, source_positions=5), 3)
    with pytest.raises(UsageError, match="source 2 has 6 tokens, and the drafter has positions for 5"):
        model.generate([[5, 2], [5, 6, 7, 8, 9, 2]], method)
    engine = model.engine(method)
    with pytest.raises(UsageError, match="the source has 6 tokens, and the drafter has positions for 5"):
        engine.submit([5, 6, 7, 8, 9, 2], 4)
    assert not engine.busy


@pytest.mark.parametrize(("name", "value"), [("vocabulary", 63), ("eos_token_id", 9), ("pad_token_id", 9)])
def test_another_vocabulary_is_refused(name, value):
    model = tiny.seq2seq("bart")
    drafter = tiny.paper_drafter(model, **{name: value})
    with pytest.raises(UsageError, match=f"different vocabularies: .*: {getattr(model.model.architecture, name)} and"):
        model.generate([[5, 2]], SpecDec(drafter))


@pytest.mark.parametrize(
    ("device", "words"), [("gpu", "allowed: cpu, cuda, cuda:N"), ("cuda", "no CUDA device is here")]
)
def test_a_device_that_there_is_not_is_one_error(device, words):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UsageError, match=f"device is '{device}'.*{words}"):
        BlockDrafter.from_pretrained("nowhere", device=device)


def test_an_unknown_word_in_the_prefix_is_a_word(golden):
    """D2: to the original an <unk> of the prefix is a mask. Its drafters learned that, so imported ones keep it; for
    others it has its own embedding. Neither changes what beta 1 writes."""
    pair = golden(SEED11)
    config = pair.drafter.model.config
    assert config.mask_token_id == 3
    ordinary = PaperDrafter(dataclasses.replace(config, mask_token_id=None)).eval()
    ordinary.load_state_dict(pair.drafter.model.state_dict())
    greedy = pair.verifier.generate(pair.sources)
    found = pair.verifier.generate(pair.sources, SpecDec(PaperBlockDrafter(ordinary), 5))
    assert found.sequences == greedy.sequences
    original = pair.verifier.generate(pair.sources, SpecDec(pair.drafter, 5))
    differ = [a.counts != b.counts for a, b in zip(found.rows, original.rows, strict=True)]
    assert any(differ)
    assert not any(d for d, row in zip(differ, greedy.rows, strict=True) if 3 not in row.tokens)


@pytest.mark.parametrize("broken", ["config", "weights", "kind", "dtype", "shape", "nothing"])
def test_a_folder_that_is_no_drafter_is_refused(golden, tmp_path, broken):
    folder = tmp_path / "drafter"
    golden(SEED11).drafter.model.save_pretrained(folder)
    config, weights = folder / "config.json", folder / "model.safetensors"
    text = config.read_text()
    match broken:
        case "config":
            config.unlink()
        case "weights":
            weights.unlink()
        case "kind":
            config.write_text(text.replace('"paper"', '"other"'))
        case "shape":
            config.write_text(text.replace('"vocabulary": 204', '"vocabulary": 205'))
        case "nothing":
            folder = tmp_path / "absent"
    said = {"config": "config.json is missing", "weights": "model.safetensors is missing", "dtype": "dtype is 'int3'",
            "kind": "drafter_type is 'other'", "shape": "does not fit", "nothing": "absent"}  # fmt: skip
    with pytest.raises(Spec2SeqError, match=said[broken]):
        BlockDrafter.from_pretrained(folder, dtype="int3" if broken == "dtype" else "float32")


def test_scores_are_sums_of_log_probabilities(golden, family):
    theirs, model = tiny.transformers_model(family), tiny.seq2seq(family)
    sources = tiny.sources(model, 5)
    outputs = [row.tokens for row in model.generate(sources, max_new_tokens=8).rows]
    wanted = []
    for source, output in zip(sources, outputs, strict=True):
        start = model.model.architecture.decoder_start_token_id
        ids = torch.tensor([[start, *output]])
        logits = theirs(input_ids=torch.tensor([source]), decoder_input_ids=ids[:, :-1]).logits
        wanted.append(float(logits.log_softmax(-1)[0].gather(1, ids[0, 1:, None]).sum()))
    assert model.score(sources, outputs) == pytest.approx(wanted)
    assert model.score(sources[:1], [[]]) == [0.0]
    pair = golden(golden_specdec.SEED11)
    line = pair.lines[0]
    ids = [*line["ar_greedy_ids"], EOS]
    assert pair.verifier.score([line["line"]], [line["ar_greedy_text"]]) == pair.verifier.score(
        [line["src_ids"]], [ids]
    )
    with pytest.raises(UsageError, match="as many outputs"):
        model.score(sources, outputs[1:])
    with pytest.raises(UsageError, match="output 2 has the token id 64"):
        model.score(sources[:2], [[5], [64]])
