"""Pictures and numbers that show what the model sees."""
