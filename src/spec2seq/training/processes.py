"""The processes of one run, as `accelerate launch` starts them; without it there is one."""

from datetime import timedelta
from typing import Any

import torch

from spec2seq.errors import missing_extra

WAIT = timedelta(hours=12)


def processes() -> Any:
    """accelerate's PartialState: process_index, num_processes, is_main_process, wait_for_everyone.

    Raises Spec2SeqError if accelerate is not installed.
    """
    try:
        from accelerate import PartialState
    except ImportError:
        raise missing_extra("accelerate", "train") from None
    # It looks for processes of CPUs only if told. One may wait for another for hours: the shares of a job end apart.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=WAIT)
