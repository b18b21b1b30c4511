"""Tables that `dora grid` shows while experiments run; nothing here needs torch."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import treetable as tt
from dora.explore import Explorer

STAGES = ("train", "valid", "evaluate")
_Columns = tuple[tuple[str, str], ...]  # metrics, with the format of each


def _log_ping(log: Any) -> str | None:
    """Time since the last line of a log (a path or None), such as `12s` or `3.5h`; None where there is no log."""
    try:
        age_s = time.time() - log.stat().st_mtime
    except (AttributeError, OSError):  # no log yet, or it went away meanwhile
        return None
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("m", 60.0)):
        if age_s > size:
            return f"{age_s / size:.1f}{unit}"
    return f"{max(age_s, 0.0):.0f}s"


class CompressionExplorer(Explorer):
    """Progress of compression experiments: what they are, how they train, how good they are.

    Decorate the explore function of a grid file with it. What an experiment has not measured is left empty.
    """

    train_metrics: _Columns = (
        ("epoch", ""),
        ("bandwidth", ".2f"),
        ("adv", ".4f"),
        ("d_loss", ".4f"),
        ("mmd", ".3g"),
        ("mmd_share", ".2g"),
    )
    valid_metrics: _Columns = (
        ("bandwidth", ".2f"),
        ("adv", ".4f"),
        ("msspec", ".4f"),
        ("sisnr", ".2f"),
        ("mmd", ".3g"),
    )
    evaluate_metrics: _Columns = (
        ("sisdr", ".2f"),
        ("mel_distance", ".3f"),
        ("mi_groups", ".4f"),
        ("mmd", ".3g"),
        ("usage", ".2f"),
    )

    def get_grid_meta(self) -> list[Any]:
        """Columns that identify the experiment of a line."""
        index, sig, sid = tt.leaf("index", align=">"), tt.leaf("sig", align=">"), tt.leaf("sid", align="<")
        return [index, tt.leaf("name"), tt.leaf("state"), sig, sid]

    def get_grid_metrics(self) -> list[Any]:
        """Columns per stage, under their whole names."""
        progress = [tt.leaf("duration", ".1f", display="minutes"), tt.leaf("ping")]
        train = _group("train", self.train_metrics, progress)
        return [train, _group("valid", self.valid_metrics), _group("evaluate", self.evaluate_metrics)]

    def process_history(self, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Last value of every metric by stage, the epoch, and durations in minutes: what the history alone determines.

        Args:
            history: one {stage: {metric: number}} per epoch; it is left as it is.
        """
        parts: dict[str, dict[str, Any]] = {stage: {} for stage in STAGES}
        # From the end, where most metrics are: of earlier epochs only what is still missing is read.
        for epoch in reversed(history):
            for stage, metrics in epoch.items():
                if isinstance(metrics, Mapping) and not metrics.keys() <= (part := parts.setdefault(stage, {})).keys():
                    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
                    part |= {name: value for name, value in numbers.items() if name not in part}
        for part in parts.values():
            if "duration" in part:
                part["duration"] /= 60
        parts["train"]["epoch"] = len(history)
        return parts

    def process_live(self, sheep: Any, parts: dict[str, Any]) -> dict[str, Any]:
        """Copy of the parts of `process_history`, with what time alone changes: the age of the last line of the log."""
        ping = _log_ping(sheep.log)
        return {stage: part if ping is None else {**part, "ping": ping} for stage, part in parts.items()}

    def process_sheep(self, sheep: Any, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Both, as Dora's own monitor calls it; ours keeps the first until the history changes."""
        return self.process_live(sheep, self.process_history(history))


class LMExplorer(CompressionExplorer):
    """Progress of language models: how they train, what their codes cost, and what predicting them side by side does.

    The gap stands beside both likelihoods that it is the difference of: codes that are harder to predict show there.
    """

    train_metrics = (("epoch", ""), ("ce", ".3f"), ("ce_chain", ".3f"), ("ppl", ".1f"))
    valid_metrics = (("ce", ".3f"), ("ce_chain", ".3f"), ("ppl", ".1f"))
    evaluate_metrics = (("gap", ".4f"), ("gap_err", ".4f"), ("bits_parallel", ".3f"), ("bits_chain", ".3f"))
    generate_metrics: _Columns = (("fmd", ".3g"), ("fmd_chain", ".3g"))

    def get_grid_metrics(self) -> list[Any]:
        """Columns per stage, under their whole names."""
        return [*super().get_grid_metrics(), _group("generate", self.generate_metrics)]


def _group(stage: str, metrics: Sequence[tuple[str, str]], more: Sequence[Any] = ()) -> Any:
    leaves = [tt.leaf(name, form) for name, form in metrics]
    return tt.group(stage, [*leaves, *more], align=">", shorten=False)  # `d` for `d_loss` would not help
