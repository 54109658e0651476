"""Published data sets of labelled patches."""
