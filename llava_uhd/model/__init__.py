"""All that a checkpoint needs: flat siblings, saved into a checkpoint as remote code."""
