"""Released fairseq checkpoints (Ott et al. 2019) as folders that Transformers and spec2seq load.

A `transformer` becomes Transformers' FSMT: its sinusoids, which start at row 2 and whose exponents are over half the
width less one, are fairseq's own. Marian's class could hold them in its table, but leaves the table out when it saves.
A `bart_base` becomes BART, a `block` drafter the folder of a `PaperDrafter`. All three keep every number as it is.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spec2seq.errors import Spec2SeqError
from spec2seq.models.bart_like import CROSS_ATTENTION, FEED_FORWARD, SELF_ATTENTION
from spec2seq.models.drafter_folder import whole_folder
from spec2seq.models.fingerprint import fingerprint
from spec2seq.models.paper_drafter import PaperConfig, PaperDrafter
from spec2seq.models.restricted import read_checkpoint

State = dict[str, Tensor]
BOS, PAD, EOS, UNK = range(4)
FIRST_ROW = 2  # of a position table: fairseq counts from the pad id + 1
LONGEST_OUTPUT = 200  # fairseq's max_len_b
SIDES = ("encoder", "decoder")
OLD_NORMS = {
    "encoder": ("self_attn_layer_norm", "final_layer_norm"),
    "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
}


def import_fairseq(
    checkpoint: str | Path,
    dictionary: str | Path,
    out: str | Path,
    *,
    drafter: str | Path | None = None,
    codes: str | Path | None = None,
    moses: str | None = None,
) -> None:
    """Write the folder `out` with a verifier, its tokenizer, and in `out/drafter` its drafter.

    Args:
        checkpoint: a `transformer` or a `bart_base` that shares all its embeddings.
        dictionary: the dictionary of source and target.
        out: a folder that does not exist yet; it appears whole or not at all.
        drafter: a `block` checkpoint.
        codes: subword-nmt codes; None: texts come segmented.
        moses: two languages, such as "en-de", to tokenize and detokenize by Moses; None: texts come tokenized.

    Raises Spec2SeqError for what is something else, or does not fit together.
    """
    import transformers  # slow to import

    from spec2seq.models import families, subwords

    ids = subwords.read_dictionary(dictionary)
    settings, state = read_model(checkpoint, len(ids))
    config = _verifier_config(settings, state, str(checkpoint))
    model = transformers.AutoModelForSeq2SeqLM.from_config(config, dtype=state["encoder.embed_tokens.weight"].dtype)
    _fill(model, state, str(checkpoint))
    settings = {"codes": subwords.read_codes(codes) if codes else None, "moses": moses}
    tokenizer = subwords.word_tokenizer(ids, **{name: value for name, value in settings.items() if value})
    # Greedy, with fairseq's cap.
    model.generation_config.update(num_beams=1, max_length=None, max_new_tokens=LONGEST_OUTPUT)
    with whole_folder(out) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if drafter is not None:
            ours = families.load(model.config, model.state_dict(), str(checkpoint))
            drafter_from(drafter, len(ids), fingerprint(ours)).save_pretrained(temporary / "drafter")


def drafter_from(checkpoint: str | Path, vocabulary: int, verifier: str | None = None) -> PaperDrafter:
    """The drafter of a `block` checkpoint; its position tables may have any number of rows.

    Raises Spec2SeqError for another architecture.
    """
    settings, state = read_model(checkpoint, vocabulary)
    if "decoder.copy_attn.weight" not in state:
        raise Spec2SeqError(f"{checkpoint}: no decoder.copy_attn; allowed: a drafter of architecture block that copies")
    config = _drafter_config(settings, state, str(checkpoint), verifier)
    ours = {
        "embedding": state["encoder.embed_tokens.weight"],
        "source_positions": state["encoder.embed_positions.weight"][FIRST_ROW:],
        "target_positions": state["decoder.embed_positions.weight"][FIRST_ROW:],
        "copy_query.weight": state["decoder.copy_attn.weight"],
    }
    for side, count in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        for index in range(count):
            ours |= _layer(state, f"{side}.layers.{index}", f"{side}.{index}", side == "decoder", str(checkpoint))
    with torch.device("meta"):
        model = PaperDrafter(config)
    try:
        model.load_state_dict(ours, assign=True)
    except RuntimeError as error:
        raise Spec2SeqError(f"{checkpoint}: {' '.join(str(error).split())}") from None
    return model.eval()


def _drafter_config(settings: dict[str, Any], state: State, where: str, verifier: str | None) -> PaperConfig:
    vocabulary, width = state["encoder.embed_tokens.weight"].shape
    return PaperConfig(
        vocabulary=vocabulary,
        width=width,
        heads=int(_setting(settings, "encoder_attention_heads", where)),
        ffn_width=state["encoder.layers.0.fc1.weight"].shape[0],
        encoder_layers=_layers(state, "encoder"),
        decoder_layers=_layers(state, "decoder"),
        source_positions=_positions(state, "encoder", where),
        target_positions=_positions(state, "decoder", where),
        eos_token_id=EOS,
        pad_token_id=PAD,
        block_size=int(_setting(settings, "block_size", where)),
        activation=settings.get("activation_fn", "relu"),
        dropout=float(settings.get("dropout", 0.1)),
        mask_token_id=UNK,
        verifier=verifier,
    )


def read_model(path: str | Path, vocabulary: int) -> tuple[dict[str, Any], State]:
    """The settings and the tensors of a checkpoint, under the names that fairseq 1.0 gives them.

    Raises Spec2SeqError unless its embeddings are shared and have one row for each of `vocabulary` tokens.
    """
    found = read_checkpoint(path)
    if not isinstance(found.get("model"), dict):
        raise Spec2SeqError(f"{path}: no fairseq checkpoint: it has no 'model'")
    settings = _settings(found)
    state = _present_names(found["model"])
    table = state.get("encoder.embed_tokens.weight")
    if table is None:
        raise Spec2SeqError(f"{path}: encoder.embed_tokens.weight is missing")
    if table.shape[0] == vocabulary + 1 and "decoder.layernorm_embedding.weight" in state:
        # BART's own vocabulary ends in <mask>, which the dictionary file does not list.
        for name in ("encoder.embed_tokens", "decoder.embed_tokens", "decoder.output_projection"):
            state[f"{name}.weight"] = state[f"{name}.weight"][:vocabulary]
        table = state["encoder.embed_tokens.weight"]
    if table.shape[0] != vocabulary:
        raise Spec2SeqError(
            f"{path}: its vocabulary has {table.shape[0]} entries, and the dictionary {vocabulary} with special ones"
        )
    for name in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        if not torch.equal(state[name], table):
            raise Spec2SeqError(f"{path}: {name} differs from the encoder's; allowed: all embeddings shared")
    return settings, state


def _settings(found: dict[str, Any]) -> dict[str, Any]:
    """The model's settings, wherever this version of fairseq put them."""
    arguments = found.get("args")
    if arguments is None:
        node = found.get("cfg")
        content = node if isinstance(node, dict) else getattr(node, "_content", {})
        arguments = content.get("model")
        arguments = getattr(arguments, "_val", arguments)
    if arguments is None:
        return {}
    return arguments if isinstance(arguments, dict) else vars(arguments)


def _present_names(old: State) -> State:
    """Undo older spellings, and leave out what holds no weights."""
    state: State = {}
    for name, tensor in old.items():
        name = name.replace("decoder.embed_out", "decoder.output_projection.weight")
        if re.search(r"(\.version|_float_tensor|embed_positions\.weights)$", name):
            continue
        norm = re.fullmatch(r"(encoder|decoder)(\.layers\.\d+\.)layer_norms\.(\d)\.(weight|bias)", name)
        fused = re.fullmatch(r"(.+\.)in_proj_(weight|bias)", name)
        if norm:
            side, middle, place, kind = norm.groups()
            state[f"{side}{middle}{OLD_NORMS[side][int(place)]}.{kind}"] = tensor
        elif fused:
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                state[f"{fused[1]}{part}_proj.{fused[2]}"] = chunk
        else:
            state[name] = tensor
    if "decoder.embed_tokens.weight" in state:
        state.setdefault("decoder.output_projection.weight", state["decoder.embed_tokens.weight"])
    return state


def _verifier_config(settings: dict[str, Any], state: State, where: str) -> Any:
    """FSMT's configuration for sinusoids, BART's for learned positions and normed embeddings."""
    import transformers

    if any(f"{side}.layer_norm.weight" in state for side in SIDES):
        raise Spec2SeqError(f"{where}: normalizes before each layer; allowed: after it")
    if "decoder.copy_attn.weight" in state:
        raise Spec2SeqError(f"{where}: is a drafter of architecture block; allowed here: transformer, bart_base")
    vocabulary, width = state["encoder.embed_tokens.weight"].shape
    shape = dict(
        d_model=width, activation_function=settings.get("activation_fn", "relu"),
        dropout=float(settings.get("dropout", 0.1)), scale_embedding=not settings.get("no_scale_embedding", False),
        tie_word_embeddings=True, bos_token_id=BOS, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=EOS,
        forced_eos_token_id=None,
    )  # fmt: skip
    for side in SIDES:
        shape[f"{side}_layers"] = _layers(state, side)
        shape[f"{side}_attention_heads"] = int(_setting(settings, f"{side}_attention_heads", where))
        shape[f"{side}_ffn_dim"] = state[f"{side}.layers.0.fc1.weight"].shape[0]
    parts = {f"{side}.{part}.weight" in state for side in SIDES for part in ("embed_positions", "layernorm_embedding")}
    if parts == {True}:
        source, target = (_positions(state, side, where) for side in SIDES)
        if source != target:
            raise Spec2SeqError(f"{where}: has positions for {source} and {target} tokens; allowed: equally many")
        return transformers.BartConfig(vocab_size=vocabulary, max_position_embeddings=source, **shape)
    if parts != {False}:
        raise Spec2SeqError(f"{where}: is neither a transformer with sinusoids nor a bart_base")
    most = max(int(settings.get(f"max_{side}_positions", 1024)) for side in ("source", "target"))
    return transformers.FSMTConfig(
        src_vocab_size=vocabulary, tgt_vocab_size=vocabulary, max_position_embeddings=most, num_beams=1, **shape
    )


def _fill(model: Any, state: State, where: str) -> None:
    """Give Transformers' model the tensors. Raises Spec2SeqError unless every one has its place."""
    theirs = {f"model.{name}": tensor for name, tensor in state.items()}
    if model.config.model_type == "bart":
        theirs["lm_head.weight"] = theirs.pop("model.decoder.output_projection.weight")
        theirs["model.shared.weight"] = theirs["lm_head.weight"]
        theirs["final_logits_bias"] = model.final_logits_bias
    else:
        theirs |= {name: value for name, value in model.state_dict().items() if "embed_positions" in name}
    try:
        model.load_state_dict(theirs)
    except RuntimeError as error:
        raise Spec2SeqError(f"{where}: {' '.join(str(error).split())}") from None


def _layer(state: State, theirs: str, ours: str, cross: bool, where: str) -> State:
    """One layer's tensors under our names."""
    parts = SELF_ATTENTION + (CROSS_ATTENTION if cross else []) + FEED_FORWARD
    try:
        return {
            f"{ours}.{name}.{kind}": torch.cat([state[f"{theirs}.{source}.{kind}"] for source in sources])
            for name, sources in parts
            for kind in ("weight", "bias")
        }
    except KeyError as error:
        raise Spec2SeqError(f"{where}: {error.args[0]} is missing") from None


def _layers(state: State, side: str) -> int:
    return 1 + max(int(name.split(".")[2]) for name in state if name.startswith(f"{side}.layers."))


def _positions(state: State, side: str, where: str | Path) -> int:
    table = state.get(f"{side}.embed_positions.weight")
    if table is None:
        raise Spec2SeqError(f"{where}: {side}.embed_positions.weight is missing; allowed: learned positions")
    return table.shape[0] - FIRST_ROW


def _setting(settings: dict[str, Any], name: str, where: str | Path) -> Any:
    if name not in settings:
        raise Spec2SeqError(f"{where}: its settings have no {name}")
    return settings[name]
