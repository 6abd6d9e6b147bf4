"""`llava-uhd web`: a page to ask about images, and to see what the model saw."""
