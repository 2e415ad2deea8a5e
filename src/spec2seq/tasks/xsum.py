"""XSum: BBC articles to one sentence; validation has 11,332 lines, 11,327 of them with text on both sides."""

from spec2seq.tasks.task import Published, Task

TASKS = (
    Task(
        "xsum", "EdinburghNLP/xsum", "document", "summary", "rougeLsum", prefix="summarize: ",
        published=Published(
            "kssteven/T5-large-xsum", "kssteven/T5-small-xsum", "kssteven/T5-small-xsum-bild-aligned",
            "google-t5/t5-small",
        ),
    ),
)  # fmt: skip
