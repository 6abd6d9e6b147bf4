"""Charts that matplotlib draws, with its own axes, legends and fonts."""

import io
import random

from PIL import Image

from . import page as words
from .page import DECLINED, Page, Question

FONTS = ("cmr10", "cmss10", "Carlito", "Caladea", "Inter")
TITLES = (
    "Umbrella rentals",
    "Bakery turnover",
    "Ferry passengers",
    "Library loans",
    "Honey harvest",
    "Museum entries",
)


def plot(rng: random.Random, sort: str) -> Page:
    """One chart: `bar`, `barh`, `grouped`, `line`, `pie` or `scatter`.

    Raises:
        ValueError: matplotlib does not know the font; its cache of fonts may be older than the font.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import font_manager, pyplot

    points, dpi = rng.choice((8, 10, 12, 14)), rng.choice((72, 100, 140))
    letters = points * dpi / 72
    font = rng.choice(FONTS)
    font_manager.findfont(font, fallback_to_default=False)
    settings = {"font.family": font, "font.size": points, "axes.titlesize": points + 2,
                "axes.formatter.use_mathtext": True}  # fmt: skip
    with pyplot.rc_context(settings), pyplot.style.context(rng.choice(("default", "ggplot", "fast"))):
        pyplot.rcParams.update(settings)
        figure, axes = pyplot.subplots(figsize=(rng.uniform(4.5, 6.5), rng.uniform(3.2, 4.5)), dpi=dpi)
        heading = rng.choice(TITLES)
        axes.set_title(heading)
        questions = [Question("What is the chart about?", (heading,), "title", letters + 2 * dpi / 72)]
        names = rng.sample(words.PLACES, k=rng.randint(3, 6))
        values = rng.sample(range(5, 98, 3), k=len(names))
        questions += _draw(axes, sort, rng, names, values, letters)
        questions.append(
            Question(f"What is the value for {rng.choice(('Honolulu', 'Samarkand'))}?", (DECLINED,), "unanswerable")
        )
        figure.tight_layout()
        file = io.BytesIO()
        figure.savefig(file, format="png")
        pyplot.close(figure)
    return Page(f"{sort} chart", "matplotlib", Image.open(file).convert("RGB"), questions)


def _draw(axes, sort: str, rng: random.Random, names: list[str], values: list[int], letters: float) -> list[Question]:
    most, least = names[values.index(max(values))], names[values.index(min(values))]
    chosen = rng.randrange(len(names))
    read = Question(f"What is the value for {names[chosen]}?", (str(values[chosen]),), "cell", letters)
    extremes = [
        Question("Which place has the biggest value?", (most,), "extreme", letters),
        Question("Which place has the smallest value?", (least,), "extreme", letters),
    ]
    if sort in ("bar", "barh"):
        bars = getattr(axes, sort)(names, values, color=rng.choice(("teal", "indianred", "slategray")))
        axes.bar_label(bars)
        axes.tick_params(axis="x", rotation=30 if sort == "bar" else 0)
        return [read, *extremes, Question("How many bars does it have?", (str(len(names)),), "count", letters)]
    if sort == "grouped":
        others = rng.sample(range(5, 98, 3), k=len(names))
        for shift, (year, numbers) in enumerate((("2019", values), ("2024", others))):
            bars = axes.bar([place + 0.4 * shift for place in range(len(names))], numbers, 0.38, label=year)
            axes.bar_label(bars)
        axes.set_xticks([place + 0.2 for place in range(len(names))], names, rotation=30)
        axes.legend()
        text = f"What was the value for {names[chosen]} in 2019?"
        return [
            Question(text, (str(values[chosen]),), "cell", letters),
            Question("Which place was highest in 2024?", (names[others.index(max(others))],), "extreme", letters),
        ]
    if sort == "line":
        years = [str(2015 + place) for place in range(len(values))]
        axes.plot(years, values, marker="o")
        for year, value in zip(years, values, strict=True):
            axes.annotate(str(value), (year, value), textcoords="offset points", xytext=(0, 6), ha="center")
        axes.margins(y=0.2)
        return [
            Question(f"Which value was reached in {years[chosen]}?", (str(values[chosen]),), "cell", letters),
            Question("In which year was the peak?", (years[values.index(max(values))],), "extreme", letters),
        ]
    if sort == "pie":
        shares = [round(100 * value / sum(values)) for value in values]
        axes.pie(values, labels=[f"{name} {share}%" for name, share in zip(names, shares, strict=True)])
        text = f"How many percent does {names[chosen]} have?"
        share = str(shares[chosen])
        return [Question(text, (share, f"{share}%", f"{share} %"), "cell", letters), extremes[0]]
    axes.scatter(range(len(values)), values)
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        axes.annotate(name, (place, value), textcoords="offset points", xytext=(4, 4))
    axes.margins(x=0.3, y=0.2)
    return [
        Question("Which point lies highest?", (most,), "extreme", letters),
        Question("Which point lies lowest?", (least,), "extreme", letters),
    ]


SORTS = ("bar", "barh", "grouped", "line", "pie", "scatter")
