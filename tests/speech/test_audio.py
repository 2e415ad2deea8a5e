"""Audio files of several kinds come as one channel at one rate, and what is no sound is one clear error."""

import sys

import numpy as np
import pytest
import soundfile

from spec2seq.errors import Spec2SeqError, UsageError
from spec2seq.speech.audio import length, read_audio

RATE, TONE, SECONDS = 16000, 440.0, 1.0


def sine(rate: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * TONE * np.arange(int(rate * SECONDS)) / rate)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "subtype"),
    [("a.wav", 8000, 1, "PCM_U8"), ("a.wav", 16000, 2, "PCM_16"), ("a.wav", 22050, 3, "FLOAT"),
     ("a.flac", 44100, 2, "PCM_24"), ("a.ogg", 48000, 1, "VORBIS"), ("a.mp3", 44100, 2, "MPEG_LAYER_III")],
)  # fmt: skip
def test_a_sine_keeps_its_frequency(tmp_path, name, rate, channels, subtype):
    path = tmp_path / name
    soundfile.write(path, np.repeat(sine(rate)[:, None], channels, 1), rate, subtype=subtype)
    samples, where = read_audio(path, "sound 1", RATE)
    assert where == str(path) and samples.dtype == np.float32 and samples.ndim == 1
    assert abs(len(samples) - RATE * SECONDS) < 0.1 * RATE and length(path) == pytest.approx(SECONDS, abs=0.1)
    heard = samples[2000:14000] * np.hanning(12000)
    loudest = np.abs(np.fft.rfft(heard)).argmax() * RATE / len(heard)
    assert loudest == pytest.approx(TONE, abs=2 * RATE / len(heard))
    assert np.abs(heard).max() == pytest.approx(0.5, abs=0.02)


def test_samples_at_the_models_rate_come_as_they_are(tmp_path):
    path, left, right = tmp_path / "a.wav", sine(RATE), -0.25 * sine(RATE)
    soundfile.write(path, np.stack([left, right], 1), RATE, subtype="FLOAT")
    assert np.allclose(read_audio(str(path), "sound 1", RATE)[0], 0.375 * sine(RATE), atol=1e-7)
    samples, where = read_audio(left, "sound 1", RATE)
    assert np.array_equal(samples, left) and where == "sound 1"
    assert np.array_equal(read_audio(left.astype(np.float64), "sound 1", RATE)[0], left)


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "a.wav"
    for read in (length, lambda file: read_audio(file, "sound 1", RATE)):
        with pytest.raises(UsageError, match=r"a\.wav: no such file$"):
            read(path)
        with pytest.raises(UsageError, match="not a file"):
            read(tmp_path)
    for content in (b"", b"no audio", b"RIFF\x00\x00\x00\x00WAVE"):
        path.write_bytes(content)
        for read in (length, lambda file: read_audio(file, "sound 1", RATE)):
            with pytest.raises(Spec2SeqError, match=r"a\.wav: no audio that can be read: ") as error:
                read(path)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("samples", "said"),
    [(np.zeros(0), "there are no samples"), (np.array([0.1, np.nan]), "there are samples that are no numbers"),
     (np.array([0.1, -np.inf]), "there are samples that are no numbers")],
)  # fmt: skip
def test_sounds_that_are_none(tmp_path, samples, said):
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    with pytest.raises(Spec2SeqError, match=rf"a\.wav: {said}$"):
        read_audio(path, "sound 3", RATE)
    with pytest.raises(Spec2SeqError, match=f"^sound 3: {said}$"):
        read_audio(samples, "sound 3", RATE)


@pytest.mark.parametrize(
    ("sound", "said"),
    [(np.zeros((2, 5)), r"sound 3 has the shape \[2, 5\]"), (np.float32(1), r"sound 3 has the shape \[\]"),
     ([0.1, 0.2], "sound 3 is a list"), (None, "sound 3 is a NoneType"), (b"RIFF", "sound 3 is a bytes")],
)  # fmt: skip
def test_what_is_no_sound(sound, said):
    with pytest.raises(UsageError, match=said + r"; allowed: a file, or an array of samples \[n\]$"):
        read_audio(sound, "sound 3", RATE)


@pytest.mark.parametrize("sound", [np.array([1, -300], np.int16), np.array(["a"]), np.array([{}]), np.array([1j])])
def test_samples_that_are_not_floating_point(sound):
    with pytest.raises(UsageError, match="^sound 3 has samples of type .*; allowed: floating point, from -1 to 1$"):
        read_audio(sound, "sound 3", RATE)


@pytest.mark.parametrize("library", ["soundfile", "soxr"])
def test_without_the_extra(tmp_path, monkeypatch, library):
    soundfile.write(tmp_path / "a.wav", sine(8000), 8000)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(Spec2SeqError, match=rf"'{library}'.*pip install 'spec2seq\[speech\]'"):
        read_audio(tmp_path / "a.wav", "sound 1", RATE)
    assert len(read_audio(sine(RATE), "sound 1", RATE)[0]) == RATE
