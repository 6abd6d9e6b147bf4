"""Facts of a page, recorded by its layout; questions are made from these alone.

Every answer is the text of placed runs, or follows from the values stored with them.
"""

from dataclasses import dataclass, field

from .sheet import Run


@dataclass(frozen=True)
class Field:
    """Labeled value.

    Attributes:
        label: name that a question uses, for example "invoice number".
        value: the answer as printed.
        ability: ability that the question tests: `field`, `date`, `price`, `total`, `name` or `title`.
        sources: runs that contain the value.
        wordings: further questions about exactly this value.
        amount: the value as a number, for comparisons.
        keys: runs by which the value is found, where it is not by a label in `LABELS`.
    """

    label: str
    value: str
    ability: str
    sources: tuple[Run, ...]
    wordings: tuple[str, ...] = ()
    amount: float | None = None
    keys: tuple[Run, ...] = ()


@dataclass
class Entries:
    """Rows with a name and values in columns: a table, a list of goods, the bars of a chart.

    Attributes:
        noun: singular noun of a row, for example "item", "bar" or "stop".
        names: run of each row's name.
        columns: run of each row's value by column; None where a cell is empty.
        values: each row's number by column, for comparisons; it need not be printed.
        key: column that a bare "price of X" asks for; None if there is none.
        complete: True if no row is missing, so that questions about the count and the last row are valid.
    """

    noun: str
    names: list[Run]
    columns: dict[str, list[Run | None]] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    key: str | None = None
    complete: bool = True


@dataclass(frozen=True)
class Line:
    """Whole printed line that can be transcribed."""

    run: Run


Fact = Field | Entries | Line
