"""Ablations of the papers without a language model: projectors compared on two probing tasks, at equal budgets.

    python -m experiments.ablation --out runs/ablation

A frozen vision tower encodes pages of random text. A projector pools each slice of 8 x 8 patches into 4 x 4
tokens, and a linear readout predicts from every token what its window holds: the characters (`characters`), or the
darkness of 16 sub-cells of half a patch (`sub-cells`), which needs detail finer than a patch. Projector and readout
learn from random weights; up-samplers come from stage 0 and their kernels stay frozen, as published. Runs of a task
differ in the projector alone: same pages, order, learning rates and number of steps, or the same core seconds.

Not measured: a language model, natural images, answers to questions, the published width and depth.
"""
