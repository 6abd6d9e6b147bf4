"""The loss in pieces against the plain one: value, gradients, and what a batch without images does."""

import pytest
import torch
from torch.nn import functional as F

from llava_uhd.training.data.collation import Collator
from llava_uhd.training.data.encoding import Encoded
from llava_uhd.training.labels import IGNORE
from llava_uhd.training.loss import linear_cross_entropy, use_training_forward
from tests.conftest import build_model, small_config


def problem(dtype=torch.float64):
    torch.manual_seed(0)
    hidden = torch.randn(2, 11, 8, dtype=dtype, requires_grad=True)
    weight = torch.randn(23, 8, dtype=dtype, requires_grad=True)
    labels = torch.randint(23, (2, 11))
    labels[0, :5] = IGNORE
    return hidden, weight, labels


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_value_and_gradients_are_those_of_whole_logits(chunk):
    hidden, weight, labels = problem()
    plain = F.cross_entropy((hidden @ weight.T).flatten(0, 1), labels.flatten(), reduction="sum")
    expected = torch.autograd.grad(3 * plain, (hidden, weight))
    loss = linear_cross_entropy(hidden, weight, labels, chunk)
    torch.testing.assert_close(loss, plain)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, (hidden, weight)), expected)


def test_nothing_learned_is_zero_with_zero_gradients():
    hidden, weight, labels = problem()
    loss = linear_cross_entropy(hidden, weight, torch.full_like(labels, IGNORE))
    loss.backward()
    assert loss == 0 and not hidden.grad.any() and not weight.grad.any()


@pytest.mark.parametrize("pack", [False, True])
def test_the_loss_waits_for_no_device(pack):
    """Reading a value back, such as the number of target tokens, fails on the meta device."""
    samples = [Encoded(torch.arange(5, 12), torch.tensor([IGNORE] * 4 + [7, 8, 9]), {}) for _ in range(2)]
    batch = Collator(0, pack)(samples)
    assert batch["target_positions"].tolist() == ([3, 4, 5, 10, 11, 12] if pack else [3, 4, 5, 9, 10, 11])
    with torch.device("meta"):
        hidden, weight = (torch.empty(shape, requires_grad=True) for shape in ((*batch["labels"].shape, 8), (23, 8)))
    labels, positions = batch["labels"].to("meta")[:, 1:], batch["target_positions"].to("meta")
    linear_cross_entropy(hidden[:, :-1], weight, labels, 4, positions).backward()
    assert hidden.grad is not None and hidden.grad.shape == hidden.shape
    with pytest.raises(NotImplementedError):
        linear_cross_entropy(hidden[:, :-1], weight, labels, 4)


def test_autocast_takes_the_products_in_its_type():
    hidden, weight, labels = problem(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, labels, 4)
    rounded = (hidden.bfloat16() @ weight.bfloat16().T).float()
    torch.testing.assert_close(loss, F.cross_entropy(rounded.flatten(0, 1), labels.flatten(), reduction="sum"))
    loss.backward()
    assert hidden.grad.dtype == torch.float32 and hidden.grad.any()


def test_logits_are_never_whole():
    """The largest tensor that the forward pass makes has `chunk` rows of logits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.numel = max(self.numel, out.numel())
            return out

    hidden, weight = torch.randn(64, 8), torch.randn(1000, 8)
    with Largest() as largest:
        linear_cross_entropy(hidden, weight, torch.arange(64), chunk=10)
    assert largest.numel == 10 * 1000


def test_training_forward_agrees_with_the_models_own():
    model = build_model(small_config())
    ids = torch.randint(400, (2, 9))
    labels = ids.clone()
    labels[:, :3] = IGNORE
    own = model(input_ids=ids, labels=labels)
    use_training_forward(model, loss_chunk=4)
    trained = model(input_ids=ids, labels=labels)
    torch.testing.assert_close(trained.loss, own.loss)
    assert trained.logits is None
    counted = model(input_ids=ids, labels=labels, num_items_in_batch=24)
    torch.testing.assert_close(counted.loss, own.loss * 12 / 24)
    # The collator pads on the right, and gives a mask that the training pass does without.
    padded, mask = ids.clone(), torch.ones_like(ids)
    padded[1, 5:], mask[1, 5:], labels[1, 5:] = 7, 0, IGNORE
    own_forward = type(model).forward
    expected = own_forward(model, input_ids=padded, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(model(input_ids=padded, attention_mask=mask, labels=labels).loss, expected)
    # Whatever a batch holds, every part takes part in it.
    trained.loss.backward()
    assert model.model.multi_modal_projector.proj.grad is not None
    assert model.model.vision_tower.embeddings.patch_embedding.weight.grad is not None
