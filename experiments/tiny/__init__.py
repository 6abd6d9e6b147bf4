"""Training of the built-in model `small`, which reads documents of other programs.

Three skills in three phases, each the start of the next, since all at once do not begin to learn in the time that two
cores have: the tower names the characters in each patch (`vision`), the language model answers on pages whose
characters it is given as codes (`reader`), and both go on together on rendered pages (`joint`). `plan.yaml` lists the
phases; `README.md` has the calculation.
"""
