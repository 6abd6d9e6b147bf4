"""Former name of `figures`; importing from here warns and names the new place."""

from ..deprecation import former_names

__getattr__ = former_names(
    __name__,
    {
        "PICTURES": "llava_uhd.inspection.figures.FIGURES",  # former name
        "picture": "llava_uhd.inspection.figures.make_figure",  # former name
        "answer_figure": "llava_uhd.inspection.figures.answer_figure",
    },
)
