"""What a bench measures: the keys of recipes/bench/*.yaml, which are also flags of `spec2seq bench`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spec2seq.config import build, check_choice, check_range, load_mapping
from spec2seq.errors import UsageError

OURS = ("greedy", "beam", "assisted", "lookup", "bild", "specdec")
PEERS = ("hf", "hf-beam", "hf-assisted", "hf-lookup", "ctranslate2", "ctranslate2-beam")
METRICS = ("bleu", "chrf", "rouge")
TORCH_DTYPES = ("float32", "bfloat16", "float16", "float64")  # Transformers'; ours are these and int8
CT2_DTYPES = ("float32", "float16", "bfloat16", "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16")


@dataclass(frozen=True)
class Variant:
    """One more row of ours: a method with parameters."""

    method: str
    parameters: dict = field(default_factory=dict)

    def __post_init__(self):
        check_choice("method", self.method, OURS)


@dataclass(frozen=True)
class Grid:
    """The study of lengths and batch sizes: `words` of a source at batch size 1, `batch_sizes` over the timed lines.

    `fixed` are methods with a fixed draft, whose break-even the adaptive rule of the same method should find.
    """

    words: tuple[int, ...] = (5, 10, 20, 40, 80, 120, 200)
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    lines: int = 6  # a length
    rounds: int = 3
    fixed: tuple[Variant, ...] = (
        Variant("specdec", {"block_size": 4}),
        Variant("assisted", {"num_assistant_tokens": 4}),
        Variant("lookup", {"num_lookup_tokens": 4}),
    )


@dataclass(frozen=True)
class Models:
    """Folders or ids of the hub. None: little/ and drafter/ in the verifier's folder, where they are there."""

    verifier: str
    little: str | None = None
    drafter: str | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything but the models and the data. An engine runs those dtypes that it has; a baseline that has not a row's
    own runs in the first."""

    methods: tuple[str, ...] = OURS
    variants: tuple[Variant, ...] = ()
    peers: tuple[str, ...] = PEERS
    dtype: tuple[str, ...] = ("float32", "int8")
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    lines: int = 64  # timed, stratified by length
    rounds: int = 7
    side_rounds: int = 3  # of beam search, of variants, and of peers' methods other than greedy
    batch_rounds: int = 3  # at batch sizes above 1
    quality_lines: int | None = 500  # stratified by length; none: all
    metrics: tuple[str, ...] = ("bleu", "chrf")
    fields: tuple[str, ...] = ("source", "reference")  # of a .jsonl
    prefix: str = ""  # before every source
    threads: int | None = None  # None: all; an engine that is faster with one is given one
    device: str = "cpu"
    memory: bool = True
    openmp: str = "passive"  # how waiting threads of every engine wait
    study: Grid = Grid()

    def __post_init__(self):
        for name, values, allowed in (
            ("methods", self.methods, OURS), ("peers", self.peers, PEERS), ("metrics", self.metrics, METRICS),
            ("dtype", self.dtype, dict.fromkeys(TORCH_DTYPES + CT2_DTYPES)),
            ("openmp", [self.openmp], ("passive", "default")),
        ):  # fmt: skip
            for value in values:
                check_choice(name, value, allowed)
        for name in ("lines", "rounds", "side_rounds", "batch_rounds", "quality_lines", "threads"):
            check_range(name, getattr(self, name), low=1)
        for size in (*self.batch_sizes, *self.study.batch_sizes):
            check_range("batch_sizes", size, low=1)
        if "greedy" not in self.methods or not self.dtype or self.dtype[0] not in TORCH_DTYPES:
            raise UsageError("every ratio is taken to our greedy: methods must hold 'greedy', and dtype begin with one "
                             f"of {', '.join(TORCH_DTYPES)}")  # fmt: skip
        if not self.batch_sizes or self.batch_sizes[0] != 1:
            raise UsageError(f"batch_sizes is {list(self.batch_sizes)}; allowed: a list that begins with 1")
        if len(self.fields) != 2:
            raise UsageError(f"fields is {list(self.fields)}; allowed: the names of the source and of the reference")


def load_recipe(path: Path | None, given: dict[str, Any]) -> Recipe:
    """The recipe in a YAML file (None: the defaults) with the values `given` over it. Raises UsageError naming an
    unknown key or a value that is not allowed."""
    values = load_mapping(path) if path is not None else {}
    return build(Recipe, values | given, str(path) if path is not None else "bench")


@dataclass(frozen=True)
class Contender:
    """A method of an engine with its parameters and a dtype: a row at each batch size."""

    engine: str
    method: str
    parameters: dict[str, Any] = field(default_factory=dict, hash=False)
    dtype: str = "float32"
    again: bool = False  # the baseline once more: how much two measurements of the same thing differ
    side: bool = False  # fewer rounds

    @property
    def name(self) -> str:
        shown = ", ".join(f"{key}={value}" for key, value in self.parameters.items())
        return f"{self.engine} {self.method} {self.dtype} ({shown})" + (" again" if self.again else "")

    def identity(self) -> dict[str, Any]:
        """What names its rows."""
        return {"engine": self.engine, "method": self.method, "parameters": self.parameters, "again": self.again,
                "dtype": self.dtype}  # fmt: skip


def our_dtypes(recipe: Recipe) -> list[str]:
    """Of the recipe's, those that this package's engine has."""
    return [dtype for dtype in recipe.dtype if dtype in (*TORCH_DTYPES, "int8")]


def contenders(recipe: Recipe) -> list[Contender]:
    """In each of our dtypes greedy, the same again, other methods and variants; then the peers in those they have."""
    theirs = [dtype for dtype in recipe.dtype if dtype in TORCH_DTYPES]
    ours = our_dtypes(recipe)
    made = []
    for dtype in ours:
        made += [Contender("spec2seq", "greedy", dtype=dtype, again=again) for again in (False, True)]
        made += [Contender("spec2seq", method, dtype=dtype, side=method == "beam") for method in recipe.methods]
        made += [Contender("spec2seq", v.method, v.parameters, dtype, side=True) for v in recipe.variants]
    for peer in recipe.peers:
        engine, _, method = peer.partition("-")
        dtypes = recipe.dtype if engine == "ctranslate2" else theirs
        made += [
            Contender(engine, method or "greedy", dtype=dtype, side=bool(method))
            for dtype in dtypes
            if engine != "ctranslate2" or dtype in CT2_DTYPES
        ]
    return list({contender.name: contender for contender in made}.values())
