"""Measuring speed: the machine card, the arithmetic of a forward pass, timed forwards and a timed generation.

`localdiff bench` prints what is measured here; bench/compare.py in the repository sets it beside other engines. No
figure is judged, and nothing of this is used by generation.
"""
