"""Trainer of small modules and its optimizer, for all experiments."""
