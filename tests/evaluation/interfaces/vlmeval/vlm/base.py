"""A model's base class: `generate` checks a list of typed parts and hands it to `generate_inner`."""


class BaseModel:
    INTERLEAVE = False
    allowed_types = ("text", "image")

    def __init__(self):
        self.dump_image_func = None

    def use_custom_prompt(self, dataset):
        return False

    def set_dump_image(self, dump_image_func):
        self.dump_image_func = dump_image_func

    def generate(self, message, dataset=None):
        assert all(set(part) == {"type", "value"} and part["type"] in self.allowed_types for part in message)
        return self.generate_inner(message, dataset)
