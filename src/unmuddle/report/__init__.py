"""Tables and HTML pages from run folders. They need no GPU and no model."""

from unmuddle.report.audit_page import audit_page
from unmuddle.report.html import is_report
from unmuddle.report.report_page import report_page
from unmuddle.report.runs import RunFiles, read_runs
from unmuddle.report.table import comparison_table, metrics_table

__all__ = [
    "RunFiles",
    "audit_page",
    "comparison_table",
    "is_report",
    "metrics_table",
    "read_runs",
    "report_page",
]
