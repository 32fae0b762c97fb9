"""Products as an operator lists them: one in JSON, or many as a table in CSV whose rows are their variants.

Both are checked by the same declarations. Nothing is made unless all of it is right.
"""

from collections.abc import Sequence
from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from api import tables
from api.bodies import whole
from api.operations import Body, Table
from api.problems import Misfit
from api.seat_tables import Category, Price
from api.tables import misfit_in, refuse
from engine import products
from engine.products import STOCK_MAX, VALUE_MAX, VARIANTS_MAX, Status, value_of

# Rows of one table: variants of however many products.
ROWS_MAX = 10_000

Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=whole(r"[^\x00-\x1f\x7f]*"))]
Prose = Annotated[str, Meta(max_length=10_000, pattern=whole(r"[^\x00]*"))]
Size = Annotated[
    str,
    Meta(
        pattern=whole(r"[^\x00-\x20\x7f]([^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?"),
        max_length=50,
        description="Without a space at either end.",
    ),
]
Stock = Annotated[int, Meta(ge=0, le=STOCK_MAX)]

# What all rows of a product say alike.
LABEL = ("category", "price", "description", "status")


class NewVariant(Body, frozen=True):
    """A size, where there are several, and how many units there are of it."""

    stock: Stock
    size: Size | None = None


class ListedVariant(Body, frozen=True):
    """A row of a table: a variant, and what its product is."""

    name: Name
    category: Category
    price: Price
    stock: Stock
    description: Prose | UnsetType = UNSET
    status: Status | UnsetType = UNSET
    size: Size | UnsetType = UNSET


def read_json(name: str, variants: Sequence[NewVariant], price: int) -> tuple[products.NewVariant, ...]:
    """The variants of a product in JSON; raises Refused where they do not go together."""
    wrong = []
    first: dict[str | None, int] = {}
    for index, variant in enumerate(variants):
        before = first.setdefault(variant.size, index)
        if before != index:
            message = f"{_named(variant.size)} is listed twice, first as variants[{before}]"
            wrong.append(Misfit(f"variants[{index}].size", message))
    if (value := value_of(price=price, units=sum(variant.stock for variant in variants))) > VALUE_MAX:
        wrong.append(Misfit("variants", _too_much(name, value)))
    refuse(wrong)
    return tuple([products.NewVariant(size=variant.size, stock=variant.stock) for variant in variants])


def read_csv(table: Table) -> list[products.NewProduct]:
    """The products of a table in the order they are listed; raises Refused with all that is wrong with it."""
    rows = tables.read(table, ListedVariant, most=ROWS_MAX)
    wrong = rows.wrong
    drafts: dict[str, _Draft] = {}
    for row, line in zip(rows.read, rows.lines, strict=True):
        draft = drafts.setdefault(row.name, _Draft(line))
        wrong += draft.take(row, line)
    if not rows.read and not wrong:
        wrong.append(misfit_in(1, "", "Expected at least one product"))
    if len(rows.read) > ROWS_MAX:
        wrong.append(misfit_in(rows.lines[-1], "", f"Expected at most {ROWS_MAX} rows: make several imports of it"))
    for name, draft in drafts.items():
        if (value := draft.value) > VALUE_MAX:
            wrong.append(misfit_in(draft.line, "stock", _too_much(name, value)))
    refuse(sorted(wrong, key=lambda misfit: misfit.line or 0))
    return [draft.product(name) for name, draft in drafts.items()]


class _Draft:
    """A product while its rows are read."""

    def __init__(self, line: int) -> None:
        self.line = line
        # What was said of it, and the line that said it first.
        self._said: dict[str, tuple[object, int]] = {}
        self._variants: dict[str | None, tuple[int, int]] = {}

    def take(self, row: ListedVariant, line: int) -> list[Misfit]:
        """Add a variant; answers what is wrong with its row."""
        wrong = []
        for field in LABEL:
            value = getattr(row, field)
            # An empty cell says nothing, and so nothing else than another row.
            said, at = (value, line) if value is UNSET else self._said.setdefault(field, (value, line))
            if said != value:
                wrong.append(misfit_in(line, field, f"{row.name} has another {field} in line {at}"))
        size = row.size or None
        _, before = self._variants.setdefault(size, (row.stock, line))
        if before != line:
            wrong.append(
                misfit_in(line, "size", f"{_named(size)} of {row.name} is listed twice, first in line {before}")
            )
        elif len(self._variants) == VARIANTS_MAX + 1:
            wrong.append(misfit_in(line, "size", f"Expected at most {VARIANTS_MAX} sizes of a product"))
        return wrong

    @property
    def value(self) -> int:
        """What all of it costs."""
        return value_of(price=self._price, units=sum(stock for stock, _ in self._variants.values()))

    @property
    def _price(self) -> int:
        price = self._said["price"][0]
        assert isinstance(price, int)  # noqa: S101 - every row says one
        return price

    def product(self, name: str) -> products.NewProduct:
        """The product, as the engine knows it."""
        return products.NewProduct(
            name=name,
            **{field: value for field, (value, _) in self._said.items()},  # type: ignore[arg-type]  # by declaration
            variants=tuple(
                [products.NewVariant(size=size, stock=stock) for size, (stock, _) in self._variants.items()]
            ),
        )


def _named(size: str | None) -> str:
    return "No size" if size is None else size


def _too_much(name: str, value: int) -> str:
    return f"Expected units of {name} that cost at most {VALUE_MAX} together, got {value}"
