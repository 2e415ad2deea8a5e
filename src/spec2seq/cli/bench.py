"""The subcommands that measure: bench, report."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from spec2seq.cli.flags import quiet
from spec2seq.cli.flags import report as say
from spec2seq.errors import UsageError
from spec2seq.options import bundled_model

Names = str | None


def bench(
    models: Annotated[
        Names, typer.Option(metavar="NAME", help="folder or hub id of the verifier (default: the bundled one)")
    ] = None,
    little: Annotated[
        Names, typer.Option(metavar="NAME", help="of a little model (default: little/ in the verifier's folder)")
    ] = None,
    drafter: Annotated[
        Names, typer.Option(metavar="NAME", help="of a block drafter (default: drafter/ likewise)")
    ] = None,
    prefix: Annotated[Names, typer.Option(help="what stands before every source, such as 'summarize: '")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help=".tsv: source TAB reference, or .jsonl (default: $SPEC2SEQ_DATA's test file, else the sample)"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for the results")] = Path("out/bench"),
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML or JSON with the options below as keys; flags win")
    ] = None,
    methods: Annotated[Names, typer.Option(help="greedy, beam, assisted, lookup, bild, specdec, with commas")] = None,
    peers: Annotated[
        Names,
        typer.Option(
            help="hf, ctranslate2, with commas; also hf-beam, hf-assisted, hf-lookup, ctranslate2-beam; or none"
        ),
    ] = None,
    dtype: Annotated[Names, typer.Option(help="with commas, the baselines' first; an engine runs those it has")] = None,
    batch_sizes: Annotated[Names, typer.Option(help="with commas, beginning with 1")] = None,
    threads: Annotated[int | None, typer.Option(help="of every engine")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda, of every engine")] = None,
    lines: Annotated[int | None, typer.Option(help="timed, stratified by length")] = None,
    rounds: Annotated[int | None, typer.Option(help="interleaved, at batch size 1")] = None,
    quality_lines: Annotated[int | None, typer.Option(help="decoded once for quality, stratified by length")] = None,
    metrics: Annotated[Names, typer.Option(help="bleu, chrf, rouge, with commas")] = None,
    study: Annotated[
        bool, typer.Option("--study", help="measure the study of lengths and batch sizes instead")
    ] = False,
) -> None:
    """Measure our methods beside Transformers and CTranslate2.

    Writes results.json (--study: study.json) and the report into OUT.
    """
    given = {
        "methods": methods, "peers": peers, "dtype": dtype, "batch_sizes": batch_sizes, "threads": threads,
        "device": device, "lines": lines, "rounds": rounds, "quality_lines": quality_lines, "metrics": metrics,
        "prefix": prefix,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    names = {"models": models, "little": little, "drafter": drafter}
    shown = {key: Path(name) if name and Path(name).exists() else name for key, name in names.items()}
    command = _command({**shown, "data": data, "config": config, **given, "study": study})
    quiet()
    from spec2seq.evaluation.bench.recipe import Models, load_recipe
    from spec2seq.evaluation.bench.run import run_bench
    from spec2seq.evaluation.bench.study import run_study
    from spec2seq.evaluation.report import write_report
    from spec2seq.evaluation.sample import pairs_to_measure
    from spec2seq.files import write_json

    recipe = load_recipe(config, {name: _split(name, value) for name, value in given.items()})
    pairs, file = pairs_to_measure(data, recipe.fields)
    found = Models(models or bundled_model(), little, drafter)
    if study:
        write_json(out / "study.json", run_study(found, pairs, file, recipe, command))
    else:
        write_json(out / "results.json", run_bench(found, pairs, file, recipe, command, say))
    written = [out / ("study.json" if study else "results.json")]
    if (out / "results.json").is_file():
        written += write_report(out)
    print(*written, sep="\n")


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="what bench --out or demo --out was")],
    readme: Annotated[
        Path | None, typer.Option(help="also put the short table between the markers in this file")
    ] = None,
) -> None:
    """Write report.html and report.md from results.json.

    And from study.json, if it is there. Needs nothing but the JSON.
    """
    from spec2seq.evaluation.report import write_readme, write_report

    print(*write_report(folder), sep="\n")
    if readme is not None:
        write_readme(folder, readme)
        print(readme)


def _split(name: str, value: Any) -> Any:
    """Names with commas as a list; batch sizes as integers. Raises UsageError for one that is none."""
    if name not in ("methods", "peers", "dtype", "batch_sizes", "metrics"):
        return value
    names = [part.strip() for part in value.split(",") if part.strip() not in ("", "none")]
    if name != "batch_sizes":
        return names
    if not all(part.isdecimal() for part in names):
        raise UsageError(f"--batch-sizes is {value!r}; allowed: integers with commas")
    return [int(part) for part in names]


def _command(given: dict[str, Any]) -> str:
    """The call as one can repeat it; of a file elsewhere only the name, which is no secret of this machine."""
    words = ["spec2seq bench"]
    for name, value in given.items():
        if value in (None, False):
            continue
        words.append("--" + name.replace("_", "-"))
        if isinstance(value, Path):
            value = value.name if value.is_absolute() else value.as_posix()
        words += [] if value is True else [shlex.quote(str(value))]
    return " ".join(words)
