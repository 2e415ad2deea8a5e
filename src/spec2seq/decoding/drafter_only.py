"""A block drafter alone, nothing verified: how good its blocks are by themselves."""

from dataclasses import dataclass

import torch

from spec2seq.config import check_range
from spec2seq.models.paper_drafter import PaperDrafter


@dataclass(frozen=True)
class DraftedOnly:
    """`sequences` without end tokens; `passes` of the drafter for each of them."""

    sequences: list[list[int]]
    passes: list[int]

    @property
    def tokens_per_pass(self) -> float:
        """Tokens kept over passes, the end token not counted."""
        return sum(map(len, self.sequences)) / sum(self.passes)

    @property
    def passes_per_sequence(self) -> float:
        return sum(self.passes) / len(self.passes)


@torch.inference_mode()
def draft_only(
    model: PaperDrafter, sources: list[list[int]], block_size: int | None = None, max_new_tokens: int = 200
) -> DraftedOnly:
    """Append block after block, each source alone, until a block holds the end token or the cap is reached.

    Args:
        model: the drafter, in evaluation mode.
        sources: token ids, end token included.
        block_size: tokens a pass; None: what the drafter was trained for.
        max_new_tokens: the most tokens of an output, at most the drafter's positions.
    """
    config = model.config
    check_range("max_new_tokens", max_new_tokens, low=1, high=config.target_positions)
    k = config.block_size if block_size is None else block_size
    check_range("block_size", k, low=1, high=config.target_positions)
    sequences, passes = [], []
    for ids in sources:
        check_range("the length of a source", len(ids), low=1, high=config.source_positions)
        source = model.encode(torch.tensor([ids], device=model.device), torch.tensor([len(ids)], device=model.device))
        found: list[int] = []
        count = 0
        while len(found) < max_new_tokens and config.eos_token_id not in found:
            tokens = torch.tensor([found + [config.pad_token_id] * k], device=model.device)
            prefix = torch.tensor([len(found)], device=model.device)
            room = config.target_positions - len(found)
            found += model.draft(source, tokens, prefix, len(found), k)[0, :room].tolist()
            count += 1
        if config.eos_token_id in found:
            found = found[: found.index(config.eos_token_id)]
        sequences.append(found[:max_new_tokens])
        passes.append(count)
    return DraftedOnly(sequences, passes)
