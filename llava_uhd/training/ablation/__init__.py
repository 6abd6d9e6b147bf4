"""The papers' ablation in miniature: one projector after another learns to read, on the same budget.

What is measured: how many of a page's characters can be read, by one linear layer, off the few tokens into which a
projector condenses it. A view of 8 x 8 patches becomes 4 x 4 tokens, so each token must keep four patches apart. The
tower is the built-in model's, frozen; projector and readout start from random weights for every run; up-samplers come
from stage 0 and their kernels stay frozen, as published. Runs differ in the projector alone: same pages, same number
of steps, same rates, several seeds.

What is not: a language model, natural images, answers to questions, or the published width and depth. And the tower
learned before, under a projector of levels 1x and 2x, to say at 1x already what stands in each patch; a pyramid can
only help to keep apart what the tower has seen.
"""
