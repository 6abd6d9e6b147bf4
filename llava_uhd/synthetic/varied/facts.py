"""What a page says, kept by its layout: the questions are made from these alone.

Every answer is the text of runs that were placed, or follows from the values beside them.
"""

from dataclasses import dataclass, field

from .sheet import Run


@dataclass(frozen=True)
class Field:
    """A labelled value.

    Attributes:
        label: what a person would ask for, as "invoice number".
        value: the answer as printed.
        ability: what reading it takes: `field`, `date`, `price`, `total`, `name` or `title`.
        sources: the runs in which the value stands.
        wordings: further questions that ask for just this value.
        amount: the value as a number where questions compare it.
    """

    label: str
    value: str
    ability: str
    sources: tuple[Run, ...]
    wordings: tuple[str, ...] = ()
    amount: float | None = None


@dataclass
class Entries:
    """Rows with a name and values in columns: a table, a list of goods, the bars of a chart.

    Attributes:
        noun: the rows in singular, as "item", "bar" or "stop".
        names: run of each row's name.
        columns: run of each row's value by column; None where a cell is empty.
        values: each row's number by column, for comparisons; it need not be printed.
        key: column that a bare "price of X" asks for; None if there is none.
        complete: nothing of the list is hidden, so that counting and the last one are right.
    """

    noun: str
    names: list[Run]
    columns: dict[str, list[Run | None]] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    key: str | None = None
    complete: bool = True


@dataclass(frozen=True)
class Line:
    """A whole printed line that can be read out."""

    run: Run


Fact = Field | Entries | Line
