"""Pages covered with random words, numbers and characters: for learning to read, not for questions."""

import random
import string

from .canvas import Canvas
from .vocabulary import CITIES, DEPARTMENTS, FIRST_NAMES, GOODS, LAST_NAMES, SHOPS, THINGS, code, date, money, phone

WORDS = (*GOODS, *THINGS, *CITIES, *FIRST_NAMES, *LAST_NAMES, *DEPARTMENTS, *SHOPS)
CHARACTERS = string.ascii_letters + 2 * string.digits + ".,:-/$%&()#+"


def scribble_text(rng: random.Random) -> str:
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(WORDS)
    if kind == 1:
        return rng.choice(WORDS).upper()
    if kind == 2:
        return rng.choice((date, code, phone))(rng)
    if kind == 3:
        return rng.choice(("", "$")) + money(rng.randint(10, 99999))
    if kind == 4:
        return str(rng.randint(0, 10 ** rng.randint(1, 7)))
    return "".join(rng.choices(CHARACTERS, k=rng.randint(1, 8)))


def lay_out_scribble(canvas: Canvas) -> None:
    """Lines full of texts, in changing fonts and sizes."""
    rng = canvas.rng
    while canvas.lines_left() >= 1:
        x = canvas.left
        while True:
            text = scribble_text(rng)
            if x + canvas.measure(text) > canvas.right:
                break
            x += canvas.place(text, x).width + rng.uniform(0.3, 1.5) * canvas.size
        canvas.next_line(rng.uniform(1.0, 1.15))
        if rng.random() < 0.15:
            canvas.restyle()
        if rng.random() < 0.1:
            canvas.rule()
