"""`llava-uhd bench`: the reference formulation (`reference.py`) against this package, side by side in one process."""
