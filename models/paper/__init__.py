"""The tables and figures of "HadaNets" (Akhauri 2019, arXiv 1905.10759), made again: `hadanet paper NAME`."""
