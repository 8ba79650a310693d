"""PyTriton, a Triton server with Python in it, as a service of the same convolutions to measure against.

It lives in a virtual environment of its own: its wheel wants Debian's Python and an older NumPy.
"""
