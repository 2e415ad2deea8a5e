"""CNN/DailyMail 3.0.0: articles to highlights, one a line; validation has 13,368 lines."""

from spec2seq.tasks.task import Published, Task

TASKS = (
    Task(
        "cnn_dailymail", "abisee/cnn_dailymail", "article", "highlights", "rougeLsum", config="3.0.0",
        prefix="summarize: ",
        published=Published(
            "kssteven/T5-large-cnndm", "kssteven/T5-small-cnndm", "kssteven/T5-small-cnndm-bild-aligned",
            "google-t5/t5-small",
        ),
    ),
)  # fmt: skip
