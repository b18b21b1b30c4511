"""`audiotok results --votes DIR`: answers of blind tests, pooled over listeners."""

import argparse
import logging

from audiotok.errors import ResultsError
from audiotok.text import clean_text

logger = logging.getLogger(__name__)


def show_votes(args: argparse.Namespace) -> int:
    """Print a table of each kind of test; with `--format csv` every answer of every file instead."""
    from audiotok.results.tables import format_table, write_table
    from audiotok.results.votes import pool_votes, read_votes

    others = (
        *("by", "metric", "pivot", "baseline", "pooled", "best_by", "importance", "where", "sort", "direction", "top"),
        *("columns", "runs", "samples", "check", "watch", "published", "unfinished"),
    )
    if given := [f"--{name.replace('_', '-')}" for name in others if getattr(args, name)]:
        raise ResultsError(
            f"{', '.join(given)} is about runs and --votes about answers of listeners; give one of them."
        )
    votes, problems = read_votes(args.votes)
    for problem in problems:
        logger.warning("%s", problem)
    if args.grid:
        known = ", ".join(sorted(set(votes["grid"]))) or "none"
        votes = votes[votes["grid"].isin(args.grid)]
        if votes.empty:
            raise ResultsError(
                f"--votes {args.votes}: no answers about {', '.join(args.grid)}; there are some about: {known}."
            )
    listeners = votes["listener"].nunique()
    logger.info("%d answers of %d listener%s", len(votes), listeners, "s" * (listeners != 1))
    if args.format in ("csv", "parquet"):
        if args.output is not None:
            write_table(votes, args.output, args.format)
        else:
            print(format_table(votes, args.format), end="")
        return 0
    pooled = pool_votes(votes)
    headed = {
        "ABX: share of right answers, its 95 % interval, and p of guessing (exact binomial, one-sided)": pooled.abx,
        "Preference: share for b, its 95 % interval, and p of exact sign tests, of answers and of listeners": (
            pooled.preference
        ),
        "Rating (MUSHRA): mean over listeners with its 95 % interval (Student)": pooled.rating,
    }
    parts = []
    for title, table in headed.items():
        if not table.empty:
            shown = table.drop(columns=["grid"]) if table["grid"].nunique() == 1 else table
            parts.append(f"{title}\n\n{format_table(shown, args.format)}")
    text = "\n".join(parts)
    if args.output is not None:
        try:
            args.output.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ResultsError(f"cannot write {args.output}: {error.strerror or error}.") from error
        logger.info("wrote %s", args.output)
    else:
        print(text, end="")
    for remark in pooled.remarks:
        logger.info("%s", clean_text(remark))
    return 0
