"""The tokens by which a model that hears is told what to write, and says when something was said."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spec2seq.api import Seq2Seq
from spec2seq.errors import Spec2SeqError, UsageError

TASKS = ("transcribe", "translate")
NO_TIMESTAMPS, PREVIOUS = "<|notimestamps|>", "<|startofprev|>"
SECONDS = 0.02  # from one timestamp to the next (Radford et al. 2023, section 2.3)


@dataclass(frozen=True)
class SpeechVocabulary:
    """Ids of one model's tokens. `languages` by code, such as "en"; empty, as `tasks`, where it knows one language.
    Text are those before `text_end`, timestamps `first_timestamp` and all that come behind it. `previous` stands before
    a text that an output goes on from; None: the model knows no such."""

    languages: Mapping[str, int]
    tasks: Mapping[str, int]
    no_timestamps: int
    text_end: int
    previous: int | None = None

    @property
    def first_timestamp(self) -> int:
        return self.no_timestamps + 1

    @property
    def no_speech(self) -> int:
        """What a model predicts behind the decoder's start where nothing is said."""
        return self.no_timestamps - 1

    @classmethod
    def of(cls, model: Seq2Seq) -> "SpeechVocabulary":
        """Of a model's generation config and tokenizer. Raises UsageError for a model that does not hear,
        Spec2SeqError for one that says nothing of its tokens."""
        if model.model.architecture.sound is None:
            kind = getattr(model.config, "model_type", "this")
            raise UsageError(f"a {kind} model reads texts; transcribe is for models that hear, such as Whisper")
        settings = model.settings
        silent = settings.get("no_timestamps_token_id")
        if silent is None:
            silent = _id_of(model.tokenizer, NO_TIMESTAMPS)
        if silent is None:
            raise Spec2SeqError(f"neither generation config nor tokenizer of this model says what {NO_TIMESTAMPS} is")
        # Of several end tokens some may be words.
        end = max((token for token in model.eos_token_ids if token < silent), default=silent)
        previous = settings.get("prev_sot_token_id")
        if previous is None:
            previous = _id_of(model.tokenizer, PREVIOUS)
        if settings.get("is_multilingual") is False:
            return cls({}, {}, silent, end, previous)
        languages = {name.strip("<|>"): token for name, token in (settings.get("lang_to_id") or {}).items()}
        tasks = settings.get("task_to_id") or {}
        if not languages or not all(task in tasks for task in TASKS):
            raise Spec2SeqError(
                "the generation config of this model lacks lang_to_id or task_to_id, as old ones do; take that of the "
                "model's present version, or set is_multilingual to false for a model of English alone"
            )
        return cls(languages, tasks, silent, end, previous)

    def language(self, asked: str | None) -> str | None:
        """The code of a language by its code, its token or its English name; None for None, and of a model of one
        language. Raises UsageError for another."""
        if asked is None:
            return None
        if not isinstance(asked, str):
            raise UsageError(f"language is {asked!r}; allowed: a code or an English name")
        name = asked.lower().strip("<|>")
        if not self.languages:
            if name not in ("en", "english"):
                raise UsageError(f"language is {asked!r}; this model knows English alone")
            return None
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        code = TO_LANGUAGE_CODE.get(name, name)
        if code not in self.languages:
            near = difflib.get_close_matches(name, [*self.languages, *TO_LANGUAGE_CODE], 3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UsageError(f"language is {asked!r}; allowed: {', '.join(sorted(self.languages))}{hint}")
        return code

    def asked(self, model: Seq2Seq, language: str | None, task: str | None) -> tuple[str | None, str]:
        """The code of the language, None where it is to be heard, and the task: where a caller gives None, as the
        generation config says. As in Transformers its forced_decoder_ids count where nothing else is said of either.
        Raises as `language`."""
        settings = model.settings
        language = settings.get("language") if language is None else language
        task = settings.get("task") if task is None else task
        if language is None and task is None:
            forced = settings.get("forced_decoder_ids") or getattr(model.config, "forced_decoder_ids", None) or ()
            ids = {token for _, token in forced}
            language = next((code for code, token in self.languages.items() if token in ids), None)
            task = next((name for name, token in self.tasks.items() if token in ids), None)
        return self.language(language), TASKS[0] if task is None else task

    def prompt(self, language: str | None, task: str, timestamps: bool) -> list[int]:
        """What an output begins with behind the decoder's start. Raises UsageError for a task that there is not."""
        if task not in TASKS or (task != "transcribe" and not self.tasks):
            allowed = ", ".join(TASKS if self.tasks else TASKS[:1])
            raise UsageError(f"task is {task!r}; allowed: {allowed}")
        spoken = [] if language is None else [self.languages[language], self.tasks[task]]
        return spoken if timestamps else [*spoken, self.no_timestamps]


def _id_of(tokenizer: Any, token: str) -> int | None:
    return None if tokenizer is None else tokenizer.get_vocab().get(token)
