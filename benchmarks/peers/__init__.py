"""Adapters for other libraries: each a function (work, max_norm) -> step, or raising.

Libraries are imported inside the functions: what is not installed is skipped, not missed. Each adapter
uses its library the way the library's own optimizer does, without the noise and the optimizer's step.
"""
