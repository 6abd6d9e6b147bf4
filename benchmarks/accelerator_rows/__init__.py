"""The rows of `benchmarks/accelerator.py`: one module per subject, `plan.py` lists the measurements."""
