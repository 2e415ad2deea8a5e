"""The compiled library and the structures it is called with, field by field those of the C sources."""

import ctypes
import functools
from ctypes import POINTER, Structure, c_double, c_int, c_int64, c_void_p

from spec2seq.kernels.build import Unavailable, build

ACTIVATIONS = {
    "relu": 0, "gelu": 1, "gelu_new": 2, "gelu_pytorch_tanh": 2, "silu": 3, "swish": 3, "tanh": 4
}  # fmt: skip
PANEL = 64  # outputs of a linear layer that lie together
CODES = 64  # and inputs in int8, see code_width


def _structure(name: str, **fields: type) -> type[Structure]:
    return type(name, (Structure,), {"_fields_": list(fields.items())})


def _of(kind: type, names: str) -> dict[str, type]:
    return dict.fromkeys(names.split(), kind)


Linear = _structure("Linear", **_of(c_void_p, "weight codes scales sums bias"), **_of(c_int64, "inputs outputs"))
Norm = _structure("Norm", **_of(c_void_p, "weight bias"))
Layer = _structure(
    "Layer",
    **_of(Linear, "self_qkv self_out cross_query cross_key_value cross_out ffn_in ffn_out"),
    **_of(Norm, "self_norm cross_norm ffn_norm"),
)
Stack = _structure(
    "Stack",
    layers=POINTER(Layer),
    **_of(c_int64, "count width heads head_width ffn_width activation gated pre_norm cross"),
    **_of(c_double, "eps scale"),
    final_norm=POINTER(Norm),
    relative=c_void_p,
    **_of(c_int64, "reach relative_layer"),
)
Places = _structure("Places", data=c_void_p, **_of(c_int64, "layer part row head halves"))
Pass = _structure(
    "Pass",
    **_of(c_void_p, "input output hidden"),
    **_of(c_int64, "rows length horizon"),
    **_of(c_void_p, "row_of first"),
    own=Places,
    origins=c_void_p,
    origin_stride=c_int64,
    **_of(c_void_p, "starts ends"),
    **_of(c_int64, "ends_row ends_query causal"),
    mask=c_void_p,
    **_of(c_int64, "mask_row mask_head mask_query"),
    source=Places,
    source_lengths=c_void_p,
    **_of(c_int64, "sources source_horizon"),
)
Chooser = _structure(
    "Chooser", **_of(Linear, "state token out head"), **_of(c_void_p, "embedding shortlist"), width=c_int64
)
Embedding = _structure(
    "Embedding", **_of(c_void_p, "table positions"), **_of(c_int64, "places offset pad"), scale=c_double,
    norm=POINTER(Norm),
)  # fmt: skip
Decoder = _structure("Decoder", stack=POINTER(Stack), embedding=Embedding, head=Linear, logit_scale=c_double)
RULES = {
    "suppress": 0, "force": 1, "ban_sequences": 2, "no_repeat": 3, "penalize": 4, "renormalize": 5, "timestamps": 6
}  # fmt: skip
COUNTED = {"before": 0, "written": 1, "behind": 2, "left": 3}
Rule = _structure(
    "Rule", **_of(c_int64, "kind counted low high"), tokens=c_void_p, **_of(c_int64, "count size"), value=c_double
)
Rules = _structure(
    "Rules", rules=POINTER(Rule), count=c_int64, tokens=c_void_p, token_stride=c_int64, **_of(c_void_p, "limits given")
)
Scored = _structure("Scored", tokens=c_void_p, stride=c_int64, **_of(c_void_p, "logits best"), rules=POINTER(Rules))
Drafter = _structure(
    "Drafter", stack=POINTER(Stack), mix=Linear, slots=c_void_p, chooser=POINTER(Chooser), hidden_layers=c_void_p,
    hidden=c_int64,
)  # fmt: skip
Lookup = _structure(
    "Lookup",
    **_of(c_int64, "rows k longest shortest"),
    source=c_void_p,
    source_stride=c_int64,
    **_of(c_void_p, "source_lengths tokens"),
    token_stride=c_int64,
    **_of(c_void_p, "lengths limits drafted counts"),
    width=c_int64,
)
LittleDraft = _structure(
    "LittleDraft",
    decoder=POINTER(Decoder),
    **_of(c_int64, "rows k"),
    tokens=c_void_p,
    token_stride=c_int64,
    **_of(c_void_p, "lengths limits source_lengths fed room"),
    source_horizon=c_int64,
    **_of(Places, "own source"),
    shortlist=c_void_p,
    **_of(c_int64, "eos common"),
    confidence=c_double,
    **_of(c_void_p, "drafted counts unsure passes read"),
    width=c_int64,
)
Continuations = _structure(
    "Continuations",
    **_of(c_void_p, "logits scores"),
    **_of(c_int64, "sentences beams vocabulary wanted"),
    best=c_void_p,
    rules=POINTER(Rules),
    length=c_int64,
)
Iteration = _structure(
    "Iteration",
    verifier=POINTER(Decoder),
    drafter=POINTER(Drafter),
    little=POINTER(LittleDraft),
    lookup=POINTER(Lookup),
    **_of(c_void_p, "given given_lengths"),
    given_stride=c_int64,
    **_of(c_int64, "rows k horizon"),
    tokens=c_void_p,
    token_stride=c_int64,
    **_of(c_void_p, "lengths limits source_lengths"),
    source_horizon=c_int64,
    **_of(Places, "own source draft_own draft_source"),
    **_of(c_void_p, "fed pending"),
    **_of(c_int64, "pending_stride eos beta"),
    **_of(c_double, "tau rollback"),
    trusts_ends=c_int64,
    rules=POINTER(Rules),
    blank=c_void_p,
    report=c_void_p,
    **_of(c_int64, "report_stride most ran"),
    seconds=c_double * 3,
)

FUNCTIONS = {
    "spec2seq_stack": (POINTER(Stack), POINTER(Pass), c_int),
    "spec2seq_source": (POINTER(Stack), POINTER(Pass), POINTER(Places), c_int),
    "spec2seq_linear": (POINTER(Linear), c_void_p, c_int64, c_void_p, c_int),
    "spec2seq_decode": (POINTER(Decoder), POINTER(Pass), POINTER(Scored), c_int),
    "spec2seq_draft": (POINTER(LittleDraft), c_int),
    "spec2seq_lookup": (POINTER(Lookup), c_int),
    "spec2seq_continue": (POINTER(Continuations), c_int),
    "spec2seq_iterate": (POINTER(Iteration), c_int),
    "spec2seq_choose": (POINTER(Chooser), c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_int),
}


@functools.cache
def find() -> tuple[ctypes.CDLL | None, str]:
    """The library, compiled if need be; or None and the reason why there is none."""
    try:
        library = ctypes.CDLL(str(build()))
    except (Unavailable, OSError) as error:
        return None, str(error)
    for name, arguments in FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, c_int
    return library, ""
