"""Sizes and phases of the tests."""

from experiments.tiny.setting import Phase, Setting

SMALL = Setting(
    view_size=56, query_grid=4, max_slices=4, slots=4, width=64, text_layers=2, text_heads=4, key_value_heads=2,
    intermediate=64, vision_width=64, vision_layers=2, vision_heads=2,
)  # fmt: skip
TOWER = Phase("tower", "tower", 2, 40, views=1, scribble=0.5, crops=2)
READER = Phase("reader", "reader", 3, 300, views=1, questions=2)
