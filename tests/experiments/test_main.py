"""Signatures, deltas and names are Dora's, for every override, at a fraction of the time; mistakes are named."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from dora.hydra import HydraMain
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from audiotok.errors import ConfigError
from audiotok.experiments import ExperimentMain
from tests.nasty import FILES, make_main, upstream, write_project

SETTINGS = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
Pair = tuple[str, str]  # an override, and what Dora must be given for the same experiment

FLOATS = ("lr", "section.b.c", "optim.sched.gamma", "model.depth", "through", "not_a_number")
FLOAT_LISTS = ("weights", "alias_of_list")
OTHERS = (
    "rate", "epochs", "name", "flag", "nothing", "ints", "mixed", "nested", "empty", "empty_list", "section",
    "section.a", "section.b", "section.b.d", "alias", "alias_of_alias", "alias_of_section", "alias_of_section.c",
    "text", "list_of_references", "list_of_references.0", "relative.x", "relative.y", "relative.z", "relative.list",
    "home", "decoded", "escaped", "quoted", "accent", "records", "model.width", "model.rate",
    "model.model", "optim.sched.size", "loose.n", "loose.other", "dora.git_save", "slurm.gpus", "nowhere", "section.x",
)  # fmt: skip
REAL_FLOATS = ("losses.mmd", "losses.l1", "optim.lr", "msspec.f_min", "mel.floor_level", "rvq.decay")
REAL_OTHERS = (
    "seed", "label", "rvq.n_q", "sample_rate", "channels", "encodec.causal", "mel.sample_rate", "mmd.stream", "device",
    "optim.updates_per_epoch", "seanet.ratios", "schedule.lr_scheduler", "dataset.num_workers", "dora.dir",
    "dataset.train", "seanet.activation_params", "adversarial.adversaries", "losses.nothing",
)  # fmt: skip

scalars = st.one_of(
    st.integers(-3, 3).map(str),
    st.sampled_from(["1_000", "9007199254740993", "1e3", "2.", ".5", "-1.5e-3", "inf", "nan", "TRUE", "false", "NULL"]),
    st.sampled_from(["plain", "r-16000", "a/b", "two words", r"a\,b", "é", "16000", "1.0e-3", "0.001", "me", ""]),
    st.text(alphabet="a \\\"'${}é,", max_size=4).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.sampled_from(["'it''s'", "'a, b'", '"1"', "'null'", '"${rate}"', "${rate}", "r-${rate}", "${section.b}", "???"]),
    st.sampled_from(["int(3.7)", "str(3)", "float(2)", "1,2", "range(1,3)", "[", "a=b", "${nowhere}", r"\${rate}"]),
)  # fmt: skip
lists = st.lists(st.one_of(scalars, st.just("[1, [x]]"), st.just("{a: 1}")), max_size=3).map(
    lambda x: f"[{', '.join(x)}]"
)
dicts = st.sampled_from(
    [
        "{}",
        "{a: 2}",
        "{a: {x: 1}}",
        "{b: {d: 7}}",
        "{c: 0.25}",
        "{new: 1}",
        "{width: 3, rate: 5}",
        "{n: 2}",
        "{a: ${rate}}",
    ]
)
prefixes = st.sampled_from(["", "", "", "", "+", "++"])


@st.composite
def pairs(draw: st.DrawFn, floats: tuple[str, ...], float_lists: tuple[str, ...], others: tuple[str, ...]) -> Pair:
    """An override; ints that are given for floats are floats in the second, which Dora is given."""
    key = draw(st.sampled_from([*floats, *float_lists, *others]))
    left = draw(prefixes) + key
    if key in floats:
        number = draw(st.integers(-2, 3))
        return draw(st.sampled_from([(f"{left}={number}", f"{left}={float(number)}"), (f"{left}=0.5", f"{left}=0.5")]))
    if key in float_lists:
        numbers = draw(st.lists(st.one_of(st.integers(-2, 3), st.sampled_from([0.5, 1e-9, 1e20])), max_size=3))
        return f"{left}={numbers}", f"{left}={[float(number) for number in numbers]}"
    text = f"{left}={draw(st.one_of(scalars, scalars, lists, dicts))}"
    return text, text


def groups(*options: str) -> st.SearchStrategy[Pair]:
    return st.sampled_from([(option, option) for option in options])


def assert_same(ours: ExperimentMain, theirs: HydraMain, drawn: list[Pair]) -> None:
    argv, expected = [pair[0] for pair in drawn], [pair[1] for pair in drawn]
    try:
        xp = upstream(theirs, expected)
    except Exception:
        with pytest.raises(ConfigError):
            ours.get_xp(argv)
        return
    found = ours.get_xp(argv)
    assert found.sig == xp.sig, argv
    assert json.dumps(found.delta) == json.dumps(xp.delta), argv
    assert found.argv == xp.argv or argv != expected
    assert OmegaConf.to_yaml(found.cfg) == OmegaConf.to_yaml(xp.cfg), argv
    plain = ours.get_xp([])
    assert ours.get_names([plain, found]) == theirs.get_names([upstream(theirs, []), xp])


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nasty")
    write_project(folder)
    return folder


@pytest.fixture(scope="module")
def ours(project: Path) -> ExperimentMain:
    main: ExperimentMain = make_main(project)
    return main


@pytest.fixture(scope="module")
def theirs(project: Path) -> Any:
    return make_main(project, kind=HydraMain)


def real(kind: type[HydraMain]) -> Any:
    def main(cfg: Any) -> None: ...

    main.__module__ = "audiotok.train"  # where the configuration is looked for from
    return kind(main, config_name="config", config_path="../config", version_base="1.3")


@pytest.fixture(scope="module")
def real_ours() -> ExperimentMain:
    main: ExperimentMain = real(ExperimentMain)
    return main


@pytest.fixture(scope="module")
def real_theirs() -> Any:
    return real(HydraMain)


@settings(SETTINGS, max_examples=40)
@given(
    drawn=st.lists(
        st.one_of(
            pairs(FLOATS, FLOAT_LISTS, OTHERS),
            pairs(FLOATS, FLOAT_LISTS, OTHERS),
            pairs(FLOATS, FLOAT_LISTS, OTHERS),
            groups(
                "model=small",
                "model=large",
                "optim/sched=step",
                "optim/sched=none",
                "deep=one/a",
                "deep=one/b",
                "model=nothing",
                "+model=large",
                "model@x=large",
            ),
        ),
        max_size=3,
    )
)
def test_every_override_gives_what_dora_gives(ours: ExperimentMain, theirs: HydraMain, drawn: list[Pair]) -> None:
    assert_same(ours, theirs, drawn)


@settings(SETTINGS, max_examples=12)
@given(
    preset=groups("solver=compression/encodec_mmd_32khz", "solver=compression/debug", "model=encodec/encodec_demo"),
    drawn=st.lists(pairs(REAL_FLOATS, (), REAL_OTHERS), max_size=3),
)
def test_so_does_every_override_of_the_real_configuration(
    real_ours: ExperimentMain, real_theirs: HydraMain, preset: Pair, drawn: list[Pair]
) -> None:
    if not preset[0].startswith("solver="):
        drawn = [("solver=compression/encodec_mmd_32khz", "solver=compression/encodec_mmd_32khz"), *drawn]
    assert_same(real_ours, real_theirs, [preset, *drawn])


def test_the_groups_are_those_that_dora_lists(
    ours: ExperimentMain, theirs: HydraMain, real_ours: ExperimentMain, real_theirs: HydraMain
) -> None:
    assert ours._config_groups == theirs._config_groups
    assert real_ours._config_groups == real_theirs._config_groups and "model/encodec" in real_ours._config_groups


@pytest.mark.parametrize(
    "text",
    ["section.a=5", "rate=8000", "nothing=[1, null]", "weights=null", "not_a_number=1", "model.rate=3", "ints=x"],
)
def test_values_are_applied_without_hydra(ours: ExperimentMain, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours.get_xp([])  # composed once
    monkeypatch.setattr(ours, "_compose_slowly", None)
    monkeypatch.setattr("audiotok.experiments.main.compose", None)
    if text.startswith("rate="):  # something more intricate than an alias depends on it
        with pytest.raises(TypeError):
            ours.get_xp([text])
    else:
        assert text.split("=")[0] in dict(ours.get_xp([text]).delta)


def test_a_bases_composition_is_shared(ours: ExperimentMain, monkeypatch: pytest.MonkeyPatch) -> None:
    ours.get_xp(["model=large", "accent=1"])
    monkeypatch.setattr("audiotok.experiments.main.compose", None)
    assert ours.get_xp(["accent=e", "model=large"]).delta[:2] == [["model", "large"], ["accent", "e"]]


@pytest.mark.parametrize(
    ("of_ints", "of_floats"),
    [
        ("lr=2", "lr=2.0"),
        ("++lr=-1", "++lr=-1.0"),
        ("weights=[1, 5]", "weights=[1.0, 5.0]"),
        ("section={b: {c: 3}}", "section={b: {c: 3.0}}"),
        ("through=4", "through=4.0"),
    ],
)
def test_an_int_for_a_float_is_that_float(
    ours: ExperimentMain, theirs: HydraMain, of_ints: str, of_floats: str
) -> None:
    one, other = ours.get_xp([of_ints]), ours.get_xp([of_floats])
    assert one.sig == other.sig == upstream(theirs, [of_floats]).sig != upstream(theirs, [of_ints]).sig
    assert OmegaConf.to_yaml(one.cfg) == OmegaConf.to_yaml(other.cfg)
    assert one.argv == ours.get_xp(one.argv).argv


@pytest.mark.parametrize("text", ["epochs=3", "ints=[3]", "mixed=[3]", "nested=[[3]]", "lr=true", "empty_list=[1]"])
def test_other_values_stay_as_they_are(ours: ExperimentMain, text: str) -> None:
    assert ours.get_xp([text]).argv == [text]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["model=unset"], ["model.width", "model.width=VALUE"]),
        (["model=unset", "epochs=3"], ["model.width"]),
        (["model=unset", "+new={a: 1}"], ["model.width"]),
        (["epochs='???'"], ["epochs"]),
        (["~epochs"], ["~epochs", "null"]),
        (["~epochs=2"], ["~epochs"]),
        (["epochs"], ["no '='"]),
        (["section=3"], ["section"]),
        (["nowhere=3"], ["nowhere"]),
        (["epochs=[1"], ["epochs=[1"]),
        (["weights.x=1"], ["weights.x=1"]),
    ],
)
def test_a_mistake_is_named(ours: ExperimentMain, argv: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        ours.get_xp(argv)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
    assert dict(ours.get_xp(["accent=3"]).delta).keys() == {
        "accent",
        "not_a_number",
    }  # a comparison that failed leaves no trace


@pytest.mark.parametrize("extra", ["epochs=3", "rate=1", "section={a: 5}"])
def test_a_value_that_must_be_given_counts(ours: ExperimentMain, extra: str) -> None:
    xp = ours.get_xp(["model=unset", "model.width=3", extra])
    assert ["model.width", 3] in xp.delta and ["model.model", 3] in xp.delta
    assert xp.cfg.model.width == 3 and xp.sig != ours.get_xp(["model=unset", "model.width=4", extra]).sig


@settings(SETTINGS, max_examples=200)
@given(value=st.recursive(st.text(max_size=6), lambda x: st.lists(x, max_size=2), max_leaves=3))
def test_what_a_grid_gives_in_another_script_arrives(ours: ExperimentMain, theirs: HydraMain, value: Any) -> None:
    (argument,) = ours.value_to_argv({"name": value})
    text = json.dumps(value, ensure_ascii=False)
    if text.isascii() and "\\" not in text.replace('\\"', ""):  # what JSON escapes, Hydra reads otherwise
        assert [argument] == theirs.value_to_argv({"name": value})
    elif isinstance(value, str) and "${" not in value:
        assert ours.get_xp([argument]).cfg.name == value


def test_ascii_and_group_arguments_are_written_as_dora_does(ours: ExperimentMain, theirs: HydraMain) -> None:
    given: list[Any] = [
        {"model": "large", "name": 'a "b" \\', "lr": 1e-9, "x": {"a": [None, True, (1,)]}},
        ["a=1", {"b": 2}],
    ]
    assert ours.value_to_argv(given) == theirs.value_to_argv(given)


def test_an_experiment_can_be_pickled(ours: ExperimentMain) -> None:
    for argv in (["epochs=3"], ["+new=3"]):
        xp = ours.get_xp(argv)
        again = pickle.loads(pickle.dumps(xp))
        assert (
            again.sig == xp.sig
            and OmegaConf.to_yaml(again.cfg) == OmegaConf.to_yaml(xp.cfg)
            and again.frozen_values().keys() == xp.frozen_values().keys()
        )


def test_keys_that_are_numbers_do_not_matter(tmp_path: Path) -> None:
    config = "steps: {1: 0.5, 2: 0.25}\nlr: 0.1\ndora: {dir: OUTPUTS}\n"
    write_project(tmp_path, {"config/config.yaml": config})
    one, other = make_main(tmp_path), make_main(tmp_path, kind=HydraMain)
    assert one.get_xp(["lr=3.5"]).sig == upstream(other, ["lr=3.5"]).sig


def test_a_project_without_dora_section_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path, {"config/config.yaml": "lr: 0.1\n"})
    main = make_main(tmp_path)
    assert main.get_xp(["lr=1"]).sig == upstream(make_main(tmp_path, kind=HydraMain), ["lr=1.0"]).sig


def test_the_small_project_holds_what_it_promises() -> None:
    keys = {line.split(":")[0].strip() for line in FILES["config/config.yaml"].splitlines()}
    assert {key.split(".")[0] for key in OTHERS if "." not in key} - {"nowhere"} <= keys


@pytest.mark.parametrize("text", ["mixed=[???]", "+optim.sched.size=[???]", "nested=[[${rate}]]", "records=[{a: 2}]"])
def test_lists_are_taken_as_dora_takes_them(ours: ExperimentMain, theirs: HydraMain, text: str) -> None:
    assert_same(ours, theirs, [(text, text)])
