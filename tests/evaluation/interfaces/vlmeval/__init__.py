"""Stand-in for VLMEvalKit: importing it switches gradients off for the whole process."""

import torch

torch.set_grad_enabled(False)
