"""Training data: sources, mixture, sample processing, order, collation and checks."""
