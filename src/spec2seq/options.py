"""The options of a run and of its method: one table, from which flags, config keys, help and docs are made."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spec2seq.config import load_mapping
from spec2seq.errors import UsageError
from spec2seq.option import METHODS, Option

# Methods that need a drafter, and where it is looked for beside the model; sample may have one, too.
BESIDE = {"specdec": "drafter", "assisted": "little", "bild": "little"}
# The variants of BiLD (docs/bild.md), and the options that do nothing in each.
FILTERS, _JUDGING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed"), ("verify_tail", "distance")
POLICIES = {
    "paper": FILTERS,
    "lossless": (*FILTERS, *_JUDGING, "rollback_threshold"),
    "sampling": (),
    "compat": (*FILTERS, *_JUDGING, "starts"),
}
# What belongs to a task more than to a run.
TASK = ("src_lang", "tgt_lang", "prefix", "max_len_a", "max_len_b")
DTYPES = ("float32", "int8", "bfloat16", "float16", "float64")
EXECUTORS = ("auto", "native", "torch")
UNSET: Any = type("Unset", (), {"__repr__": lambda self: "UNSET"})()


def _option(type_: type, help_: str, default: Any, *methods: str, **more: Any) -> Any:
    """A dataclass field with its line of the table; `_table` adds the name."""
    if methods:
        more["methods"] = methods
    return field(default=UNSET, metadata={"option": dict(type=type_, help=help_, default=default, **more)})


class _Given:
    def given(self, *names: str) -> dict[str, Any]:
        """Those of `names` that are set."""
        return {name: getattr(self, name) for name in names if getattr(self, name) is not UNSET}


@dataclass(frozen=True)
class RunOptions(_Given):
    """What every method takes. UNSET leaves it to the library."""

    model: str = _option(str, "folder or hub id of the model", "the bundled models/ende, if it is here")
    dtype: str = _option(str, "type of weights and arithmetic", "float32", choices=DTYPES)
    device: str = _option(str, "cpu, cuda or cuda:N", "cpu")
    executor: str = _option(str, "what runs the layers: native is compiled on this machine, for float32 and int8 on a "
                            "CPU; auto takes it where it can, and graphs on a GPU", "auto",
                            choices=EXECUTORS)  # fmt: skip
    device_memory: float = _option(float, "GiB of a GPU's memory that may be taken", "what is free", low=0.1)
    threads: int = _option(int, "CPU threads", "what PyTorch takes", low=1)
    batch_size: int = _option(int, "rows in flight; lines come out in groups of 16 times as many, or one by one at 1",
                              8, low=1)  # fmt: skip
    src_lang: str = _option(str, "language of the sources, such as eng_Latn or en_XX, as the tokenizer names it",
                            "the tokenizer's")  # fmt: skip
    tgt_lang: str = _option(str, "language to write", "the model's, if it has one")
    prefix: str = _option(str, "what stands before every source, such as 'summarize: '", "nothing")
    max_new_tokens: int = _option(int, "the most tokens of an output", "what the model's generation config says", low=1)
    max_len_a: float = _option(float, "the most tokens of an output per token of its source", "no such limit", low=0.0)
    max_len_b: int = _option(int, "so many beside --max-len-a", 0, low=0)
    truncate: bool = _option(bool, "cut sources that are longer than the model allows", False)


@dataclass(frozen=True)
class MethodOptions(_Given):
    """A method and its parameters. UNSET leaves a parameter to the library; one that the method does not take
    raises UsageError."""

    method: str = _option(
        str, "how to decode", "specdec or assisted where its drafter is found, else greedy", choices=METHODS
    )
    drafter: str = _option(
        str, "folder of the block drafter, folder or hub id of the little model, or early-exit, the model's own first "
        "layers; makes sample speculative", "specdec: MODEL/drafter; assisted, bild: MODEL/little; sample: none",
        *BESIDE, "sample")  # fmt: skip
    num_beams: int = _option(int, "beams of a sentence", "the model's, else 5", "beam", low=1)
    length_penalty: float = _option(float, "scores are divided by length to this power", "the model's, else 1.0",
                                    "beam")  # fmt: skip
    early_stopping: bool = _option(bool, "stop a sentence when it has num_beams hypotheses", "the model's, else false",
                                   "beam")  # fmt: skip
    n_best: int = _option(int, "hypotheses of a sentence to return, with their scores", "the model's, else 1", "beam",
                          low=1)  # fmt: skip
    temperature: float = _option(float, "divides the logits", "the model's, else 1.0", "sample", "bild", low=1e-6)
    top_k: int = _option(int, "only the k likeliest tokens; 0: all", "the model's, else 0", "sample", "bild", low=0)
    top_p: float = _option(float, "only the likeliest tokens that make up this mass", "the model's, else 1.0", "sample",
                           "bild", low=1e-6, high=1.0)  # fmt: skip
    min_p: float = _option(float, "only tokens at least this times as likely as the likeliest", "the model's, else 0",
                           "sample", "bild", low=0.0, high=1.0)  # fmt: skip
    typical_p: float = _option(float, "only the most typical tokens that make up this mass", "the model's, else 1.0",
                               "sample", "bild", low=1e-6, high=1.0)  # fmt: skip
    seed: int = _option(int, "same seed, same draws", 0, "sample", "bild", low=0, high=2**31 - 1)
    num_assistant_tokens: int | None = _option(
        int, "tokens to draft; auto chooses by measurement", "auto; sample: 4", "assisted", "sample",
        low=0, word="auto", with_drafter=True)  # fmt: skip
    assistant_confidence_threshold: float | None = _option(
        float, "end a draft where the drafter's top probability is below this", None, "assisted", "sample",
        low=0.0, high=1.0, word="none", with_drafter=True)  # fmt: skip
    num_lookup_tokens: int | None = _option(int, "tokens to copy; auto chooses by measurement", "auto", "lookup",
                                            low=0, word="auto")  # fmt: skip
    max_matching_ngram_size: int = _option(int, "the longest n-gram to look for", 3, "lookup", low=1)
    min_matching_ngram_size: int = _option(int, "the shortest n-gram to look for", 1, "lookup", low=1)
    block_size: int | None = _option(int, "tokens of a block; auto chooses by measurement, up to what the drafter was "
                                     "trained for", "auto", "specdec", low=1, word="auto")  # fmt: skip
    beta: int = _option(int, "accept drafted tokens among the verifier's top beta: lossy above 1; exact if neither "
                        "beta nor tau is set", 3, "assisted", "lookup", "specdec", low=1)  # fmt: skip
    tau: float = _option(float, "accept them at most this many nats below the best", 1.0, "assisted", "lookup",
                         "specdec", low=0.0)  # fmt: skip
    fallback_threshold: float | None = _option(
        float, "the verifier takes over where the little model's top probability is below this", 0.6, "bild",
        low=0.0, high=1.0, word="none")  # fmt: skip
    rollback_threshold: float | None = _option(
        float, "take back tokens whose negative log-probability under the verifier is above this", 2.0, "bild",
        low=0.0, word="none")  # fmt: skip
    max_draft_tokens: int | None = _option(int, "the longest draft; auto chooses by measurement, up to 10", 10, "bild",
                                           low=1, word="auto")  # fmt: skip
    policy: str = _option(str, "paper; lossless is greedy's output; sampling draws from both models; compat is the "
                          "authors' program with its defects, one text at a time", "paper", "bild",
                          choices=tuple(POLICIES))  # fmt: skip
    starts: str = _option(str, "who writes the first token", "drafter", "bild", choices=("drafter", "verifier"))
    verify_tail: bool = _option(bool, "verify drafts that end an output, too", False, "bild")
    distance: str = _option(str, "what is compared with the rollback threshold: -ln p of the token under the verifier, "
                            "or the divergence of both distributions", "cross-entropy", "bild",
                            choices=("cross-entropy", "kl"))  # fmt: skip

    def __post_init__(self):
        if self.method is UNSET:
            raise UsageError(f"method is not set; allowed: {', '.join(METHODS)}")
        values = {name: value for name, value in vars(self).items() if value is not UNSET}
        for name, value in values.items():
            object.__setattr__(self, name, OPTIONS[name].parse(value, name))
        refuse_idle(values, self.method)


def _table(cls: type) -> dict[str, Option]:
    return {item.name: Option(item.name, **item.metadata["option"]) for item in dataclasses.fields(cls)}


OPTIONS = _table(RunOptions) | _table(MethodOptions)


def refuse_idle(values: Mapping[str, Any], method: str, where: Callable[[str], str] = str, note: str = "") -> None:
    """Raise UsageError for the first of `values` that does nothing for `method`, naming it by `where`."""
    for name in values:
        option = OPTIONS[name]
        if method not in option.methods:
            takers = ", ".join(option.methods)
            raise UsageError(f"{where(name)} does nothing with method {method}{note}; methods that take it: {takers}")
        policy = values.get("policy", "paper")
        if method == "bild" and name in POLICIES[policy]:
            takers = ", ".join(other for other, idle in POLICIES.items() if name not in idle)
            raise UsageError(f"{where(name)} does nothing with policy {policy}; policies that take it: {takers}")
        if option.with_drafter and method == "sample" and "drafter" not in values:
            raise UsageError(f"{where(name)} does nothing with method sample without a drafter; give one")


def resolve(flags: Mapping[str, Any], config: Path | None = None) -> tuple[RunOptions, MethodOptions]:
    """Options from flags (None: not given) and from a config file of the same names; flags win.

    Raises UsageError for an unknown key, a wrong value, or an option that the method does not take.
    """
    values, where = {}, {}
    given = [(name, value, f"{config}: {name}") for name, value in (load_mapping(config) if config else {}).items()]
    for name, value, source in given:
        if name not in OPTIONS:
            near = difflib.get_close_matches(str(name), OPTIONS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(OPTIONS)}"
            raise UsageError(f"{config}: unknown key {name!r}; {hint}")
        values[name], where[name] = OPTIONS[name].parse(value, source), source
    for name, value in flags.items():
        if value is not None:
            flag = OPTIONS[name].flag
            values[name], where[name] = OPTIONS[name].parse(value, flag), flag
    run = {name: values.pop(name) for name in _table(RunOptions) if name in values}
    if "model" not in run:
        run["model"] = bundled_model()
    note = ""
    if "method" not in values:
        values["method"], note = _default_method(run["model"], values.get("drafter")), " (the default here)"
    method = values["method"]
    refuse_idle(values, method, lambda name: where[name], note)
    if method in BESIDE and "drafter" not in values:
        beside = Path(run["model"], BESIDE[method])
        if not (beside / "config.json").is_file():
            raise UsageError(f"method {method} needs a drafter, and {beside} has none; give --drafter FOLDER_OR_ID")
        values["drafter"] = str(beside)
    return RunOptions(**run), MethodOptions(**values)


def _default_method(model: str, drafter: str | None) -> str:
    if drafter is not None:
        return "specdec" if is_block_drafter(drafter) else "assisted"
    found = (method for method in ("specdec", "assisted") if Path(model, BESIDE[method], "config.json").is_file())
    return next(found, "greedy")


def is_block_drafter(folder: str) -> bool:
    """Whether a folder holds a block drafter rather than a model. An id on the hub is a model's."""
    config = Path(folder, "config.json")
    return config.is_file() and "drafter_type" in load_mapping(config)


def bundled_model() -> str:
    """The checkout's own model. Raises UsageError where there is none."""
    folder = Path(__file__).resolve().parents[2] / "models" / "ende"
    if not (folder / "config.json").is_file():
        raise UsageError("no model; give --model FOLDER_OR_ID")
    return str(folder)


def as_markdown() -> str:
    """The table for the docs."""
    lines = ["| option | config key | values | default | methods |", "|---|---|---|---|---|"]
    for name, option in OPTIONS.items():
        methods = ", ".join(option.methods) if option.of_method else "all"
        default = "none" if option.default is None else option.default
        lines.append(f"| `{option.flag}` | `{name}` | {option.allowed} | {default} | {methods} |")
    return "\n".join(lines) + "\n"
