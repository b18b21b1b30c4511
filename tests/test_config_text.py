"""What of a configuration is saved as a reference, and what is read of a text from elsewhere."""

import pytest
from omegaconf import DictConfig, OmegaConf

from audiotok.config_text import escaped, inert, read_text, reads_environment, saved_text, unresolved

RAW = r"""
rate: 16000
token: ${oc.env:TOKEN}
default: ${oc.env:NOT_SET,${rate}}
ours: ${oc.env:AUDIOTOK_CLUSTER,here}
alias: ${token}
far: x/${alias}
relative: {up: "${..token}", same: "${.up}", fine: "${..rate}"}
list: [1, "${token}"]
section: {in: "${oc.env:TOKEN}", plain: 1}
of_section: ${section}
below: ${of_section.in}
beside: ${section.plain}
decoded: ${oc.decode:${oc.env:TOKEN}}
composed: ${section.${name}}
name: plain
escaped: \${oc.env:TOKEN}
datasource: {train: data/train.jsonl, valid: "${far}.jsonl"}
slurm: {setup: ["export TOKEN=hunter2"]}
dora: {dir: /home/me/outputs}
"""
SECRET = {
    *("token", "default", "alias", "far", "relative.up", "relative.same", "list", "section.in", "of_section", "below"),
    *("decoded", "composed", "datasource.valid"),
}


def test_what_reads_the_environment_is_found_through_references() -> None:
    raw = OmegaConf.to_container(OmegaConf.create(RAW))
    assert isinstance(raw, dict)
    assert {".".join(path) for path in unresolved({str(key): value for key, value in raw.items()})} == SECRET


def test_secrets_and_sections_of_the_machine_are_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "hunter2")
    raw = OmegaConf.create(RAW)
    cfg = OmegaConf.create(escaped(OmegaConf.to_container(raw, resolve=True)))
    assert isinstance(raw, DictConfig) and isinstance(cfg, DictConfig) and cfg.token == "hunter2"
    cfg.datasource.train = "/home/me/data/train.jsonl"  # as training makes it
    text = saved_text(cfg, raw)
    assert "hunter2" not in text and "/home/me" not in text
    saved = OmegaConf.create(text)
    assert isinstance(saved, DictConfig) and "slurm" not in saved and "dora" not in saved
    assert saved.rate == 16000 and saved.ours == "here" and saved.relative.fine == 16000
    assert saved.datasource.train == "data/train.jsonl" and saved.beside == 1
    assert saved.token == saved.alias == "hunter2" and saved.escaped == "${oc.env:TOKEN}"  # of whoever has the variable
    read = read_text(text)
    assert read.token == "${oc.env:TOKEN}" and read.alias == "${oc.env:TOKEN}" and read.far == "x/${alias}"


def test_sizes_of_networks_from_the_environment_are_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are no secrets, and weights are of no use without them."""
    monkeypatch.setenv("N_Q", "3")
    monkeypatch.setenv("RATIOS", "[4, 2]")
    text = "n_q: ${oc.decode:${oc.env:N_Q}}\nratios: ${oc.decode:${oc.env:RATIOS}}\nthe_same: ${n_q}\n"
    raw = OmegaConf.create(text + "text: ${oc.env:N_Q}\nlater: ${oc.env:NOT_SET,null}\n")
    assert isinstance(raw, DictConfig)
    read = read_text(saved_text(raw, raw))
    assert OmegaConf.to_container(read) == {
        **{"n_q": 3, "ratios": [4, 2], "the_same": 3},
        **{"text": r"\${oc.env:N_Q}", "later": r"\${oc.env:NOT_SET,null}"},
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${oc.env:HOME}", True),
        ("a/${ oc.env : HOME,x}/b", True),
        ("${oc.decode:${oc.env:HOME}}", True),
        ("${oc.${a}:HOME}", True),
        ("${oc.env:AUDIOTOK_X}", False),
        ("${oc.env:AUDIOTOK_X,${oc.env:HOME}}", True),
        ("${a.b}", False),
        ("${now:%Y}", False),
        ("plain", False),
    ],
)
def test_variables_but_ours_are_of_the_environment(text: str, expected: bool) -> None:
    assert reads_environment(text) is expected


def test_a_text_from_elsewhere_reads_its_own_keys_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "hunter2")
    text = 'a: 1\nb: {c: "${a}", d: "${.c}", e: "${..a}"}\nf: "${oc.${x}:TOKEN}"\nx: env\ng: "${f}"\nh: "x${a}"\n'
    text += 'i: "${i}"\n'
    cfg = read_text(text)
    assert (cfg.b.c, cfg.b.d, cfg.b.e) == (1, 1, 1)
    assert OmegaConf.to_container(cfg, resolve=True) == {
        **{"a": 1, "b": {"c": 1, "d": 1, "e": 1}, "x": "env", "h": "x${a}", "i": "${i}"},
        **{"f": "${oc.${x}:TOKEN}", "g": "${oc.${x}:TOKEN}"},
    }


def test_texts_that_unfold_are_refused() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    for text in (bomb, "[" * 10_000, "a: " * 3, "x: !!python/name:os.system", "a: " + "x" * 2_000_000, "\0", "- 1"):
        with pytest.raises(ValueError, match=r"its configuration|a configuration of"):
            read_text(text)
    chain = "".join(f"r{n}: {{a: '${{r{n + 1}}}', b: '${{r{n + 1}}}'}}\n" for n in range(60))
    assert read_text(chain).r0.a == "${r1}"  # sections are not unfolded


def test_only_trusted_resolvers_stay() -> None:
    value = {"a": "${oc.env:HOME}", "b": ["${now:%Y}", "${a}"], "c": r"\${oc.env:HOME}"}
    assert inert(value, lambda text: "now" in text) == {**value, "a": r"\${oc.env:HOME}"}


@pytest.mark.parametrize("label", ["${a}", "${oc.env:HOME}", "${", "\\${a}", "\\\\${a}", "x${a}y", "plain", "$", "{}"])
def test_any_text_survives_a_file(label: str) -> None:
    cfg = OmegaConf.create(escaped({"labels": [label], "one": label}))
    read = read_text(saved_text(cfg, cfg))
    assert read.one == label and OmegaConf.to_container(read, resolve=True) == {"labels": [label], "one": label}
