"""`audiotok requeue`: stop running jobs with a checkpoint and let them queue again."""

import argparse
import logging

from audiotok.cli.entry_point import PACKAGE_HELP, entry_point

logger = logging.getLogger(__name__)


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the parser of `audiotok`."""
    parser = commands.add_parser("requeue", help="stop running jobs with a checkpoint and queue them again")
    parser.description = (
        "Make room: each job writes a checkpoint, ends, and waits in the queue under the same job id to go on where it "
        "was. Jobs that wait are left as they are."
    )
    parser.add_argument("sigs", nargs="+", metavar="SIG", help="signature of an experiment whose job runs")
    parser.add_argument("-P", "--package", metavar="NAME", help=PACKAGE_HELP)
    parser.set_defaults(run=_requeue)


def _requeue(args: argparse.Namespace) -> None:
    main = entry_point(args.package)
    from audiotok.launchers.shepherd import GridShepherd

    for job_id in GridShepherd(main).requeue(args.sigs):
        logger.info("job %s is queued again once it has written its checkpoint", job_id)
