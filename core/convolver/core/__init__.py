"""What a convolution is: parameters, geometry, plans, back ends, the wire codec. No gRPC, no files.

`errors`, `parameters` and `plan` are what callers meet; `operation`, `geometry`, `choose` and `backends` are what runs.
"""
