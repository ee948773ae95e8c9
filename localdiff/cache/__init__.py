"""Caches: which rows a denoise step recomputes; the others keep the keys and values of an earlier one.

table.py lists the policies, what they go with and their defaults; each is a small pure file: a View in, rows out.
state.py says what the engine holds of a canvas, forward.py makes the calls, drift.py measures what an approximation
costs. The engine knows no cache by name. Nothing is imported here, so that the table needs no numpy.
"""
