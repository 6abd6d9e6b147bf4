"""One document of the benchmark and its questions; the words that all kinds share.

Words, names and wordings are the benchmark's own: nothing is taken from the generator of training documents.
"""

import random
from dataclasses import dataclass, field

from PIL import Image

DECLINED = "not in the document"
NO_DOCUMENT = "this is not a document I can read"
SHOWN = 12 * 224**2

FORENAMES = ("Amara", "Bjorn", "Chiara", "Dmitri", "Elodie", "Farid", "Gwen", "Hiroshi", "Imani", "Joaquin", "Kaveh",
             "Leila", "Mateo", "Nadia", "Oswald", "Priya", "Quentin", "Rasmus", "Soraya", "Tomas", "Ursula", "Viktor",
             "Wilma", "Xenia", "Yusuf", "Zelda")  # fmt: skip
SURNAMES = ("Abernathy", "Bianchi", "Drummond", "Eriksen", "Fontaine", "Galbraith", "Hashimoto", "Ivanov",
            "Jankowski", "Kowalczyk", "Lindqvist", "Moretti", "Nakamura", "Okafor", "Petrov", "Quigley", "Rasmussen",
            "Sokolov", "Takahashi", "Underwood", "Vasquez", "Whitaker", "Yilmaz", "Zimmermann")  # fmt: skip
GOODS = ("Almond croissant", "Sourdough loaf", "Oat milk", "Espresso beans", "Rye bread", "Cheddar", "Basil pesto",
         "Tomato soup", "Green olives", "Dark chocolate", "Sparkling water", "Orange juice", "Blueberries", "Kale",
         "Avocado", "Hummus", "Pita", "Couscous", "Lentils", "Chickpeas", "Brown sugar", "Maple syrup", "Granola",
         "Cottage cheese", "Salmon fillet", "Rice noodles", "Soy sauce", "Peanut butter", "Dish soap", "Paper towels",
         "Light bulb", "Extension cord", "Notebook", "Gel pen", "Desk lamp", "Wall clock", "Yoga mat", "Water bottle",
         "Phone case", "Screen protector", "Bike light", "Door handle", "Paint roller", "Wood glue", "Tape measure",
         "Garden hose", "Flower pot", "Hand cream", "Toothpaste", "Shampoo", "Wool socks", "Rain jacket")  # fmt: skip
PLACES = ("Reykjavik", "Tallinn", "Ljubljana", "Bruges", "Salzburg", "Cardiff", "Granada", "Bologna", "Aarhus", "Gent",
          "Valletta", "Nicosia", "Split", "Lucerne", "Bremen", "Nantes", "Malaga", "Trieste", "Uppsala", "Turku",
          "Galway", "Coimbra", "Patras", "Riga", "Vilnius", "Basel")  # fmt: skip
FIRMS = ("Northwind Traders", "Blue Heron Books", "Silverlake Dental", "Copperfield Tools", "Juniper & Sage",
         "Harbor Light Inn", "Redwood Printing", "Maplewood Clinic", "Old Bridge Bakery", "Sunrise Solar",
         "Granite Peak Gear", "Willow Creek Farm", "Pinecone Software", "Ember Coffee Roasters")  # fmt: skip
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        answers: every text that is right.
        ability: kind of document, as in the scores.
        print: size of the answer's letters in pixels of the image; None where nothing is printed.
    """

    text: str
    answers: tuple[str, ...]
    ability: str
    print: float | None = None


@dataclass
class Page:
    """A document with its questions.

    Attributes:
        program: program that rendered it.
    """

    kind: str
    program: str
    image: Image.Image
    questions: list[Question] = field(default_factory=list)


def person(rng: random.Random) -> str:
    return f"{rng.choice(FORENAMES)} {rng.choice(SURNAMES)}"


def dollars(cents: int, sign: str = "$") -> str:
    return f"{sign}{cents / 100:,.2f}"


def money_answers(printed: str) -> tuple[str, ...]:
    """An amount as printed, and without its sign and separators."""
    bare = printed.strip("$€£ ")
    return tuple(dict.fromkeys((printed, bare, bare.replace(",", ""))))


def day(rng: random.Random) -> str:
    year, month, date = rng.randint(2011, 2031), rng.randint(1, 12), rng.randint(1, 28)
    forms = (
        f"{MONTHS[month - 1]} {date}, {year}",
        f"{date} {MONTHS[month - 1][:3]} {year}",
        f"{year}-{month:02}-{date:02}",
        f"{date:02}.{month:02}.{year}",
        f"{month:02}/{date:02}/{year}",
    )
    return rng.choice(forms)


def code(rng: random.Random) -> str:
    return f"{rng.choice(('RX', 'PO', 'K', 'INV', 'B'))}{rng.choice(('-', ''))}{rng.randint(1000, 999999)}"
