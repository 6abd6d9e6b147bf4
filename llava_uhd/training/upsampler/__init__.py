"""Stage 0: the JBU up-sampler learns from unlabelled images, against a frozen tower (as in FeatUp).

An up-sampled map is right if, moved as the image was moved and pooled down again, it is the map that the tower gives
for the moved image. Several small moves (`jitter`) of an image thus say more than one low-resolution map shows.
"""
