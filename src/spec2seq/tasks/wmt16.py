"""WMT16 Romanian–English; validation is newsdev2016, 1,999 lines."""

from spec2seq.tasks.task import Task

TASKS = (
    Task("wmt16-en-ro", "wmt/wmt16", "translation.en", "translation.ro", "bleu", config="ro-en"),
    Task("wmt16-ro-en", "wmt/wmt16", "translation.ro", "translation.en", "bleu", config="ro-en"),
)
