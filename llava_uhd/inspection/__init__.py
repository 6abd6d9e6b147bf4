"""Figures and numbers of the model's slices, feature pyramid, kernels and attention."""
