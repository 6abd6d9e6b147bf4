"""Sentences about things beside the values of labels, as letters have them: "The lecture was moved to Lyon."."""

import random
from collections.abc import Callable
from typing import NamedTuple

from ..vocabulary import COLORS, THINGS
from .content import Content
from .labels import LABELS


class Statement(NamedTuple):
    """Sentence about one value.

    Attributes:
        sentence: `{value}` stands for the value, asterisks for the ends of the words by which it is found.
        label: name of the value that a question uses.
        ability, wordings: see `facts.Field`.
    """

    sentence: str
    value: str
    label: str
    ability: str
    wordings: tuple[str, ...]


class _Form(NamedTuple):
    """Sentence about a thing, and the questions that it answers."""

    sentence: str
    draw: Callable[[Content], str]
    label: str
    wordings: tuple[str, ...]
    ability: str = "field"


OCCASIONS = (
    "concert", "lecture", "party", "fair", "match", "rehearsal", "wedding", "tour", "workshop", "exam", "seminar",
    "market", "festival", "race", "visit", "inspection", "interview", "dinner", "reading", "exhibition", "hike",
    "conference", "training", "ceremony",
)  # fmt: skip


def _small(content: Content) -> str:
    return content.count(2, 400)


OF_OCCASIONS = (
    _Form("The *{thing}* was moved to {value}.", Content.city, "place of the {thing}",
          ("To which city was the {thing} moved?", "Where is the {thing} now?", "Where will the {thing} be?")),
    _Form("We hold the *{thing}* in {value} this time.", Content.city, "city of the {thing}",
          ("Where does the {thing} take place?", "In which city is the {thing} held?", "Where is the {thing} held?")),
    _Form("The *{thing}* begins at {value}.", Content.time, "time of the {thing}",
          ("At what time is the {thing}?", "When does the {thing} begin?", "What time does the {thing} start?")),
    _Form("Doors to the *{thing}* open at {value}.", Content.time, "opening time of the {thing}",
          ("When do the doors to the {thing} open?", "From when on can I get into the {thing}?")),
    _Form("The *{thing}* will be on {value}.", Content.date, "day of the {thing}",
          ("On which day is the {thing}?", "When is the {thing}?", "For what date is the {thing} planned?"), "date"),
    _Form("So far {value} people have signed up for the *{thing}*.", _small, "number of people at the {thing}",
          ("How many people have signed up for the {thing}?", "How many come to the {thing}?",
           "What number of people is there at the {thing}?")),
    _Form("At the *{thing}* there are {value} chairs.", _small, "number of chairs at the {thing}",
          ("How many chairs are there at the {thing}?", "How many chairs does the {thing} have?",
           "For how many is there a chair at the {thing}?")),
    _Form("To enter the *{thing}* you show the code {value}.", Content.code, "code for the {thing}",
          ("What code opens the {thing}?", "Which code do I show at the {thing}?",
           "Which code lets me in at the {thing}?")),
    _Form("At the *{thing}* {value} will speak.", Content.person, "speaker at the {thing}",
          ("Who speaks at the {thing}?", "Whom can I hear at the {thing}?",
           "Who is the speaker of the {thing}?"), "name"),
    _Form("You are invited to the *{thing}* in {value}.", Content.city, "town of the {thing}",
          ("What town is the {thing} in?", "In which place is the {thing}?", "To what town do I go for the {thing}?",
           "Which town has the {thing}?")),
    _Form("The *{thing}* ends at {value}.", Content.time, "end of the {thing}",
          ("When is the {thing} over?", "At what time does the {thing} end?", "Until when is the {thing}?")),
    _Form("The *{thing}* is led by {value}.", Content.person, "leader of the {thing}",
          ("Who leads the {thing}?", "By whom is the {thing} led?", "Who is in charge of the {thing}?"), "name"),
    _Form("The *{thing}* has room for {value} people.", _small, "room at the {thing}",
          ("How many people fit at the {thing}?", "For how many people is the {thing}?",
           "How many can take part in the {thing}?")),
    _Form("They have put off the *{thing}* until {value}.", Content.date, "new date of the {thing}",
          ("Until when was the {thing} put off?", "What is the new day of the {thing}?"), "date"),
    _Form("For the *{thing}* they have booked hall {value}.", lambda content: content.count(1, 99),
          "hall of the {thing}", ("In which hall is the {thing}?", "Which hall is booked for the {thing}?",
                                  "Where can I find the {thing}?")),
    _Form("For the *{thing}* we charge {value}.", lambda content: content.amount(content.cents()),
          "price of the {thing}", ("What does the {thing} cost?", "How much is the {thing}?",
                                   "What do they charge for the {thing}?"), "price"),
)  # fmt: skip
OF_OBJECTS = (
    _Form("The *{thing}* that you lost was found by {value}.", Content.person, "finder of the {thing}",
          ("Who found the {thing}?", "By whom was the {thing} found?"), "name"),
    _Form("The *{thing}* belongs to {value}.", Content.company, "owner of the {thing}",
          ("Who owns the {thing}?", "To whom does the {thing} belong?", "Whose {thing} is it?"), "name"),
    _Form("We have painted the *{thing}* {value}.", lambda content: content.rng.choice(COLORS), "color of the {thing}",
          ("What color is the {thing}?", "In which color was the {thing} painted?", "How was the {thing} painted?")),
    _Form("There is a *{thing}* in room {value}.", lambda content: content.count(1, 999), "room with the {thing}",
          ("In which room is the {thing}?", "Where is the {thing}?", "Which room has the {thing}?")),
    _Form("Please send the *{thing}* to {value}.", Content.city, "destination of the {thing}",
          ("Where should I send the {thing}?", "To which city does the {thing} go?", "Where does the {thing} go?")),
    _Form("Of the *{thing}* we have {value} in stock.", _small, "stock of the {thing}",
          ("How many of the {thing} are in stock?", "How much stock is there of the {thing}?")),
    _Form("The *{thing}* has the number {value}.", Content.code, "number of the {thing}",
          ("Which number does the {thing} have?", "What number identifies the {thing}?",
           "How is the {thing} numbered?")),
    _Form("You can pick up the *{thing}* in {value}.", Content.city, "where to get the {thing}",
          ("Where can I pick up the {thing}?", "In what town do I find the {thing}?", "Where do I get the {thing}?")),
    _Form("Last year the *{thing}* cost {value}.", lambda content: content.amount(content.cents()),
          "former price of the {thing}", ("What did the {thing} cost?", "How much was the {thing}?",
                                          "How expensive was the {thing}?"), "price"),
    _Form("The *{thing}* comes from {value}.", Content.country, "origin of the {thing}",
          ("Where does the {thing} come from?", "From which country is the {thing}?", "Where was the {thing} made?")),
    _Form("It is {value} who will bring the *{thing}*.", Content.person, "bringer of the {thing}",
          ("Who brings the {thing}?", "Who will bring the {thing}?", "By whom is the {thing} brought?"), "name"),
    _Form("The *{thing}* was repaired on {value}.", Content.date, "repair of the {thing}",
          ("When was the {thing} repaired?", "On what day did they repair the {thing}?"), "date"),
)  # fmt: skip
# A page on which something of a sort is said of a thing is not asked for a label of that sort, as if it were absent.
OF_SORT = {
    ability: frozenset(name for name, label in LABELS.items() if label.ability == ability)
    for ability in ("date", "name", "price")
}
FURTHER = frozenset({"city", "street", "country", "company", "room", "color", "quantity", "guests", "seat",
                     "reference", "booking code", "serial number", "job"})  # fmt: skip


def draw_statements(rng: random.Random, content: Content, count: int) -> list[Statement]:
    """Sample statements, each of another form and about another thing.

    Args:
        rng: random generator of the document.
        content: source of values and further things.
        count: most statements.
    """
    forms = rng.sample([*OF_OCCASIONS, *OF_OBJECTS], k=count)
    occasions = iter(rng.sample(OCCASIONS, k=count))
    objects = iter(content.distinct(lambda: rng.choice((content.word, rng.choice(THINGS).lower))(), count))
    statements = []
    for form in forms:
        thing = next(occasions if form in OF_OCCASIONS else objects, None)
        if thing is not None:
            label, *wordings = (text.format(thing=thing) for text in (form.label, *form.wordings))
            sentence = form.sentence.replace("{thing}", thing)
            statements.append(Statement(sentence, form.draw(content), label, form.ability, tuple(wordings)))
    return statements


def told_apart(statement: Statement) -> frozenset[str]:
    """Return the labels of which a page with this statement is not asked as if it did not have them."""
    return OF_SORT.get(statement.ability, FURTHER)
