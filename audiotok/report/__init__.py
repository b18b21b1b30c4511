"""A grid as a folder of pages: table, plots, statistics, and players to listen and to vote; opens without a network."""

from audiotok.report.own_sound import PageModel
from audiotok.report.page import ReportOptions, write_report
from audiotok.report.single_file import write_single_file

__all__ = ["PageModel", "ReportOptions", "write_report", "write_single_file"]
