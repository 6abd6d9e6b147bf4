"""Labels of documents: printed forms, questions, and generators of values."""

from collections.abc import Callable
from dataclasses import dataclass

from ..vocabulary import COLORS, DEPARTMENTS, STATES
from .content import Content


@dataclass(frozen=True)
class Label:
    """Label of a field.

    Attributes:
        printed: printed forms of the label.
        draw: function that returns a random value.
        ability: ability that a question about the value tests.
        wordings: specific questions in addition to the general ones.
    """

    printed: tuple[str, ...]
    draw: Callable[[Content], str]
    ability: str = "field"
    wordings: tuple[str, ...] = ()


def _person(content: Content) -> str:
    return content.person()


def _money(content: Content) -> str:
    return content.amount(content.cents())


def _code(content: Content) -> str:
    return content.code()


def _date(content: Content) -> str:
    return content.date()


LABELS: dict[str, Label] = {
    "invoice number": Label(
        ("Invoice no.", "Invoice number", "Invoice #", "Invoice No"),
        _code,
        "field",
        ("Which number does the invoice have?",),
    ),
    "order number": Label(("Order no.", "Order number", "Order #", "Order"), _code),
    "customer number": Label(("Customer no.", "Customer number", "Client no.", "Customer ID"), _code),
    "reference": Label(("Reference", "Ref.", "Our reference", "Ref"), _code),
    "account number": Label(("Account no.", "Account number", "Account", "Acct."), _code),
    "ticket number": Label(("Ticket no.", "Ticket number", "Ticket"), _code),
    "tracking number": Label(("Tracking no.", "Tracking number", "Tracking"), _code),
    "passport number": Label(("Passport no.", "Passport number", "Passport"), _code),
    "policy number": Label(("Policy no.", "Policy number", "Policy"), _code),
    "serial number": Label(("Serial no.", "Serial number", "S/N"), _code),
    "booking code": Label(("Booking code", "Booking ref.", "Confirmation"), _code),
    "tax number": Label(("VAT no.", "Tax ID", "VAT ID"), _code),
    "due date": Label(
        ("Due date", "Due", "Payment due", "Pay by"), _date, "date", ("When is it due?", "By when must it be paid?")
    ),
    "delivery date": Label(("Delivery date", "Delivered on", "Delivery"), _date, "date", ("When is it delivered?",)),
    "birth date": Label(("Date of birth", "Born", "Birth date", "DOB"), _date, "date", ("When was the person born?",)),
    "expiry date": Label(
        ("Expires", "Valid until", "Expiry date", "Best before"),
        _date,
        "date",
        ("Until when is it valid?", "When does it expire?"),
    ),
    "start date": Label(("Start date", "From", "Check-in", "Start"), _date, "date", ("When does it start?",)),
    "end date": Label(("End date", "Until", "Check-out", "End"), _date, "date", ("When does it end?",)),
    "customer": Label(("Customer", "Client", "Bill to", "Sold to"), _person, "name", ("Who is the customer?",)),
    "contact": Label(("Contact", "Contact person", "Attn."), _person, "name", ("Who is the contact?",)),
    "cashier": Label(("Cashier", "Served by", "Operator", "Staff"), _person, "name", ("Who was the cashier?",)),
    "manager": Label(("Manager", "Supervisor"), _person, "name", ("Who is the manager?",)),
    "passenger": Label(("Passenger", "Traveler"), _person, "name", ("Who travels?", "Who is the passenger?")),
    "patient": Label(("Patient", "Patient name"), _person, "name", ("Who is the patient?",)),
    "phone": Label(
        ("Phone", "Tel.", "Telephone", "Tel", "Mobile"),
        lambda c: c.phone(),
        "field",
        ("What is the phone number?", "Which number can I call?"),
    ),
    "fax": Label(("Fax", "Fax no."), lambda c: c.phone(), "field", ("What is the fax number?",)),
    "email": Label(
        ("Email", "E-mail", "Mail"), lambda c: c.email(c.person()), "field", ("What is the email address?",)
    ),
    "city": Label(("City", "Town"), lambda c: c.city(), "field", ("Which city is given?",)),
    "street": Label(("Street", "Street address"), lambda c: c.street()),
    "post code": Label(("Post code", "ZIP", "ZIP code", "Postal code"), lambda c: c.postcode()),
    "country": Label(("Country", "Nationality"), lambda c: c.country(), "field", ("Which country is given?",)),
    "department": Label(("Department", "Dept.", "Unit"), lambda c: c.rng.choice(DEPARTMENTS)),
    "status": Label(("Status", "State"), lambda c: c.rng.choice(STATES)),
    "color": Label(("Color", "Colour"), lambda c: c.rng.choice(COLORS)),
    "room": Label(("Room", "Room no."), lambda c: c.count(1, 999)),
    "table number": Label(("Table", "Table no."), lambda c: c.count(1, 80)),
    "seat": Label(("Seat", "Seat no."), lambda c: f"{c.rng.randint(1, 60)}{c.rng.choice('ABCDEF')}"),
    "gate": Label(("Gate",), lambda c: f"{c.rng.choice('ABCDEFGH')}{c.rng.randint(1, 60)}"),
    "platform": Label(("Platform", "Track"), lambda c: c.count(1, 24)),
    "weight": Label(
        ("Weight", "Net weight"),
        lambda c: f"{c.rng.randint(1, 99)}.{c.rng.randint(0, 9)} kg",
        "field",
        ("How heavy is it?",),
    ),
    "height": Label(("Height",), lambda c: f"{c.rng.randint(40, 220)} cm", "field", ("How high is it?",)),
    "quantity": Label(("Quantity", "Qty"), lambda c: c.count(1, 500)),
    "guests": Label(("Guests", "Persons"), lambda c: c.count(1, 60), "field", ("How many guests are there?",)),
    "job": Label(("Occupation", "Job title", "Position"), lambda c: c.job()),
    "company": Label(("Company", "Employer", "Organization"), lambda c: c.company()),
    "deposit": Label(("Deposit", "Prepaid"), _money, "price", ("How much is the deposit?",)),
    "amount": Label(("Amount", "Amount due"), _money, "price"),
    "fee": Label(("Fee", "Service fee", "Charge"), _money, "price", ("How much is the fee?",)),
    "discount": Label(("Discount", "Rebate"), _money, "price", ("How much is the discount?",)),
    "shipping": Label(("Shipping", "Shipping cost"), _money, "price", ("How much is the shipping?",)),
    "tip": Label(("Tip", "Gratuity"), _money, "price", ("How much is the tip?",)),
    "total": Label(
        ("Total", "Total", "TOTAL", "Grand total", "Total due", "Sum", "Balance due"),
        _money,
        "total",
        (
            "What is the total amount?",
            "How much is it in total?",
            "What do I have to pay?",
            "How much did it all come to?",
            "What is the final amount?",
            "total price?",
            "Total amount?",
        ),
    ),
    "subtotal": Label(
        ("Subtotal", "Sub-total", "Net", "Net amount"), _money, "price", ("How much is it before tax?",)
    ),
    "tax": Label(
        ("Tax", "VAT", "Sales tax", "GST"), _money, "price", ("How much is the tax?", "How much tax is paid?")
    ),
    "payment": Label(
        ("Payment", "Paid by", "Payment method"),
        lambda c: c.rng.choice(("Cash", "Visa", "Mastercard", "Card", "Transfer", "Check")),
        "field",
        ("How was it paid?",),
    ),
}
