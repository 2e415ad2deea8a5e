"""What drafts could save beam search at the most: a study, no method.

    python recipes/speculative_beams.py --sources dev.tsv

A pass stands in for the next step of beam search, too, only if every beam that survives the step continues within
what was drafted. Beam search itself is run; then every beam of every step drafts, and what survived is looked for in
the trees (each beam times the m likeliest tokens of every slot, given the path to it, or times what n-gram lookup
copies). The cost of a pass over so many tokens is measured; drafting, judging and reordering a tree are free here.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spec2seq import Beam, BlockDrafter, Seq2Seq
from spec2seq.decoding.beam import Search
from spec2seq.decoding.rows import padded
from spec2seq.evaluation.command import run_main
from spec2seq.evaluation.document import markdown_table
from spec2seq.evaluation.timing import interleave, set_threads
from spec2seq.models.cached_drafter import CachedDrafter
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.training.drafting import read

BRANCHES = (1, 2, 4, 8)  # m, tokens of a slot in the tree
NEVER = 1 << 30  # the rank of a token that is not drafted
DTYPES = ("float32", "int8")
FEW = (1, 2, 6)  # depths of the trees with more than one
LARGEST = 48  # tokens of a beam's tree, beyond which it is not measured
NGRAM = 3  # the longest that lookup looks for


@dataclass(frozen=True)
class Beams:
    """Beam search of one source: for each step the row that each beam continued, and all its tokens, the start first.
    Step 0 is the start alone."""

    source: list[int]
    parents: list[list[int]]
    prefixes: list[list[list[int]]]

    @property
    def steps(self) -> int:
        """Those behind which there are beams again; a sentence's last one has none."""
        return len(self.parents) - 1

    def ancestor(self, step: int, beam: int, back: int) -> int:
        for passed in range(back):
            beam = self.parents[step - passed][beam]
        return beam


@torch.inference_mode()
def beams(model: Seq2Seq, source: list[int], count: int) -> Beams:
    search = Search(model.model, [source], Beam(count).completed({}), model.max_new_tokens(), [], [0])
    while search.running:
        search.step()
    parents, prefixes = [[0] * count], [[[model.model.architecture.decoder_start_token_id]] * count]
    for rows, words in search.history[:-1]:
        parents.append(rows)
        prefixes.append([[*prefixes[-1][row], word] for row, word in zip(rows, words, strict=True)])
    return Beams(source, parents, prefixes)


def looked_up(source: list[int], prefix: list[int], most: int) -> list[int]:
    """What followed the latest occurrence of the longest n-gram at the end of the output, as in `NgramLookup`."""
    output = prefix[1:]
    for size in range(min(NGRAM, len(output)), 0, -1):
        for hay in (output, source):
            for end in range(len(hay) - 1, size - 1, -1):
                if hay[end - size : end] == output[-size:]:
                    return hay[end : end + most]
    return []


@torch.inference_mode()
def states_of(drafter: CachedDrafter, verifier: EncoderDecoder, found: Beams) -> dict[tuple[int, ...], Tensor]:
    """Of every beam, by its prefix, the states `[slots, width]` that guess what follows. Each prefix that goes nowhere
    is read once, with all that come before it."""
    everything = {tuple(prefix) for step in found.prefixes for prefix in step}
    leaves = [*(everything - {prefix[:-1] for prefix in everything})]
    inputs = padded(leaves, verifier.architecture.pad_token_id)
    source = torch.tensor([found.source]).expand(len(leaves), -1)
    batch = {"decoder_input_ids": inputs, "input_ids": source, "attention_mask": torch.ones_like(source)}
    encoded, features = read(verifier, batch, drafter.shape.hidden_layers)
    anchors = torch.arange(inputs.shape[1]).expand(len(leaves), -1)
    first, others = drafter.block_states(verifier, encoded, inputs, features, anchors)
    both = torch.cat([first[:, :, None], others], 2)
    return {leaf[: place + 1]: both[row, place] for row, leaf in enumerate(leaves) for place in range(len(leaf))}


@torch.inference_mode()
def ranks(
    drafter: CachedDrafter, verifier: EncoderDecoder, found: Beams, depth: int
) -> Iterator[tuple[int, int, int, int]]:
    """For every step, depth and surviving beam `depth` steps later: the rank of its last token in its ancestor's slot,
    given the tokens between, and whether lookup has all of them: (step, depth, rank, 1 or 0)."""
    states, weight, bias = states_of(drafter, verifier, found), *drafter.head(verifier)
    for step in range(found.steps):
        for ahead in range(1, min(depth, found.steps - step) + 1):
            after = found.prefixes[step + ahead]
            of = [found.prefixes[step][found.ancestor(step + ahead, beam, ahead)] for beam in range(len(after))]
            state = torch.stack([states[tuple(prefix)][ahead - 1] for prefix in of])
            if drafter.follow is not None:
                before = torch.tensor([prefix[-2] for prefix in after])
                embedded = torch.nn.functional.embedding(before, verifier.target_embedding)
                state = state + drafter.follow(drafter.follow.state(state), embedded)
            logits = torch.nn.functional.linear(state, weight, bias)
            places = drafter.places(torch.tensor([prefix[-1] for prefix in after]))
            own = logits.gather(1, places.clamp(min=0)[:, None])
            rank = torch.where(places < 0, NEVER, (logits > own).sum(1))
            for prefix, base, value in zip(after, of, rank.tolist(), strict=True):
                copied = looked_up(found.source, base, ahead)
                yield step, ahead, value, int(prefix[len(base) :] == copied)


def passes(steps: int, covered: dict[int, int], depth: int) -> int:
    """How many passes the steps take if behind each pass as many more are covered, `depth` at the most."""
    step = count = 0
    while step <= steps:  # the last step has a pass, too
        step += 1 + min(covered.get(step, 0), depth)
        count += 1
    return count


def runs(items: list[tuple[int, int, int, int]], branches: int, lookup: bool) -> dict[int, int]:
    """For each step, how many steps on end all survivors lie in the tree."""
    missed: dict[int, int] = {}
    longest: dict[int, int] = {}
    for step, ahead, rank, copied in items:
        longest[step] = max(longest.get(step, 0), ahead)
        if rank >= branches and not (lookup and copied):
            missed[step] = min(missed.get(step, NEVER), ahead)
    return {step: min(most, missed.get(step, NEVER) - 1) for step, most in longest.items()}


@torch.inference_mode()
def pass_costs(model: EncoderDecoder, count: int, lengths: list[int], repeats: int) -> dict[int, float]:
    """Milliseconds of a pass over `count` beams with so many tokens each, behind 16 others."""
    cache, source, past = model.new_cache(count), torch.full((1, 30), 9), 16
    cache.reserve(past)
    cache.own.zero_()  # what nobody has written may be anything
    model.admit(cache, 0, model.encode(source, torch.tensor([30])))
    starts = torch.full((count,), past)

    def run(length: int) -> None:
        tokens = torch.full((count, length), 9)
        model.decode_block(cache, tokens, starts, past + length, uniform=True, source_horizon=30, sources=1)

    timings = interleave({str(length): lambda length=length: run(length) for length in lengths}, repeats, warmup=2)
    return {length: 1000 * timings.least(str(length)) for length in lengths}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sources", type=Path, required=True, help="a text or the first column of a TSV file")
    parser.add_argument("--model", type=Path, default=Path("models/ende"))
    parser.add_argument("--lines", type=int, default=100)
    parser.add_argument("--beams", type=int, nargs="+", default=[5, 4, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="timed passes of each length")
    asked = parser.parse_args()
    set_threads(asked.threads)
    model = Seq2Seq.from_pretrained(asked.model)
    drafter = BlockDrafter.from_pretrained(asked.model / "drafter", executor="torch").model
    texts = [line.split("\t")[0] for line in asked.sources.read_text(encoding="utf-8").splitlines()]
    sources = [model.encode_text(text) for text in texts[:: max(1, len(texts) // asked.lines)][: asked.lines]]
    depths, started = range(1, drafter.shape.block_size + 1), time.perf_counter()
    head = ["beams", "m", "depth", "lookup", "tokens of a pass", "steps a pass"]
    head += [f"{dtype}: {bound}" for dtype in DTYPES for bound in ("whole tree", "m × depth tokens a beam")]
    for count in asked.beams:
        found = [beams(model, source, count) for source in sources]
        seen = [list(ranks(drafter, model.model, one, max(depths))) for one in found]
        steps = sum(one.steps + 1 for one in found)
        trees = {(m, d): sum(m**i for i in range(1, d + 1)) for m in BRANCHES for d in depths if m == 1 or d in FEW}
        sizes = {size for size in trees.values() if size <= LARGEST} | {m * depth for m, depth in trees}
        lengths, rows = [1, *sorted(1 + size for size in sizes)], []
        costs = {
            dtype: pass_costs(Seq2Seq.from_pretrained(asked.model, dtype).model, count, lengths, asked.repeats)
            for dtype in DTYPES
        }
        for lookup in (False, True):
            for (m, depth), size in trees.items():
                taken = sum(
                    passes(one.steps, runs(items, m, lookup), depth) for one, items in zip(found, seen, strict=True)
                )
                rows.append(_row(count, m, depth, lookup, size, steps / taken, costs))
        print(*markdown_table(head, rows, left=0), sep="\n", flush=True)
    print(f"\n{len(sources)} sources, {asked.threads} threads, {time.perf_counter() - started:.0f} s. The last columns:"
          " seconds of plain beam search over seconds with drafts, passes alone, drafting free.")  # fmt: skip


def _row(count: int, m: int, depth: int, lookup: bool, size: int, gain: float, costs: dict[str, dict[int, float]]):
    """A row of the table; a tree too large to be measured counts as lost."""
    row = [str(count), str(m), str(depth), "yes" if lookup else "no", str(count * (1 + size)), f"{gain:.2f}"]
    for ms in costs.values():
        for length in (1 + size, 1 + m * depth):
            row.append(f"{gain * ms[1] / ms[length]:.2f}" if length in ms else "–")
    return row


if __name__ == "__main__":
    run_main(main)
