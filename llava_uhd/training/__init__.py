"""Training: data, label masks, recipes; and the built-in model from scratch (`tiny`)."""
