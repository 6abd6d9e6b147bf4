"""Made-up content: people, firms, addresses, goods, dates and amounts, in one style per document.

Names, streets and words come from Faker; goods also from lists and made-up words, so that no model can
rely on a vocabulary. All draws use the document's own random generator.
"""

import datetime
import random
import unicodedata
from functools import lru_cache
from typing import Any

from ..vocabulary import GOODS, THINGS
from .fonts import CHARACTERS

LOCALES = ("en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "nl_NL")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DATE_FORMATS = ("{y}-{m:02}-{d:02}", "{d:02}.{m:02}.{y}", "{m:02}/{d:02}/{y}", "{d:02}/{m:02}/{y}", "{d} {M3} {y}",
                "{M} {d}, {y}", "{d} {M} {y}", "{M3} {d}, {y}", "{d}.{m}.{s:02}")  # fmt: skip
TIME_FORMATS = ("{h:02}:{m:02}", "{h:02}:{m:02}", "{h}:{m:02}", "{h12}:{m:02} {AM}", "{h12}:{m:02} {AM}",
                "{h12}:{m:02}{am}", "{h12}.{m:02} {am}", "{h:02}.{m:02}", "{h12:02}:{m:02} {AM}")  # fmt: skip
CURRENCIES = ("${}", "${}", "{}", "{}", "€{}", "{} €", "£{}", "{} EUR", "USD {}", "{} USD", "CHF {}")
GROUPS = (
    "#### #### ####",
    "## #### ####",
    "### ### ###",
    "#### ####",
    "## ### ###",
    "#### #### #### ####",
    "## ## ##",
)
SIZES = ("", "", "", " 1L", " 500g", " 2kg", " x2", " 250ml", " XL", " S", " 6pk", " 12 oz", " 1.5m", " A4", " 100pc")
QUALITIES = ("Organic", "Fresh", "Large", "Small", "Classic", "Premium", "Dark", "White", "Green", "Red", "Steel",
             "Wooden", "Smart", "Mini", "Dry", "Sweet", "Basic", "Heavy", "Soft", "Travel")  # fmt: skip
DISHES = ("Soup", "Salad", "Burger", "Pasta", "Curry", "Stew", "Pie", "Risotto", "Tart", "Steak", "Noodles", "Tacos",
          "Pizza", "Omelette", "Sandwich", "Dumplings", "Cheesecake", "Espresso", "Lemonade", "Pancakes")  # fmt: skip
ONSETS, VOWELS, CODAS = (
    "b c d f g h j k l m n p r s t v w z br cr dr fl gr pl st tr sh ch".split(),
    "aeiou",
    "nrslmtkd",
)


@lru_cache(maxsize=1)
def _fakers() -> dict[str, Any]:
    try:
        from faker import Faker
    except ImportError as error:
        raise ImportError("varied documents need Faker: pip install 'llava-uhd[synthetic]'") from error
    fakers = {locale: Faker(locale) for locale in LOCALES}
    for provider in (each for faker in fakers.values() for each in faker.get_providers()):
        # Faker makes its list of Italian cities from a set, in another order in each process.
        if isinstance(cities := getattr(provider, "cities", None), list):
            provider.cities = sorted(cities)
    return fakers


def plain(text: str) -> str:
    """Reduce a text to the characters that every font of the catalog has; other accents are dropped.

    Args:
        text: any text.
    """
    kept = []
    for character in unicodedata.normalize("NFC", text):
        if character in CHARACTERS:
            kept.append(character)
        else:
            kept += [part for part in unicodedata.normalize("NFKD", character) if part in CHARACTERS]
    return " ".join("".join(kept).split())


class Content:
    """Source of a document's content.

    Attributes:
        rng: random generator of the document.
        date_format, time_format, currency: style of all dates, times and amounts of the document.
        thousands: separator of thousands, "," or none.
    """

    def __init__(self, rng: random.Random):
        self.rng = rng
        locale = rng.choice(LOCALES) if rng.random() < 0.4 else rng.choice(LOCALES[:2])
        self._fake = _fakers()[locale]
        self._fake.seed_instance(rng.getrandbits(48))
        self._english = _fakers()["en_US"]
        self._english.seed_instance(rng.getrandbits(48))
        self.date_format = rng.choice(DATE_FORMATS)
        self.time_format = rng.choice(TIME_FORMATS)
        self.currency = rng.choice(CURRENCIES)
        self.thousands = rng.choice((",", ",", ""))

    def person(self) -> str:
        return plain(f"{self._fake.first_name()} {self._fake.last_name()}")

    def first_name(self) -> str:
        return plain(self._fake.first_name())

    def company(self) -> str:
        if self.rng.random() < 0.3:
            return (
                f"{self.word().title()} {self.rng.choice(('Market', 'Store', 'Foods', 'Cafe', 'Supplies', 'Works'))}"
            )
        return plain(self._fake.company())

    def street(self) -> str:
        return plain(self._fake.street_address().split("\n")[0])

    def city(self) -> str:
        return plain(self._fake.city())

    def postcode(self) -> str:
        return plain(self._fake.postcode())

    def country(self) -> str:
        return plain(self._english.country())

    def email(self, name: str) -> str:
        first = plain(name).lower().replace(" ", self.rng.choice((".", "_", "")))
        first = "".join(c for c in first if c.isascii() and (c.isalnum() or c in "._"))
        return f"{first}@{self.made_up().lower()}.{self.rng.choice(('com', 'org', 'net', 'io', 'co.uk'))}"

    def phone(self) -> str:
        pattern = self.rng.choice(("###-###-####", "(###) ###-####", "+## ### ######", "0## #### ####", "### ####"))
        return "".join(str(self.rng.randint(0, 9)) if c == "#" else c for c in pattern)

    def code(self) -> str:
        """Return a random code such as an order number."""
        pattern = self.rng.choice(
            (
                "??-####",
                "#####",
                "######",
                "?####",
                "???-###",
                "####-##",
                "?##-####",
                "##-?-###",
                "???-######",
                "???######",
                "?-######",
                "??######",
                "??-#####",
            )  # fmt: skip
        )
        letters = "ABCDEFGHJKLMNPRSTUVWXYZ"
        draw = {"?": lambda: self.rng.choice(letters), "#": lambda: str(self.rng.randint(0, 9))}
        return "".join(draw[c]() if c in draw else c for c in pattern)

    def grouped_number(self) -> str:
        """Return digits in groups, as accounts and cards have them."""
        pattern = self.rng.choice(GROUPS)
        return "".join(str(self.rng.randint(0, 9)) if c == "#" else c for c in pattern)

    def country_code(self) -> str:
        """Return two letters and two digits, as account numbers of banks begin."""
        return f"{self.rng.choice(('DE', 'FR', 'ES', 'IT', 'NL', 'GB', 'AT', 'BE'))}{self.rng.randint(10, 99)} "

    def made_up(self) -> str:
        """Return a made-up word."""
        rng = self.rng
        syllables = [rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(("", "", rng.choice(CODAS))) for _ in "ab"]
        return ("".join(syllables) + rng.choice(("", "", rng.choice(CODAS)))).title()

    def word(self) -> str:
        return plain(self._english.word())

    def words(self, count: int) -> str:
        return " ".join(self.word() for _ in range(count))

    def sentence(self, count: int) -> str:
        return plain(self._english.sentence(nb_words=count))

    def job(self) -> str:
        return plain(self._english.job().split(",")[0].split("/")[0])

    def product(self) -> str:
        rng = self.rng
        draw = rng.random()
        if draw < 0.5:
            name = rng.choice(GOODS if rng.random() < 0.5 else THINGS)
        elif draw < 0.75:
            name = self.word().title()
        else:
            name = self.made_up()
        if rng.random() < 0.35:
            name = f"{rng.choice(QUALITIES)} {name}"
        return name + rng.choice(SIZES)

    def dish(self) -> str:
        return f"{self.word().title()} {self.rng.choice(DISHES)}"

    def distinct(self, draw: Any, count: int) -> list[str]:
        """Return distinct texts of a method, none contained in another.

        Args:
            draw: a method of this object without arguments.
            count: maximum number of texts; fewer if the method repeats itself too often.
        """
        found: list[str] = []
        for _ in range(8 * count):
            text = draw()
            lower = text.lower()
            if text and all(lower not in other.lower() and other.lower() not in lower for other in found):
                found.append(text)
                if len(found) == count:
                    break
        return found

    def date(self) -> str:
        return self.format_date(datetime.date(1995, 1, 1) + datetime.timedelta(days=self.rng.randrange(12_800)))

    def format_date(self, day: datetime.date) -> str:
        month = MONTHS[day.month - 1]
        parts = {"y": day.year, "m": day.month, "d": day.day, "s": day.year % 100, "M": month, "M3": month[:3]}
        return self.date_format.format(**parts)

    def time(self) -> str:
        return self.format_time(self.rng.randrange(24 * 60))

    def format_time(self, minutes: int) -> str:
        """Format a time in the document's style.

        Args:
            minutes: minutes after midnight; a day has 1,440.
        """
        hour, minute = minutes // 60 % 24, minutes % 60
        half = "PM" if hour >= 12 else "AM"
        return self.time_format.format(h=hour, h12=(hour + 11) % 12 + 1, m=minute, AM=half, am=half.lower())

    def cents(self) -> int:
        """Return a random amount in hundredths, small ones most often."""
        rng = self.rng
        cents = rng.randint(40, 10 ** rng.choice((3, 3, 4, 4, 5)))
        return cents if rng.random() < 0.7 else max(cents // 100 * 100 + rng.choice((0, 50, 95, 99)), 50)

    def amount(self, cents: int, symbol: bool = True) -> str:
        """Format an amount in the document's style.

        Args:
            cents: the amount in hundredths.
            symbol: include the currency symbol.
        """
        text = f"{cents // 100:{self.thousands}}.{cents % 100:02}"
        return self.currency.format(text) if symbol else text

    def count(self, low: int, high: int) -> str:
        return f"{self.rng.randint(low, high):{self.thousands}}"
