import json

import pytest
import torch
from evaluation.local import Local
from evaluation.tiny_folder import models, pairs

from spec2seq.evaluation import costs
from spec2seq.evaluation.bench import engines, rows, run, study
from spec2seq.evaluation.bench.recipe import Grid, Models, Recipe, Variant
from spec2seq.evaluation.peers import ct2, worker

LINES, TIMED = 6, 4
ASSISTED = Variant("assisted", {"num_assistant_tokens": 3})


@pytest.fixture(scope="session")
def local_workers():
    """Engines live in this process; nothing waits for threads to sleep."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "Worker", Local)
        patch.setattr(rows, "SAMPLES", 20)
        patch.setattr(engines, "fresh_peaks", lambda *given: {size: 100.0 * size for size in given[3]})
        patch.setattr(costs, "REPEATS", 2)
        patch.setattr(costs, "ARRAY", 1 << 20)
        patch.setattr(ct2, "_convert_apart", ct2.convert)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def recipe():
    return Recipe(
        variants=(ASSISTED,), batch_sizes=(1, 2), dtype=("float32", "int8"), lines=TIMED, rounds=2, side_rounds=1,
        batch_rounds=1, quality_lines=LINES, threads=1, metrics=("bleu", "chrf"),
        study=Grid((8, 16), (1, 2), 2, 1, (ASSISTED, Variant("lookup", {"num_lookup_tokens": 2}))),
    )  # fmt: skip


@pytest.fixture(scope="session")
def results(local_workers, recipe):
    """Of a bench of the tiny models: no block drafter lies beside them."""
    said = []
    made = run.run_bench(Models(str(models())), pairs(LINES), "lines.tsv", recipe, "the command", said.append)
    return json.loads(json.dumps(made | {"said": said}))


@pytest.fixture(scope="session")
def studied(local_workers, recipe):
    return json.loads(json.dumps(study.run_study(Models(str(models())), pairs(20), "lines.tsv", recipe, "the study")))
