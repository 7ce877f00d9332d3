"""A plan run batch by batch in thought: what the cost model's one number cannot say. Pure.

`simulate` is the event model, `routing` the client's rule, `window` how many batches in flight a
plan needs, `under_load` percentiles and utilisation as a document.
"""
