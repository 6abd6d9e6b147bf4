"""The plain formulas of the papers: what tests compare with and what the benchmark measures against."""
