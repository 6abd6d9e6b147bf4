"""Vocabulary of the documents: fixed lists of words, and random numbers, dates and codes."""

import random

SHOPS = (
    "Corner Shop", "Green Market", "City Foods", "Daily Fresh", "Sunny Store", "Bean & Leaf", "North Bakery",
    "Old Mill", "River Deli", "Star Mart", "Garden Cafe", "Hill Grocer", "Blue Kitchen", "Farm Direct", "Red Barn",
    "Lake Market", "Quick Stop", "Union Foods", "Park Kiosk", "Maple Store",
)  # fmt: skip
GOODS = (
    "Milk", "Bread", "Butter", "Cheese", "Apples", "Pears", "Bananas", "Coffee", "Tea", "Sugar", "Flour", "Rice",
    "Pasta", "Eggs", "Honey", "Jam", "Juice", "Water", "Salt", "Pepper", "Olives", "Oil", "Onions", "Carrots",
    "Tomatoes", "Lettuce", "Beans", "Soup", "Yogurt", "Cream", "Ham", "Fish", "Cookies", "Cake", "Nuts", "Soap",
    "Candles", "Matches", "Batteries", "Paper", "Lemons", "Grapes", "Melon", "Plums", "Garlic", "Ginger", "Mustard",
    "Vinegar", "Cereal", "Crackers",
)  # fmt: skip
THINGS = (
    "Lamp", "Chair", "Table", "Desk", "Shelf", "Sofa", "Bed", "Mirror", "Clock", "Carpet", "Curtain", "Pillow",
    "Bench", "Stool", "Cabinet", "Drawer", "Vase", "Frame", "Basket", "Hammer", "Screw", "Drill", "Saw", "Ladder",
    "Paint", "Brush", "Bucket", "Rope", "Hose", "Shovel", "Pump", "Filter", "Cable", "Plug", "Switch", "Fan",
    "Heater", "Kettle", "Toaster", "Oven",
)  # fmt: skip
CITIES = (
    "Berlin", "Paris", "London", "Madrid", "Rome", "Vienna", "Prague", "Oslo", "Dublin", "Lisbon", "Athens", "Warsaw",
    "Zurich", "Geneva", "Milan", "Lyon", "Porto", "Hamburg", "Munich", "Turin", "Seville", "Bergen", "Gdansk",
    "Krakow", "Tokyo", "Kyoto", "Lima", "Quito", "Cairo", "Boston",
)  # fmt: skip
FIRST_NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Henry", "Ida", "Jonas", "Karin", "Leo", "Maria",
    "Nils", "Olga", "Paul", "Rosa", "Simon", "Tara", "Victor", "Wanda", "Yara", "Oscar", "Lucy",
)  # fmt: skip
LAST_NAMES = (
    "Adams", "Baker", "Clark", "Davis", "Evans", "Fischer", "Gray", "Hill", "Jones", "Keller", "Lopez", "Miller",
    "Novak", "Olsen", "Parker", "Quinn", "Reed", "Smith", "Turner", "Weber", "Young", "Moreau", "Rossi", "Wolf",
)  # fmt: skip
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DEPARTMENTS = ("Sales", "Support", "Design", "Finance", "Legal", "Research", "Security", "Logistics", "Marketing",
               "Training", "Planning", "Quality")  # fmt: skip
STATES = ("open", "closed", "paid", "unpaid", "shipped", "pending", "new", "done", "active", "late")
COLORS = ("red", "green", "blue", "white", "black", "brown", "yellow", "grey", "orange", "purple")
CODE_LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"


def number(rng: random.Random, low: int, high: int) -> str:
    return str(rng.randint(low, high))


def code(rng: random.Random) -> str:
    """Return a random code such as an order number: letters and digits that cannot be guessed."""
    letters = "".join(rng.choices(CODE_LETTERS, k=rng.randint(1, 2)))
    return f"{letters}{rng.choice(('', '-'))}{rng.randint(100, 99999)}"


def person(rng: random.Random) -> str:
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"


def date(rng: random.Random) -> str:
    year, month, day = rng.randint(1990, 2029), rng.randint(1, 12), rng.randint(1, 28)
    style = rng.randrange(4)
    if style == 0:
        return f"{year}-{month:02}-{day:02}"
    if style == 1:
        return f"{day:02}.{month:02}.{year}"
    if style == 2:
        return f"{month:02}/{day:02}/{year}"
    return f"{day} {MONTHS[month - 1][:3]} {year}"


def phone(rng: random.Random) -> str:
    return f"{rng.randint(10, 999)}-{rng.randint(1000, 99999)}"


def money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02}"
