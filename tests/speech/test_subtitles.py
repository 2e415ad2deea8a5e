"""The formats of a transcript, character by character."""

import json

import pytest

from spec2seq.speech.subtitles import ENDINGS, as_json, as_srt, as_text, as_vtt, written
from spec2seq.speech.transcribe import Transcript
from spec2seq.speech.windows import Segment


def transcript(*segments: tuple[float, float, str | None]) -> Transcript:
    text = "".join(text or "" for _, _, text in segments)
    return Transcript(text.strip(), "en", 9.5, [Segment(start, end, text, []) for start, end, text in segments])


TALK = transcript((0.0, 2.5, " Käse & <Brot>."), (2.5, 3.0, " "), (3.0, 3725.06, " Second."), (3725.06, 3726.0, None))


def test_subrip():
    assert as_srt(TALK) == (
        "1\n00:00:00,000 --> 00:00:02,500\nKäse & <Brot>.\n\n2\n00:00:03,000 --> 01:02:05,060\nSecond."
    )
    assert as_srt(transcript()) == ""


def test_webvtt():
    assert as_vtt(TALK) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.500\nKäse &amp; &lt;Brot&gt;.\n\n"
        "00:00:03.000 --> 01:02:05.060\nSecond."
    )  # fmt: skip
    assert as_vtt(transcript()) == "WEBVTT"
    assert "a --&gt; b &amp;lt;" in as_vtt(transcript((0, 1, "a --> b &lt;")))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0004, "00:00:00,000"), (59.9996, "00:01:00,000"), (3599.98, "00:59:59,980"), (86399.999, "23:59:59,999"),
     (360000, "100:00:00,000")],
)  # fmt: skip
def test_times(seconds, said):
    assert said in as_srt(transcript((seconds, seconds, "a")))
    assert said.replace(",", ".") in as_vtt(transcript((seconds, seconds, "a")))


def test_no_empty_line_within_a_cue():
    for make in (as_srt, as_vtt):
        made = make(transcript((0, 1, "\n a \r\n\r\n \n b\u2028\u2028c \n"), (1, 2, "\n\n")))
        assert made.endswith("\na\nb\nc")
        assert made.count("-->") == 1


def test_text_is_one_line():
    assert as_text(TALK) == "Käse & <Brot>.  Second."
    assert as_text(transcript((0, 1, " a\nb\u2028c "))) == "a b c"
    assert as_text(transcript()) == ""


def test_json_is_one_object():
    made = as_json(TALK, "talks/käse.wav")
    assert "\n" not in made and "käse" in made
    assert json.loads(made) == {
        "file": "talks/käse.wav", "language": "en", "seconds": 9.5, "text": "Käse & <Brot>.  Second.",
        "segments": [{"start": 0.0, "end": 2.5, "text": "Käse & <Brot>."},
                     {"start": 3.0, "end": 3725.06, "text": "Second."}],
    }  # fmt: skip
    assert json.loads(as_json(Transcript("", None, 1.0, []), "a.wav"))["language"] is None


def test_every_format_is_written():
    made = {form: written(TALK, form, "a.wav") for form in ENDINGS}
    assert made == {
        "text": as_text(TALK), "srt": as_srt(TALK), "vtt": as_vtt(TALK), "json": as_json(TALK, "a.wav"),
    }  # fmt: skip
