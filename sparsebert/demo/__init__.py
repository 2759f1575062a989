"""``sparsebert demo``: a real encoder and real text, checked, examined and timed.

`run` goes through the parts and writes the report; `agreement`, `dropped_positions` and
`encoder_times` measure.
"""
