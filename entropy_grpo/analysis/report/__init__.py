"""The report of an analysis: figures and a page."""
