"""A run that trains the paper's drafter by glancing."""

import functools
from typing import Any

import torch

from spec2seq import PaperBlockDrafter, Spec2SeqError, UsageError
from spec2seq.models.encoder_decoder import EncoderDecoder
from spec2seq.models.paper_drafter import PaperConfig, PaperDrafter
from spec2seq.training.checkpoints import require_fit
from spec2seq.training.data import Pair
from spec2seq.training.draft_scores import DraftScores, Guess
from spec2seq.training.drafter_session import DrafterSession
from spec2seq.training.glancing import GlancingLoss, guesses


class GlancingSession(DrafterSession):
    """The verifier gives the encoder's first weights and the scores; while training it has no part."""

    def _verifier_dtype(self) -> torch.dtype:
        return torch.float32

    def _training_rows(self) -> Any:
        if self.verifier.model.architecture.sound is not None:
            raise UsageError("paper_drafter reads texts, and its verifier hears; allowed: cached_drafter")
        return super()._training_rows()

    def _new_model(self) -> PaperDrafter:
        recipe, a = self.recipe.paper_drafter, self.verifier.model.architecture
        config = PaperConfig(
            a.vocabulary, recipe.width, recipe.heads, recipe.feed_forward, recipe.encoder_layers,
            recipe.decoder_layers, recipe.source_positions, recipe.target_positions, a.eos_token_id, a.pad_token_id,
            recipe.block_size, recipe.activation, recipe.dropout, verifier=self.verifier.fingerprint(),
        )  # fmt: skip
        drafter = PaperDrafter(config)
        if recipe.init_encoder:
            start_encoder(drafter, self.verifier.model, f"paper_drafter.init_encoder, verifier {recipe.verifier}")
        return drafter

    def _loss(self) -> GlancingLoss:
        return GlancingLoss(self.recipe.paper_drafter, self.clock)

    def _judged(self, drafter: PaperDrafter) -> tuple[PaperBlockDrafter, Guess]:
        return PaperBlockDrafter(drafter), functools.partial(guesses, drafter)

    def _score(self, pairs: list[Pair]) -> DraftScores:
        """Of the lines that the drafter's position table has room for."""
        most = self.recipe.paper_drafter.source_positions
        return super()._score([pair for pair in pairs if len(self.verifier.encode_text(pair.source)) <= most])


def start_encoder(drafter: PaperDrafter, verifier: EncoderDecoder, where: str) -> None:
    """Copy the verifier's source embedding and encoder layers into the drafter, as encoder_initial.py of the original.

    A warm start, no equal encoder: positions are learned anew, the embedding is not scaled, the activation may differ.
    Raises Spec2SeqError, which begins with `where`, for the first weight that does not fit, or other heads.
    """
    mine = {n: w for n, w in drafter.state_dict().items() if n == "embedding" or n.startswith("encoder.")}
    theirs = {f"encoder.{name}": weight for name, weight in verifier.encoder.layers.state_dict().items()}
    theirs["embedding"] = verifier.source_embedding.detach()
    require_fit(theirs, mine, where)
    heads = verifier.architecture.encoder.heads
    if drafter.config.heads != heads:  # no weight's shape says it
        raise Spec2SeqError(f"{where}: heads is {drafter.config.heads}; needed: the verifier's {heads}")
    for name, weight in mine.items():
        weight.copy_(theirs[name])
