"""Java API sequences from descriptions, of the reproduction of BiLD; 2,441 lines. The names of its fields are not
known for certain: `--source-field` and `--target-field` set others."""

from spec2seq.tasks.task import Published, Task

TASKS = (
    Task(
        "java_code_api_generation", "paulh27/java_code_api_generation", "docstring", "code", "bleu",
        prefix="description for api: ",
        published=Published(
            "SEBIS/code_trans_t5_large_api_generation_transfer_learning_finetune",
            "SEBIS/code_trans_t5_small_api_generation_transfer_learning_finetune", None,
            "SEBIS/code_trans_t5_small_api_generation_transfer_learning_finetune",
        ),
    ),
)  # fmt: skip
