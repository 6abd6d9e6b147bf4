"""From conversations on disk to batches: sources, mixture, encoding, order, collation, and the check of them all."""
