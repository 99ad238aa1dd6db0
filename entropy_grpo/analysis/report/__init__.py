"""Report of an analysis: figures and pages."""
