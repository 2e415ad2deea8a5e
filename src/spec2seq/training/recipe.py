"""The recipe: everything that decides a training run, as frozen dataclasses read from one YAML file."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from spec2seq.config import build, check_choice, check_range, load_mapping
from spec2seq.errors import UsageError
from spec2seq.models.cached_drafter_shape import CachedDrafterShape
from spec2seq.models.languages import Direction

FAMILIES = ("marian", "t5")
PRECISIONS = ("auto", "bf16", "fp32")


@dataclass(frozen=True)
class ModelShape:
    """The size of a fresh model. `width` is d_model, `feed_forward` the inner width; dropout is a probability.

    `start_from` is a trained folder of the same widths: its embeddings and evenly spaced layers are the first weights.
    `early_exit` trains the first so many decoder layers to write by themselves, too, through the same head.
    """

    family: str = "marian"
    width: int = 256
    encoder_layers: int = 6
    decoder_layers: int = 6
    heads: int = 4
    feed_forward: int = 1024
    activation: str = "relu"
    dropout: float = 0.0
    max_positions: int = 512
    start_from: str | None = None
    early_exit: int | None = None

    def __post_init__(self) -> None:
        check_choice("family", self.family, FAMILIES)
        check_choice("activation", self.activation, ("relu", "gelu", "swish"))
        for name, low, high in (("width", 8, 4096), ("encoder_layers", 1, 48), ("decoder_layers", 1, 48)):
            check_range(f"{name}", getattr(self, name), low, high)
        for name, low, high in (("heads", 1, 64), ("feed_forward", 8, 32768), ("max_positions", 16, 8192)):
            check_range(f"{name}", getattr(self, name), low, high)
        check_range("dropout", self.dropout, 0.0, 0.9)
        check_range("early_exit", self.early_exit, 1, self.decoder_layers - 1)
        if self.width % self.heads:
            raise UsageError(f"heads is {self.heads}; allowed: a divisor of width {self.width}")
        if self.family == "t5" and self.decoder_layers > self.encoder_layers:
            raise UsageError(
                f"decoder_layers is {self.decoder_layers}; allowed for t5: at most the {self.encoder_layers} of the "
                "encoder, or Transformers' own generate (5.23) fails, with which a run is validated"
            )


@dataclass(frozen=True)
class DataConfig:
    """Which files, and which of their lines train. Columns of a TSV are numbers, fields of a JSONL are names.

    A dot leads into an object (translation.de). `target_tokens` is the field of a JSONL with the target's token ids
    (as `spec2seq distill` writes them), used instead of segmenting its text. `prefix` stands before every source.
    Sources of more than `max_tokens` leave their line out, or with `truncate` are cut.

    For a model that hears, sources are audio files, from where the data file lies; `language`, `task` and `timestamps`
    are those of `transcribe`. Its lines are windows: `max_tokens` then bounds prompt and output, and what else filters
    lines does nothing.
    """

    train: str
    dev: str
    test: str | None = None
    source: str = "0"
    target: str = "1"
    target_tokens: str | None = None
    origin: str | None = "2"
    min_words: int = 1
    max_words: int = 200
    max_tokens: int = 200
    truncate: bool = False
    prefix: str = ""
    max_ratio: float = 3.0
    exclude_origins: tuple[str, ...] = ()
    dedupe: bool = True
    max_lines: int | None = None
    language: str | None = None
    task: str = "transcribe"
    timestamps: bool | None = None

    def __post_init__(self) -> None:
        check_range("min_words", self.min_words, 0, 10000)
        check_range("max_words", self.max_words, max(1, self.min_words), 100000)
        check_range("max_tokens", self.max_tokens, 2, 100000)
        check_range("max_ratio", self.max_ratio, 1.0, 1000.0)
        check_range("max_lines", self.max_lines, 1, None)


@dataclass(frozen=True)
class VocabularyConfig:
    """Train one joint SentencePiece vocabulary of `size`, or take that of a folder (`from:` in YAML)."""

    size: int = 8000
    character_coverage: float = 0.9998
    byte_fallback: bool = True
    from_: str | None = None

    def __post_init__(self) -> None:
        check_range("size", self.size, 64, 256000)
        check_range("character_coverage", self.character_coverage, 0.9, 1.0)
        for name in ("size", "character_coverage", "byte_fallback"):
            value = getattr(self, name)
            if self.from_ is not None and value != getattr(VocabularyConfig, name):
                raise UsageError(f"{name} is {value}; it does nothing beside from, which is {self.from_!r}")


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how fast. The run ends at the first of `max_steps`, `max_epochs`, `budget_minutes` that is set.

    `budget_minutes` counts wall clock over all sessions of the run; over the last `cooldown` of whichever limit is
    nearest, the learning rate falls linearly to zero. `tokens_per_batch` bounds rows x the longest sequence.
    """

    tokens_per_batch: int = 2048
    gradient_accumulation: int = 1
    learning_rate: float = 1e-3
    warmup_steps: int = 500
    cooldown: float = 0.2
    max_steps: int | None = None
    max_epochs: float | None = None
    budget_minutes: float | None = None
    label_smoothing: float = 0.1
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    precision: str = "auto"
    seed: int = 1
    threads: int | None = None
    log_seconds: float = 30.0
    save_minutes: float = 5.0
    average: int = 5

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)
        if self.max_steps is None and self.max_epochs is None and self.budget_minutes is None:
            raise UsageError("no limit is set; allowed: at least one of max_steps, max_epochs, budget_minutes")
        for name, low, high in (
            ("tokens_per_batch", 16, 10_000_000), ("gradient_accumulation", 1, 4096), ("learning_rate", 1e-8, 1.0),
            ("warmup_steps", 1, 1_000_000), ("cooldown", 0.0, 1.0), ("max_steps", 1, None),
            ("max_epochs", 0.001, None), ("budget_minutes", 0.01, None), ("label_smoothing", 0.0, 0.9),
            ("weight_decay", 0.0, 1.0), ("adam_beta1", 0.0, 0.99999), ("adam_beta2", 0.5, 0.99999),
            ("adam_epsilon", 0.0, 0.1), ("max_grad_norm", 0.0, None), ("threads", 1, 1024),
            ("log_seconds", 0.0, None), ("save_minutes", 0.0, None), ("average", 1, 100),
        ):  # fmt: skip
            check_range(f"{name}", getattr(self, name), low, high)


@dataclass(frozen=True)
class EvaluationConfig:
    """Validation by greedy decoding of `dev_lines` every `every_minutes`; `test_lines` None is the whole test set."""

    every_minutes: float = 10.0
    dev_lines: int = 200
    test_lines: int | None = None
    batch_size: int = 64
    max_new_tokens: int = 200

    def __post_init__(self) -> None:
        check_range("every_minutes", self.every_minutes, 0.0, None)
        for name in ("dev_lines", "test_lines", "batch_size", "max_new_tokens"):
            check_range(f"{name}", getattr(self, name), 1, None)


@dataclass(frozen=True)
class CardConfig:
    """What the model card says that no measurement can: languages, the data's origin and its licences."""

    source_language: str = "en"
    target_language: str = "en"
    licence: str = "other"
    data: str = ""
    data_licences: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CachedDrafterRecipe(CachedDrafterShape, Direction):
    """A block drafter on top of `verifier`, a trained folder. A block of slots stands behind every `stride`-th token
    of a training sentence."""

    verifier: str
    stride: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("stride", self.stride, 1, 64)

    @property
    def shape(self) -> CachedDrafterShape:
        values = asdict(self)
        return CachedDrafterShape(**{field.name: values[field.name] for field in fields(CachedDrafterShape)})


@dataclass(frozen=True)
class PaperDrafterRecipe(Direction):
    """The non-autoregressive drafter of SpecDec for `verifier`, a trained folder; see `PaperConfig`.

    With `init_encoder` its embedding and encoder layers start as the verifier's, which need its width, heads,
    feed-forward width and number of encoder layers. Of the slots guessed wrong, a share of `start_p` is revealed at
    first; it falls linearly by `minus_p` over `total_up` steps, None: over the run.
    """

    verifier: str
    width: int = 512
    heads: int = 8
    feed_forward: int = 2048
    encoder_layers: int = 6
    decoder_layers: int = 6
    block_size: int = 25
    activation: str = "gelu"
    dropout: float = 0.1
    source_positions: int = 1024
    target_positions: int = 1024
    init_encoder: bool = True
    start_p: float = 0.5
    minus_p: float = 0.2
    total_up: int | None = None

    def __post_init__(self) -> None:
        check_choice("activation", self.activation, ("relu", "gelu", "swish"))
        for name, low, high in (
            ("width", 8, 4096), ("heads", 1, 64), ("feed_forward", 8, 32768), ("encoder_layers", 1, 48),
            ("decoder_layers", 1, 48), ("dropout", 0.0, 0.9), ("source_positions", 16, 8192),
            ("target_positions", 16, 8192), ("block_size", 1, self.target_positions), ("start_p", 0.0, 0.95),
            ("minus_p", 0.0, self.start_p), ("total_up", 1, None),
        ):  # fmt: skip
            check_range(name, getattr(self, name), low, high)
        if self.width % self.heads:
            raise UsageError(f"heads is {self.heads}; allowed: a divisor of width {self.width}")


@dataclass(frozen=True)
class DistillationConfig:
    """Make the files that `data` names, base name by base name, from the output of `model` for other files of the same
    columns: `lines` sources of `train` that pass `data`'s filters of words, tokens and origins, and all of `dev` and
    `test`, where they are set; `num_beams` 1 is greedy, `batch_size` None what `distill` takes."""

    model: str
    train: str
    dev: str | None = None
    test: str | None = None
    lines: int | None = None
    num_beams: int = 1
    batch_size: int | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_range("lines", self.lines, 1, None)
        check_range("num_beams", self.num_beams, 1, 64)
        check_range("batch_size", self.batch_size, 1, None)
        check_choice("dtype", self.dtype, ("float32", "bfloat16", "int8"))


@dataclass(frozen=True)
class Recipe:
    """One training run. `name` names its folder under runs/. With `cached_drafter` or `paper_drafter` it trains that,
    and `model` and `vocabulary` are the verifier's."""

    name: str
    data: DataConfig
    training: TrainingConfig
    cached_drafter: CachedDrafterRecipe | None = None
    paper_drafter: PaperDrafterRecipe | None = None
    distillation: DistillationConfig | None = None
    model: ModelShape = field(default_factory=ModelShape)
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    card: CardConfig = field(default_factory=CardConfig)

    def __post_init__(self) -> None:
        if self.cached_drafter and self.paper_drafter:
            raise UsageError("cached_drafter and paper_drafter are both there; allowed: one of them")
        if self.drafter and (self.model, self.vocabulary) != (ModelShape(), VocabularyConfig()):
            raise UsageError("model and vocabulary are the verifier's when a drafter is trained; leave them out")
        if self.drafter and self.data.target_tokens is None:
            raise UsageError("data.target_tokens is not set; a drafter learns from what `spec2seq distill` wrote")
        if self.distillation:
            self._check_distillation()
        for name in ("language", "task", "timestamps"):
            value = getattr(self.data, name)
            if self.drafter is None and value != getattr(DataConfig, name):
                raise UsageError(f"data.{name} is {value!r}; it does nothing for a model that reads")
        if self.drafter is None and self.model.family == "marian":
            check_range("evaluation.max_new_tokens", self.evaluation.max_new_tokens, 1, self.model.max_positions)
        for name, most in self._limits():
            if self.data.max_tokens > most:
                raise UsageError(f"data.max_tokens is {self.data.max_tokens}; allowed: at most {name}, {most}")

    def _check_distillation(self) -> None:
        """What is distilled is JSONL, a file in one folder for each part of `data`, which is read by the same names."""
        names = {key: Path(getattr(self.data, key) or "").name for key in ("train", "dev", "test")}
        if len({*names.values()}) < 3:
            shown = ", ".join(filter(None, names.values()))
            raise UsageError(f"data names the files {shown}; allowed with distillation: names that differ")
        for key, name in names.items():
            if getattr(self.distillation, key) is not None and not name.endswith(".jsonl"):
                found = "not set" if not name else repr(getattr(self.data, key))
                raise UsageError(f"data.{key} is {found}; allowed, for distillation.{key} is set: NAME.jsonl")
        if self.data.source != "source":
            raise UsageError(f"data.source is {self.data.source!r}; allowed with distillation: source, as it writes it")

    @property
    def drafter(self) -> CachedDrafterRecipe | PaperDrafterRecipe | None:
        """The drafter that is trained; None if it is a model."""
        return self.cached_drafter or self.paper_drafter

    def _limits(self) -> list[tuple[str, int]]:
        """What bounds the tokens of a training line: names and numbers."""
        limits, paper = [("training.tokens_per_batch", self.training.tokens_per_batch)], self.paper_drafter
        if self.drafter is None:
            return [*limits, ("model.max_positions", self.model.max_positions)]
        if paper is None:
            return limits
        last = paper.target_positions - paper.block_size + 1  # a block may stand behind all tokens but one
        limits.append(("paper_drafter.source_positions", paper.source_positions))
        return [*limits, ("paper_drafter.target_positions - block_size + 1", last)]


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe. Raises UsageError that names the file, the key, the value and what is allowed."""
    return parse_recipe(load_mapping(path), str(path))


def parse_recipe(values: dict[str, Any], where: str = "recipe") -> Recipe:
    """A Recipe from a mapping, with `vocabulary.from` spelled as YAML does (`from` is a keyword of Python)."""
    values = dict(values)
    vocabulary = values.get("vocabulary")
    if isinstance(vocabulary, dict) and "from" in vocabulary:
        values["vocabulary"] = {("from_" if key == "from" else key): item for key, item in vocabulary.items()}
    return build(Recipe, values, where)
