"""WMT14 German–English; validation is newstest2013, 3,000 lines."""

from spec2seq.tasks.task import Published, Task

TASKS = (
    Task(
        "wmt14-de-en", "wmt/wmt14", "translation.de", "translation.en", "bleu", config="de-en",
        published=Published(
            "kssteven/mT5-large-wmt2014-de-en", "kssteven/mT5-small-wmt2014-de-en",
            "kssteven/mT5-small-wmt2014-de-en-bild-aligned", "google/mt5-small",
        ),
    ),
    Task("wmt14-en-de", "wmt/wmt14", "translation.en", "translation.de", "bleu", config="de-en"),
)  # fmt: skip
