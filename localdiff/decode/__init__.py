"""Decoding: which tokens are written into a canvas at each denoise step.

table.py lists the decoders and their options; each has a file of its own, which is pure: numbers in, commits out.
loop.py drives them. A new idea is a file and a row. Nothing is imported here, so that the table needs no numpy.
"""
