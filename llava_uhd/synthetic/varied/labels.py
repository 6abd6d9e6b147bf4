"""Labels of documents: printed forms and generators of values."""

from collections.abc import Callable
from dataclasses import dataclass

from ..vocabulary import COLORS, DEPARTMENTS, STATES
from .content import Content

LANGUAGES = ("English", "German", "French", "Spanish", "Italian", "Dutch", "Polish", "Czech", "Swedish", "Greek")
MATERIALS = ("oak", "steel", "cotton", "wool", "glass", "paper", "leather", "linen", "plastic", "copper", "silk")


@dataclass(frozen=True)
class Label:
    """Label of a field.

    Attributes:
        printed: printed forms of the label.
        draw: function that returns a random value.
        ability: ability that a question about the value tests.
    """

    printed: tuple[str, ...]
    draw: Callable[[Content], str]
    ability: str = "field"


def _person(content: Content) -> str:
    return content.person()


def _money(content: Content) -> str:
    return content.amount(content.cents())


def _code(content: Content) -> str:
    return content.code()


def _date(content: Content) -> str:
    return content.date()


def _grouped(content: Content) -> str:
    return content.grouped_number() if content.rng.random() < 0.6 else content.code()


def _website(content: Content) -> str:
    return f"www.{content.made_up().lower()}.{content.rng.choice(('com', 'org', 'net'))}"


def _time(content: Content) -> str:
    return content.time()


def invented(content: Content) -> tuple[str, Label, str]:
    """Return a label of any words, so that labels are found by their letters, and the label whose values it has.

    Args:
        content: source of the words and of the value.
    """
    name = content.words(content.rng.choice((1, 2, 2)))
    while name in _TAKEN:
        name = content.words(2)
    sort = content.rng.choice(list(LABELS))
    return (
        name,
        Label((name.capitalize(), name.capitalize(), name, name.title(), name.upper()), LABELS[sort].draw),
        sort,
    )


LABELS: dict[str, Label] = {
    "invoice number": Label(("Invoice no.", "Invoice number", "Invoice #", "Invoice No"), _code),
    "order number": Label(("Order no.", "Order number", "Order #", "Order"), _code),
    "customer number": Label(("Customer no.", "Customer number", "Client no.", "Customer ID"), _code),
    "reference": Label(("Reference", "Ref.", "Our reference", "Ref"), _code),
    "account number": Label(("Account no.", "Account number", "Account", "Acct."), _grouped),
    "ticket number": Label(("Ticket no.", "Ticket number", "Ticket"), _code),
    "tracking number": Label(("Tracking no.", "Tracking number", "Tracking"), _code),
    "passport number": Label(("Passport no.", "Passport number", "Passport"), _code),
    "policy number": Label(("Policy no.", "Policy number", "Policy"), _code),
    "article number": Label(("Article no.", "Art. no.", "Art.", "Item no.", "Article", "SKU"), _code),
    "serial number": Label(("Serial no.", "Serial number", "S/N"), _code),
    "booking code": Label(("Booking code", "Booking ref.", "Confirmation"), _code),
    "tax number": Label(("VAT no.", "Tax ID", "VAT ID"), _code),
    "card number": Label(("Card no.", "Card number", "Card"), _grouped),
    "IBAN": Label(("IBAN", "IBAN no."), lambda c: f"{c.country_code()}{c.grouped_number()}"),
    "license plate": Label(("License plate", "Plate no.", "Plate"), _code),
    "shipment number": Label(("Shipment no.", "Shipment", "Consignment no."), _code),
    "member number": Label(("Member no.", "Membership no.", "Member ID"), _code),
    "batch": Label(("Batch", "Lot", "Batch no.", "Lot no."), _code),
    "departure time": Label(("Departure", "Departs", "Dep."), _time),
    "arrival time": Label(("Arrival", "Arrives", "Arr."), _time),
    "opening time": Label(("Opens", "Opening", "Doors"), _time),
    "due date": Label(("Due date", "Due", "Payment due", "Pay by"), _date, "date"),
    "delivery date": Label(("Delivery date", "Delivered on", "Delivery"), _date, "date"),
    "birth date": Label(("Date of birth", "Born", "Birth date", "DOB"), _date, "date"),
    "expiry date": Label(("Expires", "Valid until", "Expiry date", "Best before"), _date, "date"),
    "start date": Label(("Start date", "From", "Check-in", "Start"), _date, "date"),
    "end date": Label(("End date", "Until", "Check-out", "End"), _date, "date"),
    "account holder": Label(("Account holder", "Holder", "Account name"), _person, "name"),
    "driver": Label(("Driver", "Driven by"), _person, "name"),
    "doctor": Label(("Doctor", "Physician", "Seen by"), _person, "name"),
    "teacher": Label(("Teacher", "Instructor", "Taught by"), _person, "name"),
    "owner": Label(("Owner", "Property of"), _person, "name"),
    "emergency contact": Label(("Emergency contact", "In an emergency"), _person, "name"),
    "customer": Label(("Customer", "Client", "Bill to", "Sold to"), _person, "name"),
    "contact": Label(("Contact", "Contact person", "Attn."), _person, "name"),
    "cashier": Label(("Cashier", "Served by", "Operator", "Staff"), _person, "name"),
    "manager": Label(("Manager", "Supervisor"), _person, "name"),
    "passenger": Label(("Passenger", "Traveler"), _person, "name"),
    "patient": Label(("Patient", "Patient name"), _person, "name"),
    "phone": Label(("Phone", "Tel.", "Telephone", "Tel", "Mobile"), lambda c: c.phone()),
    "fax": Label(("Fax", "Fax no."), lambda c: c.phone()),
    "email": Label(("Email", "E-mail", "Mail"), lambda c: c.email(c.person())),
    "city": Label(("City", "Town"), lambda c: c.city()),
    "street": Label(("Street", "Street address"), lambda c: c.street()),
    "post code": Label(("Post code", "ZIP", "ZIP code", "Postal code"), lambda c: c.postcode()),
    "country": Label(("Country", "Nationality"), lambda c: c.country()),
    "department": Label(("Department", "Dept.", "Unit"), lambda c: c.rng.choice(DEPARTMENTS)),
    "status": Label(("Status", "State"), lambda c: c.rng.choice(STATES)),
    "color": Label(("Color", "Colour"), lambda c: c.rng.choice(COLORS)),
    "room": Label(("Room", "Room no."), lambda c: c.count(1, 999)),
    "table number": Label(("Table", "Table no."), lambda c: c.count(1, 80)),
    "seat": Label(("Seat", "Seat no."), lambda c: f"{c.rng.randint(1, 60)}{c.rng.choice('ABCDEF')}"),
    "gate": Label(("Gate",), lambda c: f"{c.rng.choice('ABCDEFGH')}{c.rng.randint(1, 60)}"),
    "platform": Label(("Platform", "Track"), lambda c: c.count(1, 24)),
    "weight": Label(("Weight", "Net weight"), lambda c: f"{c.rng.randint(1, 99)}.{c.rng.randint(0, 9)} kg"),
    "height": Label(("Height",), lambda c: f"{c.rng.randint(40, 220)} cm"),
    "quantity": Label(("Quantity", "Qty"), lambda c: c.count(1, 500)),
    "guests": Label(("Guests", "Persons"), lambda c: c.count(1, 60)),
    "job": Label(("Occupation", "Job title", "Position"), lambda c: c.job()),
    "company": Label(("Company", "Employer", "Organization"), lambda c: c.company()),
    "bank": Label(("Bank", "Bank name"), lambda c: f"{c.made_up()} Bank"),
    "website": Label(("Website", "Web", "Site"), _website),
    "language": Label(("Language", "Spoken"), lambda c: c.rng.choice(LANGUAGES)),
    "size": Label(("Size",), lambda c: c.rng.choice(("XS", "S", "M", "L", "XL", "XXL", c.count(30, 60)))),
    "age": Label(("Age", "Age (years)"), lambda c: c.count(1, 99)),
    "duration": Label(("Duration", "Time needed"), lambda c: f"{c.rng.randint(5, 300)} min"),
    "temperature": Label(("Temperature", "Temp."), lambda c: f"{c.rng.randint(-20, 90)} C"),
    "pages": Label(("Pages", "No. of pages"), lambda c: c.count(1, 900)),
    "material": Label(("Material", "Made of"), lambda c: c.rng.choice(MATERIALS)),
    "balance": Label(("Balance", "New balance", "Closing balance", "Current balance"), _money, "total"),
    "rent": Label(("Rent", "Monthly rent"), _money, "price"),
    "salary": Label(("Salary", "Wage", "Monthly pay"), _money, "price"),
    "change": Label(("Change", "Change due"), _money, "price"),
    "deposit": Label(("Deposit", "Prepaid"), _money, "price"),
    "amount": Label(("Amount", "Amount due"), _money, "price"),
    "fee": Label(("Fee", "Service fee", "Charge"), _money, "price"),
    "discount": Label(("Discount", "Rebate"), _money, "price"),
    "shipping": Label(("Shipping", "Shipping cost"), _money, "price"),
    "tip": Label(("Tip", "Gratuity"), _money, "price"),
    "total": Label(("Total", "Total", "TOTAL", "Grand total", "Total due", "Sum", "Balance due"), _money, "total"),
    "subtotal": Label(("Subtotal", "Sub-total", "Net", "Net amount"), _money, "price"),
    "tax": Label(("Tax", "VAT", "Sales tax", "GST"), _money, "price"),
    "payment": Label(
        ("Payment", "Paid by", "Payment method"),
        lambda c: c.rng.choice(("Cash", "Visa", "Mastercard", "Card", "Transfer", "Check")),
    ),
}
# Names of labels, their printed forms, and names of what is asked for without a label.
_TAKEN = {
    *LABELS,
    *(printed.lower() for label in LABELS.values() for printed in label.printed),
    *("name", "price", "product", "subject", "course", "author", "time", "date", "title", "recipient", "sender"),
}
