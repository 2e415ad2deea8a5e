"""IWSLT 2017 German to English; validation has 888 lines. The data set is a program on the hub; what the hub converted
it to lies under another revision."""

from spec2seq.tasks.task import Published, Task

TASKS = (
    Task(
        "iwslt2017-de-en", "IWSLT/iwslt2017", "translation.de", "translation.en", "bleu", config="iwslt2017-de-en",
        revision="refs/convert/parquet",
        published=Published(
            "kssteven/mT5-large-iwslt2017-de-en", "kssteven/mT5-small-iwslt2017-de-en",
            "kssteven/mT5-small-iwslt2017-de-en-bild-aligned", "google/mt5-small",
        ),
    ),
)  # fmt: skip
