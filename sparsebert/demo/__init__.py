"""``sparsebert demo``: a real encoder and real text, checked, examined and timed.

`run_demo` goes through the parts and writes the report; `agreement`, `dropped_positions` and
`encoder_times` measure.
"""
