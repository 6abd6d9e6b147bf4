"""A model's base class: `generate` hands a list of typed parts to `generate_inner`."""


class BaseModel:
    INTERLEAVE = False

    def __init__(self):
        self.dump_image_func = None

    def use_custom_prompt(self, dataset):
        return False

    def generate(self, message, dataset=None):
        assert all(set(part) == {"type", "value"} and part["type"] in ("image", "text") for part in message)
        return self.generate_inner(message, dataset)
