"""Web page of `llava-uhd web`: a chat about images with figures of slices, pyramid and attribution."""
