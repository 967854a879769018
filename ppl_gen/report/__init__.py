"""Reports: tables, figures and the HTML file."""

from ppl_gen.report.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
