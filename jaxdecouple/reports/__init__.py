"""A report is one page, complete in itself, about a training run, finished or under way."""

from jaxdecouple.reports.page import report
from jaxdecouple.reports.run_files import ReportError, RunFiles

__all__ = ["ReportError", "RunFiles", "report"]
