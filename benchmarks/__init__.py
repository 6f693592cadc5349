"""Benchmarks, one table each: `python -m benchmarks NAME [--json FILE] [--quick]`.

A benchmark is a module with `rows(quick, progress)`: flat rows, `progress` takes what is being measured now.
"""
