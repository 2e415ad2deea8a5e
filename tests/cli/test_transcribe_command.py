"""transcribe on a tiny model that hears: every format, files and groups of them, and each kind of bad input."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import tiny
import tiny_sound

from spec2seq import Fallback, Seq2Seq
from spec2seq.speech import transcribe as speech
from spec2seq.speech.subtitles import written


@pytest.fixture(scope="module")
def ears(tmp_path_factory):
    """A model that hears a second at a time, and a little one in it."""
    folder = tmp_path_factory.mktemp("models") / "ears"
    verifier = tiny_sound.seq2seq(0)
    verifier.save_pretrained(folder)
    little = tiny.noisy_copy(verifier, 0.02)
    little.extractor = verifier.extractor
    little.save_pretrained(folder / "little")
    return folder


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    """Three sounds; the last is longer than a window."""
    folder = tmp_path_factory.mktemp("talks")
    made = tiny_sound.sounds(2) + tiny_sound.sounds(1, seconds=4, seed=2)
    for name, sound in zip(("one.wav", "two.flac", "long.wav"), made, strict=True):
        soundfile.write(folder / name, sound, tiny_sound.RATE)
    return [folder / "one.wav", folder / "two.flac", folder / "long.wav"]


@pytest.fixture(scope="module")
def model(ears):
    return Seq2Seq.from_pretrained(ears)


@pytest.fixture
def calls(monkeypatch):
    """What the library was called with."""
    made, real = [], speech.transcribe

    def spy(model, sounds, method, **settings):
        made.append((sounds, method, settings))
        return real(model, sounds, method, **settings)

    monkeypatch.setattr(speech, "transcribe", spy)
    return made


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_line_for_each_sound(run, ears, talks, model):
    result = run("transcribe", *talks, "--model", ears, "--method", "greedy")
    assert (result.exit_code, result.stderr) == (0, "")
    texts = speech.transcribe(model, talks).texts
    assert result.stdout.splitlines() == texts and len(set(texts)) == 3
    assert run("transcribe", talks[1], talks[1], "--model", ears).stdout.splitlines() == [texts[1]] * 2


def test_json(run, ears, talks, model):
    result = run("transcribe", *talks, "--model", ears, "--format", "json")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    wanted = speech.transcribe(model, talks).transcripts
    assert [list(one) for one in found] == [["file", "language", "seconds", "text", "segments"]] * 3
    assert [one["file"] for one in found] == [str(path) for path in talks]
    assert [(one["text"], one["language"]) for one in found] == [(one.text, one.language) for one in wanted]
    assert [one["seconds"] for one in found] == [soundfile.info(path).duration for path in talks]
    assert len(found[0]["segments"]) == 1 < len(found[2]["segments"])
    assert list(found[0]["segments"][0]) == ["start", "end", "text"]


def test_json_with_a_fallback(run, ears, talks, model):
    result = run("transcribe", *talks, "--model", ears, "--format", "json", "--fallback")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    wanted = speech.transcribe(model, talks, fallback=Fallback()).transcripts
    for one, transcript in zip(found, wanted, strict=True):
        heard = [part for part in transcript.segments if part.text.strip()]
        assert [part["log_probability"] for part in one["segments"]] == [part.log_probability for part in heard]
        assert [part["temperature"] for part in one["segments"]] == [part.temperature for part in heard]
    assert any(part["temperature"] for one in found for part in one["segments"])


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles_of_one_sound_go_to_stdout(run, ears, talks, model, form):
    result = run("transcribe", talks[2], "--model", ears, "--format", form)
    (timed,) = speech.transcribe(model, talks[2:], timestamps=True).transcripts
    assert result.stdout == written(timed, form, "") + "\n" and "-->" in result.stdout


def test_json_with_words(run, ears, talks):
    result = run("transcribe", talks[0], "--model", ears, "--format", "json", "--word-timestamps")
    segments = json.loads(result.stdout)["segments"]
    assert segments and all(word["start"] <= word["end"] for one in segments for word in one["words"])
    assert all("".join(word["text"] for word in one["words"]) for one in segments)


@pytest.mark.parametrize(("form", "ending"), [("text", "txt"), ("srt", "srt"), ("vtt", "vtt"), ("json", "json")])
def test_a_file_for_each_sound(run, ears, talks, model, tmp_path, form, ending):
    out = tmp_path / "new" / "folder"
    result = run("transcribe", *talks, "--model", ears, "--format", form, "--out", out)
    assert (result.exit_code, result.output) == (0, "")
    assert names(out) == [f"long.{ending}", f"one.{ending}", f"two.{ending}"]
    timestamps = True if form in ("srt", "vtt") else None
    for path, transcript in zip(talks, speech.transcribe(model, talks, timestamps=timestamps).transcripts, strict=True):
        assert (out / f"{path.stem}.{ending}").read_text() == written(transcript, form, str(path)) + "\n"


def test_options_reach_the_library(run, ears, talks, calls):
    run("transcribe", talks[0], "--model", ears, "--language", "german", "--task", "translate", "--timestamps",
        "--batch-size", "3", "--max-new-tokens", "7", "--method", "assisted", "--fallback", "--condition-on-previous",
        "--initial-prompt", "w3 w4", "--word-timestamps", "--format", "json")  # fmt: skip
    run("transcribe", talks[0], "--model", ears, "--no-timestamps", "--method", "greedy")
    (_, method, settings), (_, greedy, plain) = calls
    for given in (settings, plain):
        del given["progress"], given["stats"]
        assert given.pop("numbers") == [0]
    assert method.drafter is not None and greedy.drafter is None
    assert settings == {
        "language": "german", "task": "translate", "timestamps": True, "batch_size": 3, "max_new_tokens": 7,
        "fallback": Fallback(), "condition_on_previous": True, "initial_prompt": "w3 w4",
        "word_timestamps": True,
    }  # fmt: skip
    assert plain == {"language": None, "task": None, "timestamps": False, "fallback": None,
                     "condition_on_previous": False, "initial_prompt": None, "word_timestamps": False}  # fmt: skip


@pytest.mark.parametrize("method", ["assisted", "lookup"])
def test_drafts_change_nothing_and_are_counted(run, ears, talks, method):
    greedy = run("transcribe", *talks, "--model", ears, "--format", "json", "--method", "greedy")
    drafted = run("transcribe", *talks, "--model", ears, "--format", "json", "--method", method, "--stats",
                  "--batch-size", "1")  # fmt: skip
    assert drafted.stdout == greedy.stdout
    rows = [line for line in drafted.stderr.splitlines() if " rows " in line]
    assert len(rows) == 1 and int(rows[0].split("│")[2]) >= 3


def test_the_counts_of_several_groups(run, ears, talks):
    tables = [
        run("transcribe", *talks[:2], "--model", ears, "--stats", "--method", "greedy", "--batch-size", size).stderr
        for size in ("1", "8")
    ]
    kept = [[line for line in table.splitlines() if "seconds" not in line and "passes" not in line] for table in tables]
    assert kept[0] == kept[1] and any(" new_tokens " in line for line in kept[0])


def test_groups_are_written_when_they_are_done(run, fails, ears, talks, calls, monkeypatch, tmp_path):
    monkeypatch.setattr("spec2seq.cli.speech.GROUP", 1)
    broken, out = tmp_path / "talk.wav", tmp_path / "out"
    soundfile.write(broken, np.array([0.1, np.nan]), tiny_sound.RATE, subtype="FLOAT")
    command = ("transcribe", talks[0], broken, talks[1], "--model", ears, "--batch-size", 1, "--out", out)
    fails(1, ["talk.wav: there are samples that are no numbers"], *command)
    assert names(out) == ["one.txt"]
    written_at = (out / "one.txt").stat().st_mtime_ns
    fails(2, ["one.txt exists", "--resume"], *command)
    shutil.copy(talks[2], broken)
    calls.clear()
    assert run(*command, "--resume").exit_code == 0
    assert [sounds for sounds, _, _ in calls] == [[broken], [talks[1]]]
    assert names(out) == ["one.txt", "talk.txt", "two.txt"]
    assert (out / "one.txt").stat().st_mtime_ns == written_at
    result = run(*command[:4], "--model", "no-model", "--out", out, "--resume")  # there is nothing to load it for
    assert (result.exit_code, result.output) == (0, "")


def test_an_interruption_leaves_what_is_finished(run, ears, talks, monkeypatch, tmp_path):
    monkeypatch.setattr("spec2seq.cli.speech.GROUP", 1)
    real = speech.transcribe

    def interrupted(model, sounds, *arguments, **settings):
        if sounds == [talks[1]]:
            raise KeyboardInterrupt
        return real(model, sounds, *arguments, **settings)

    monkeypatch.setattr(speech, "transcribe", interrupted)
    result = run("transcribe", *talks, "--model", ears, "--batch-size", 1, "--out", tmp_path / "out")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")
    assert names(tmp_path / "out") == ["one.txt"]


def test_flags_that_do_not_go_together(fails, ears, talks, tmp_path):
    one, two = ("transcribe", talks[0], "--model", ears), ("transcribe", *talks[:2], "--model", ears)
    fails(2, ["--format is 'docx'", "text, srt, vtt, json"], *one, "--format", "docx")
    for form in ("srt", "vtt"):
        fails(2, [f"--format {form} needs timestamps"], *one, "--format", form, "--no-timestamps")
        fails(2, [f"--format {form} of several sounds", "--out"], *two, "--format", form)
    fails(2, ["--resume does nothing without --out"], *one, "--resume")
    fails(2, ["--word-timestamps does nothing for --format text"], *one, "--word-timestamps")
    fails(2, ["No such option: --prefix"], *one, "--prefix", "a")
    config = tmp_path / "options.yaml"
    config.write_text("prefix: a\n")
    fails(2, ["options.yaml: prefix does nothing in transcribe"], *one, "--config", config)
    fails(2, ["FILE"], "transcribe", "--model", ears)


def test_files_that_are_wrong(fails, ears, talks, tmp_path):
    out, again, silent = tmp_path / "out", tmp_path / "one.flac", tmp_path / "silent.wav"
    shutil.copy(talks[1], again)
    words = [str(talks[0]), str(again), "both", "one.txt"]
    fails(2, words, "transcribe", talks[0], again, "--model", ears, "--out", out)
    assert not out.exists()
    again.write_text("no audio")
    # Before a model is loaded.
    fails(1, ["one.flac: no audio that can be read"], "transcribe", talks[0], again, "--model", "no-model")
    fails(2, ["absent.wav: no such file"], "transcribe", talks[0], tmp_path / "absent.wav", "--model", "no-model")
    fails(2, [f"{tmp_path}: not a file"], "transcribe", tmp_path, "--model", "no-model")
    fails(2, ["--out", "one.flac: cannot be written"], "transcribe", talks[0], "--model", "no-model", "--out", again)
    soundfile.write(silent, np.zeros(0), tiny_sound.RATE)
    fails(1, ["silent.wav: there are no samples"], "transcribe", silent, "--model", ears)


def test_what_the_model_cannot(fails, folder, ears, talks):
    fails(2, ["a marian model reads texts", "Whisper"], "transcribe", talks[0], "--model", folder, "--method", "greedy")
    one = ("transcribe", talks[2], "--model", ears)
    fails(2, ["language is 'gernam'", "did you mean german"], *one, "--language", "gernam")
    fails(2, ["task is 'sing'; allowed: "], *one, "--task", "sing")
    fails(1, ["long.wav is", "seconds long; without timestamps the model hears 1"], *one, "--no-timestamps")
    fails(2, ["max_new_tokens is 99"], *one, "--max-new-tokens", 99)
    fails(2, ["OfficialBiLD takes no prompts"], *one, "--method", "bild", "--policy", "compat", "--language", "en")


def test_draws_do_not_depend_on_the_groups(run, ears, tmp_path):
    """Nor on what is left to do."""
    for number, sound in enumerate(tiny_sound.sounds(6)):
        soundfile.write(tmp_path / f"{number}.wav", sound, tiny_sound.RATE)
    files = [tmp_path / f"{number}.wav" for number in range(6)]
    asked = ["transcribe", *files, "--model", ears, "--language", "en", "--method", "sample"]
    wanted = run(*asked, "--batch-size", "8").stdout.splitlines()
    assert run(*asked, "--batch-size", "1").stdout.splitlines() == wanted and len(set(wanted)) > 3
    out = tmp_path / "out"
    run(*asked, "--out", out)
    for number in (1, 4, 5):
        (out / f"{number}.txt").unlink()
    run(*asked, "--out", out, "--resume")
    assert [(out / f"{number}.txt").read_text(encoding="utf-8").rstrip("\n") for number in range(6)] == wanted
