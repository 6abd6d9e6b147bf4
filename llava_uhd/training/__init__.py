"""Training: data, collation, label masks, and the stages of the recipe."""
