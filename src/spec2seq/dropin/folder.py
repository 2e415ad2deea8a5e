"""A folder that Transformers runs as `model.generate(custom_generate=FOLDER, trust_remote_code=True)`, also from the
hub. In a model's own folder it replaces `generate` of the model that is loaded with `trust_remote_code=True`."""

from pathlib import Path

from spec2seq.errors import Spec2SeqError
from spec2seq.files import write_text
from spec2seq.models.drafter_folder import whole_folder
from spec2seq.version import __version__

NAME = "custom_generate"

GENERATE = '''"""Generation by spec2seq: the same tokens, sooner. Called by `model.generate`."""

import spec2seq


def generate(model, **arguments):
    """The arguments of `model.generate`, and of `spec2seq.generate` (method, executor)."""
    return spec2seq.generate(model, **arguments)
'''

README = """---
library_name: transformers
tags:
- custom_generate
---

# spec2seq

Generation for encoder-decoder models by spec2seq (`pip install spec2seq`), over the model's own weights:

```python
model.generate(**inputs, custom_generate="this folder or repository", trust_remote_code=True)
```

writes what `model.generate(**inputs)` does, token for token, in greedy decoding and beam search. With
`assistant_model=` a smaller model drafts, in batches, too; `method=spec2seq.Lookup()` drafts from the source.
"""


def save_custom_generate(folder: str | Path) -> Path:
    """Write `custom_generate/` with generate.py and requirements.txt into `folder`, a new one or a model's, and a
    README.md where there is none. Returns the folder. Raises Spec2SeqError if it has a custom_generate already."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise Spec2SeqError(f"{folder}: is no folder")
    with whole_folder(folder / NAME) as inner:
        write_text(inner / "generate.py", GENERATE)
        write_text(inner / "requirements.txt", f"spec2seq>={__version__}\n")
    if not (folder / "README.md").exists():
        write_text(folder / "README.md", README)
    return folder
