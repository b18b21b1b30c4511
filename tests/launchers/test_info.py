"""`dora info -m` as a table to read."""

import math

from audiotok.launchers.info import metrics_text


def test_metrics_are_a_table_of_stages() -> None:
    epoch = {"train": {"msspec": 1.61234, "duration": 3725.0}, "valid": {"msspec": 1.7, "mi_q0_q1": 0.1}}
    assert metrics_text(epoch).split("\n") == [
        "last epoch",
        "  metric    train  valid",
        "  msspec    1.612    1.7",
        "  duration  1h 2m      -",
        "  and 1 of single codebooks, which `audiotok results SIG --columns '*_q*'` shows",
    ]


def test_the_number_of_a_protocol_is_whole() -> None:
    assert metrics_text({"evaluate": {"protocol": 2773012345.0}}).split("\n")[2] == "  protocol  2773012345"


def test_what_is_no_number_is_missing_and_escapes_are_dropped() -> None:
    lines = metrics_text({"valid\x1b[31m": {"a\nb": None, "c": math.nan}}).split("\n")
    assert lines[1:] == ["  metric  valid", "  a b         -", "  c         nan"]
    assert metrics_text({}) == "last epoch\n  metric"
    assert metrics_text({"loss": 3.5}).split("\n")[2] == "  loss    3.5"
