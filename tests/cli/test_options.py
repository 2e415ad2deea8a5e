"""The table of options against the library: every option changes what is built, or is refused."""

import dataclasses
import inspect
import json

import pytest
import tiny
import yaml

from spec2seq import Seq2Seq
from spec2seq.decoding import acceptance, methods
from spec2seq.decoding.official import OfficialBiLD
from spec2seq.decoding.sampling import Sampling
from spec2seq.errors import UsageError
from spec2seq.from_options import make_method
from spec2seq.models import executor
from spec2seq.option import METHODS
from spec2seq.options import (
    BESIDE,
    DTYPES,
    OPTIONS,
    POLICIES,
    MethodOptions,
    RunOptions,
    as_markdown,
    resolve,
)

# A value that is not the default, for every option that only some methods take.
OTHER = {
    "num_beams": 3, "length_penalty": 0.5, "early_stopping": True, "n_best": 2, "min_p": 0.1,
    "typical_p": 0.8, "temperature": 0.7, "top_k": 5, "top_p": 0.9,
    "seed": 7, "num_assistant_tokens": 9, "assistant_confidence_threshold": 0.3, "num_lookup_tokens": 6,
    "max_matching_ngram_size": 4, "min_matching_ngram_size": 2, "beta": 5, "tau": 2.5, "fallback_threshold": 0.0,
    "rollback_threshold": None, "max_draft_tokens": 4, "block_size": 2, "policy": "sampling",
    "starts": "verifier", "verify_tail": True, "distance": "kl",
}  # fmt: skip
RUN = {
    "model": "m", "dtype": "float64", "device": "cpu", "threads": 1, "batch_size": 3, "max_new_tokens": 5,
    "truncate": True, "src_lang": "a", "tgt_lang": "b", "prefix": "c", "executor": "torch",
    "device_memory": 1.5, "max_len_a": 1.5, "max_len_b": 4,
}  # fmt: skip
METHOD_OPTIONS = [name for name, option in OPTIONS.items() if option.of_method]
PRESETS = {
    "beam": methods.Beam, "sample": methods.Sample, "assisted": methods.Assisted, "bild": methods.BiLD,
    "lookup": methods.Lookup, "specdec": methods.SpecDec,
}  # fmt: skip


class StubDrafter:
    has_confidence = True
    hidden_layers = ()
    longest = longest_source = None
    block_size = 6
    distributions = True


DRAFTER = StubDrafter()


def built(method: str, **values):
    drafted = method in BESIDE or "drafter" in values or (method == "sample" and needs_drafter(values))
    named = {"drafter": "folder"} if drafted else {}
    return make_method(MethodOptions(method=method, **(named | values)), DRAFTER if drafted else None)


def needs_drafter(values) -> bool:
    return any(OPTIONS[name].with_drafter for name in values)


def as_flag(name: str, value) -> object:
    return value if isinstance(value, bool) else "none" if value is None else str(value)


def test_the_samples_cover_the_table():
    assert {"method", "drafter"} | OTHER.keys() | RUN.keys() == OPTIONS.keys()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [name for name in METHOD_OPTIONS if name != "drafter"])
def test_each_option_changes_the_method_or_is_refused(name, method):
    if method in OPTIONS[name].methods:
        more = {"drafter": "folder"} if needs_drafter({name: 0}) else {}
        if method == "bild" and name in POLICIES["paper"]:
            more["policy"] = "sampling"
        assert built(method, **more, **{name: OTHER[name]}) != built(method, **more)
        return
    with pytest.raises(UsageError) as error:
        resolve({name: as_flag(name, OTHER[name]), "method": method, "model": "m", "drafter": None})
    assert OPTIONS[name].flag in str(error.value) and method in str(error.value)
    assert all(taker in str(error.value) for taker in OPTIONS[name].methods)
    with pytest.raises(UsageError, match=name):
        MethodOptions(method=method, **{name: OTHER[name]})


@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_policy_does_not_take_is_refused(policy):
    for name in POLICIES[policy]:
        with pytest.raises(UsageError, match=f"{name} does nothing with policy {policy}; policies that take it: "):
            MethodOptions(method="bild", policy=policy, **{name: OTHER[name]})


def test_policies_of_bild():
    little = tiny.seq2seq("t5").drafter()
    made = {
        name: make_method(MethodOptions(method="bild", drafter="d", policy=name, fallback_threshold=0.0), little)
        for name in POLICIES
    }
    assert made["lossless"].lossless and not any(made[name].lossless for name in ("paper", "sampling", "compat"))
    assert made["paper"] == methods.BiLD(little, 0.0) and made["paper"].length.confidence == 0.0
    assert made["sampling"].acceptance.sampling == Sampling()
    assert made["compat"] == OfficialBiLD(little, 0.0)
    for value in ("2", "3"):  # people pass a number of nats
        with pytest.raises(UsageError, match=f"--fallback-threshold is '{value}'; allowed: a number from 0.0 to 1.0"):
            resolve({"fallback_threshold": value, "method": "bild", "model": "m", "drafter": "d"})


def test_drafter_changes_sample_and_is_refused_where_idle():
    assert built("sample").drafter is None
    assert built("sample", drafter="folder").drafter is DRAFTER
    for method in ("greedy", "beam", "lookup"):
        with pytest.raises(UsageError, match="--drafter does nothing with method"):
            resolve({"drafter": "x", "method": method, "model": "m"})


@pytest.mark.parametrize("name", ["num_assistant_tokens", "assistant_confidence_threshold"])
def test_draft_options_need_a_drafter_when_sampling(name):
    with pytest.raises(UsageError, match="without a drafter"):
        resolve({name: "0.5" if "threshold" in name else "3", "method": "sample", "model": "m"})


@pytest.mark.parametrize("name", OPTIONS)
def test_flag_and_config_file_mean_the_same(name, tmp_path):
    value = (OTHER | RUN | {"method": "beam", "drafter": "folder"})[name]
    option = OPTIONS[name]
    base = {"model": "m", "method": option.methods[0]}
    if name == "method":
        base.pop("method")
    elif option.methods[0] in BESIDE:
        base["drafter"] = "folder"
    expected = resolve({**base, name: as_flag(name, value)})
    path = tmp_path / "options.yaml"
    path.write_text(yaml.safe_dump(base | {name: value}))
    assert resolve({}, path) == expected
    path.write_text(json.dumps(base | {name: value}))
    assert resolve({}, path) == expected
    settled = getattr(expected[0] if hasattr(expected[0], name) else expected[1], name)
    assert settled == value and type(settled) is type(value)


def test_flags_win_over_the_config_file(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("model: m\nmethod: beam\nnum_beams: 3\ntruncate: true\n")
    run, method = resolve({"num_beams": "7", "truncate": False}, path)
    assert method.num_beams == 7 and run.truncate is False


def test_config_errors_name_file_and_key(tmp_path):
    path = tmp_path / "options.yaml"
    for text, words in (
        ("num_baems: 3", ["unknown key 'num_baems'", "num_beams"]),
        ("num_beams: many", ["num_beams is 'many'", "integer of at least 1"]),
        ("num_beams: 3.5", ["num_beams is 3.5"]),
        ("num_beams: true", ["num_beams is True"]),
        ("num_beams: null", ["num_beams is None"]),
        ("truncate: 1", ["truncate is 1", "true or false"]),
        ("tau: 2.0", ["tau does nothing with method beam", "assisted, lookup"]),
        ("[1, 2]", ["expected keys with values"]),
        ("a: [", ["not readable as YAML"]),
    ):
        path.write_text(text)
        with pytest.raises(UsageError) as error:
            resolve({"model": "m", "method": "beam"}, path)
        assert str(path) in str(error.value) and all(word in str(error.value) for word in words)
    with pytest.raises(UsageError, match="no such file"):
        resolve({}, tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("name", "value"),
    [("fallback_threshold", "1.5"), ("fallback_threshold", "-0.1"), ("fallback_threshold", "nan"),
     ("rollback_threshold", "-1"), ("assistant_confidence_threshold", "2"), ("num_beams", "0"), ("top_p", "0"),
     ("top_p", "1.01"), ("top_k", "-1"), ("n_best", "0"),
     ("temperature", "0"), ("beta", "0"), ("tau", "-1"), ("seed", "-1"),
     ("num_assistant_tokens", "-1"), ("num_assistant_tokens", "none"), ("max_draft_tokens", "0"), ("threads", "0"),
     ("batch_size", "0"), ("max_new_tokens", "0"), ("num_beams", "2.0"), ("dtype", "int9"), ("method", "best"),
     ("num_lookup_tokens", "three"), ("max_matching_ngram_size", "0")],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(UsageError) as error:
        resolve({name: value, "model": "m"})
    assert str(error.value).startswith(f"{OPTIONS[name].flag} is {value!r}; allowed: ")


def test_n_gram_sizes_must_be_in_order():
    with pytest.raises(UsageError, match="max_matching_ngram_size is 2"):
        built("lookup", max_matching_ngram_size=2, min_matching_ngram_size=3)


def test_defaults_in_the_table_are_the_librarys():
    for name in METHOD_OPTIONS:
        option = OPTIONS[name]
        if name == "drafter":
            continue
        owner = acceptance.TopBeta if name in ("beta", "tau") else None
        for method in option.methods:
            filters = Sampling if method == "bild" and name in POLICIES["paper"] else None
            parameters = inspect.signature(owner or filters or PRESETS[method]).parameters
            name = {"n_best": "num_return_sequences"}.get(name, name)
            if name not in parameters:  # sample passes these on to its length rule; a policy is made of parameters
                assert (option.with_drafter and method == "sample") or name == "policy"
                continue
            default = parameters[name].default
            shown = str(option.default).split(";")[0]
            left_open = shown == option.word or shown.startswith("the model's, else ")
            assert default == option.default or (default is None and left_open), (name, method)
    assert make_method(MethodOptions(method="sample", drafter="x"), DRAFTER).length.cap == 4


def test_dtypes_in_the_table_are_the_librarys():
    assert set(DTYPES) == set(executor.WEIGHTS)
    keywords = inspect.signature(Seq2Seq.stream).parameters
    assert OPTIONS["batch_size"].default == keywords["batch_size"].default


def test_presets_are_reached_with_none_zero_and_auto():
    assert built("bild", fallback_threshold=None).length.confidence is None
    assert built("bild", fallback_threshold=0.0).length.confidence == 0.0
    assert built("bild", rollback_threshold=None).acceptance.threshold is None
    assert isinstance(built("assisted", num_assistant_tokens=None).length, methods.AdaptiveLength)
    assert built("assisted", num_assistant_tokens=0).length == methods.FixedLength(0)
    assert isinstance(built("sample", num_assistant_tokens=None).length, methods.AdaptiveLength)
    assert built("lookup", beta=4).acceptance == acceptance.TopBeta(4)
    assert built("assisted").lossless and not built("assisted", beta=2).lossless


def test_default_method_depends_on_the_drafter(folder, tmp_path):
    _, options = resolve({"model": str(folder)})
    assert options.method == "assisted" and options.drafter == str(folder / "little")
    _, options = resolve({"model": str(folder / "little")})
    assert options == MethodOptions(method="greedy")
    with pytest.raises(UsageError, match=r"method bild needs a drafter.*--drafter"):
        resolve({"model": str(tmp_path), "method": "bild"})
    with pytest.raises(UsageError, match="needs a drafter"):
        make_method(MethodOptions(method="bild"))


def test_the_bundled_model_is_the_default(monkeypatch):
    monkeypatch.setattr("spec2seq.options.bundled_model", lambda: "checkout/models/ende")
    assert resolve({})[0] == RunOptions(model="checkout/models/ende")


def test_markdown_names_every_option():
    table = as_markdown()
    assert all(f"`{option.flag}`" in table for option in OPTIONS.values())
    assert len(table.splitlines()) == 2 + len(OPTIONS)


def test_fields_and_table_agree():
    names = [field.name for cls in (RunOptions, MethodOptions) for field in dataclasses.fields(cls)]
    assert names == list(OPTIONS)
