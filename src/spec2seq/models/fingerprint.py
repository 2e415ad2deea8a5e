"""Which weights a model has, in a form that survives another precision."""

import hashlib

from torch import nn

SAMPLE = 512  # values of a tensor


def fingerprint(model: nn.Module) -> str:
    """32 hexadecimal digits from the names, shapes and signs of the first values of every weight.

    Signs, because they are the same in float32, bfloat16 and float16.
    """
    known = getattr(model, "fingerprint", None)  # of weights that have become int8, whose small ones lost their sign
    if known is not None:
        return known
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {[*weight.shape]} ".encode())
        digest.update(weight.flatten()[:SAMPLE].signbit().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]
