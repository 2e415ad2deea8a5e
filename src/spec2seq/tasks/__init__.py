"""Tasks by name: which data, how they are put to a model, and how its outputs are scored."""

from spec2seq.config import check_choice
from spec2seq.tasks import cnn_dailymail, iwslt2017, java_code_api_generation, wmt14, wmt16, xsum
from spec2seq.tasks.task import LOCAL, Example, Published, Task

TASKS: dict[str, Task] = {
    task.name: task
    for room in (wmt14, wmt16, iwslt2017, xsum, cnn_dailymail, java_code_api_generation)
    for task in room.TASKS
} | {LOCAL.name: LOCAL}

__all__ = ["TASKS", "Example", "Published", "Task", "task_named"]


def task_named(name: str) -> Task:
    """Raises UsageError with the names there are."""
    check_choice("task", name, TASKS)
    return TASKS[name]
