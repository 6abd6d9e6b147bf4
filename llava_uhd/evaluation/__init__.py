"""Evaluation: tasks, scorers and runs whose every number carries its protocol. See docs/evaluation.md."""
