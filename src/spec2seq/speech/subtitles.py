"""A transcript as plain text, SubRip, WebVTT or JSON; without the line break at its end."""

import html
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from spec2seq import io

if TYPE_CHECKING:  # imports torch
    from spec2seq.speech.transcribe import Transcript
    from spec2seq.speech.windows import Segment

ENDINGS = {"text": "txt", "srt": "srt", "vtt": "vtt", "json": "json"}  # format → what its files' names end in
TIMED = ("srt", "vtt")


def written(transcript: "Transcript", form: str, file: str) -> str:
    """`transcript` of the sound `file` in one of the formats `ENDINGS`."""
    match form:
        case "text":
            return as_text(transcript)
        case "srt":
            return as_srt(transcript)
        case "vtt":
            return as_vtt(transcript)
        case _:
            return as_json(transcript, file)


def as_text(transcript: "Transcript") -> str:
    """Its text in one line."""
    return io.one_line(transcript.text.strip())


def as_srt(transcript: "Transcript") -> str:
    """SubRip: numbered cues."""
    cues = enumerate(_cues(transcript, ","), 1)
    return "\n\n".join(f"{number}\n{times}\n{text}" for number, (times, text) in cues)


def as_vtt(transcript: "Transcript") -> str:
    """WebVTT (https://www.w3.org/TR/webvtt1/)."""
    cues = (f"{times}\n{html.escape(text, quote=False)}" for times, text in _cues(transcript, "."))
    return "\n\n".join(["WEBVTT", *cues])


def as_json(transcript: "Transcript", file: str) -> str:
    """One object in one line."""
    return io.to_json({
        "file": file, "language": transcript.language, "seconds": transcript.seconds, "text": transcript.text,
        "segments": [_as_dict(segment) for segment in transcript.segments if (segment.text or "").strip()],
    })  # fmt: skip


def _as_dict(segment: "Segment") -> dict[str, Any]:
    found: dict[str, Any] = {"start": segment.start, "end": segment.end, "text": segment.text.strip()}
    if segment.log_probability is not None:
        found |= {"log_probability": segment.log_probability, "temperature": segment.temperature}
    if segment.words is not None:
        found["words"] = [{"start": one.start, "end": one.end, "text": one.text.strip()} for one in segment.words]
    return found


def _cues(transcript: "Transcript", point: str) -> Iterator[tuple[str, str]]:
    """The line of times and the text of each segment in which something was said; a cue ends at an empty line, so its
    text has none."""
    for segment in transcript.segments:
        lines = [line.strip() for line in (segment.text or "").splitlines()]
        if any(lines):
            yield f"{_time(segment.start, point)} --> {_time(segment.end, point)}", "\n".join(filter(None, lines))


def _time(seconds: float, point: str) -> str:
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"
