"""The built-in model, trained from scratch on synthetic documents.

Trained jointly from random weights, such a model learns what answers look like and never to look. So each half first
gets the skill that published systems bring along from their parents:

- `decoder`: the language model answers questions on documents whose characters it is given as symbols;
- `vision`: tower, pyramid and projector learn to tell the characters in the window of each image token;
- `join`: the two are joined, and trained as one on rendered documents.

Both halves speak one code from the start (`symbols`), so that joining them is a product of two matrices.
"""
