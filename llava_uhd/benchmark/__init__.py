"""`llava-uhd bench`: the plain formulas of `llava_uhd.oracle` against this package, side by side in one process."""
