"""What `dora info -m` shows of the last epoch of an experiment: a row a metric, a column a stage."""

from collections.abc import Mapping
from typing import Any

from audiotok.text import clean_text, spoken_duration

_OF_CODEBOOKS = "_q"  # in names of metrics of single codebooks, of which there may be hundreds


def metrics_text(epoch: Mapping[str, Any], **_: Any) -> str:
    """Last epoch of a history as lines, in place of its JSON; those of single codebooks are counted.

    Args:
        epoch: {stage: {metric: number}}, as `history.json` has it.
    """
    stages = {clean_text(str(name)): values for name, values in epoch.items() if isinstance(values, Mapping)}
    if single := {name: value for name, value in epoch.items() if not isinstance(value, Mapping)}:
        stages[""] = single  # of another project, without stages
    names = list(dict.fromkeys(str(name) for values in stages.values() for name in values))
    shown = [name for name in names if _OF_CODEBOOKS not in name]
    rows = [["metric", *stages]]
    rows += [[clean_text(name), *(_text(name, values.get(name)) for values in stages.values())] for name in shown]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["last epoch"]
    for first, *others in rows:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    if left_out := len(names) - len(shown):
        lines.append(f"and {left_out} of single codebooks, which `audiotok results SIG --columns '*_q*'` shows")
    return "\n  ".join(lines)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "-"
    if name == "protocol":
        return f"{value:.0f}"  # a number that is equal or not: rounded, others would look like it
    return spoken_duration(value) if name == "duration" else f"{value:.4g}"
