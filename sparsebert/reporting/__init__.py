"""Tables, plots, timing and pages: how results are measured and shown."""
