"""Evaluation: tasks, scorers and runs that record their protocol. See docs/evaluation.md."""
