"""Stage 0: the JBU up-sampler learns from unlabelled pictures, against a frozen tower (as in FeatUp).

An up-sampled map is right if, moved as the picture was moved and pooled down again, it is the map that the tower gives
for the moved picture. Several small moves (`jitter`) of a picture thus say more than one low-resolution map shows.
"""
