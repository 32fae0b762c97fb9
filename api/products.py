"""Products: buyers look at what is on sale, operators make, edit and restock it."""

import asyncio
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from api import bodies, product_tables
from api.answers import Answer, Document, answer
from api.callers import operator
from api.clock import Time, rfc3339
from api.operations import IMPORT_DEADLINE_S, IMPORT_MAX, Body, Request, Routes, Table, changes_of
from api.pages import Listed, Page, Place, moment_of, page_of, place_of
from api.problems import BUSY, Refused
from api.product_tables import Name, NewVariant, Prose
from api.seat_tables import Category, Price
from engine import accounts, ids, products, rebuild
from engine.products import SHOWN, STATUSES, STOCK_MAX, VARIANTS_MAX, Product, Restocked, Status, Variant
from engine.refusals import IdempotencyKeyReused, LimitReached, NotFound

routes = Routes("Goods")

SaleId = Annotated[
    str, Meta(pattern=bodies.whole("[0-9a-f]{32}"), description="The drop that sells it; else the standing shop does.")
]
Told = Annotated[str, Meta(extra_json_schema={"enum": list(STATUSES)})]
Shown = Annotated[str, Meta(extra_json_schema={"enum": list(SHOWN)})]


class NewProduct(Body, frozen=True, kw_only=True):
    """A product as an operator describes it; ON_SALE unless something else is said. Each size is listed once."""

    name: Name
    category: Category
    description: Prose | None = None
    price: Price
    status: Status = "ON_SALE"
    sale_id: SaleId | None = None
    variants: Annotated[tuple[NewVariant, ...], Meta(min_length=1, max_length=VARIANTS_MAX)]


class ImportQuery(msgspec.Struct, frozen=True):
    """What a table of products does not say."""

    sale_id: SaleId | UnsetType = UNSET


class EditedProduct(Body, frozen=True):
    """What changes of a product; what is left out stays."""

    name: Name | UnsetType = UNSET
    category: Category | UnsetType = UNSET
    description: Prose | UnsetType | None = UNSET
    price: Price | UnsetType = UNSET
    status: Status | UnsetType = UNSET


class NewRestock(Body, frozen=True):
    """So many units more."""

    quantity: Annotated[int, Meta(ge=1, le=STOCK_MAX)]


class ProductPage(Page, frozen=True):
    """Which part of the products is asked for."""

    category: Category | UnsetType = UNSET


class VariantMade(Document, frozen=True):
    """What is bought: a product in a size, or in the only one there is."""

    variant_id: str
    size: str | None


class ProductMade(Document, frozen=True):
    """The product, the sale that sells it, and its variants in the order they were listed."""

    product_id: str
    sale_id: str
    variants: list[VariantMade]


class NamedProductMade(ProductMade, frozen=True):
    """One product of a table."""

    name: str


class ProductsMade(Document, frozen=True):
    """The products of a table, in its order."""

    items: list[NamedProductMade]


class VariantDocument(VariantMade, frozen=True):
    """What is bought; `available` is what is left, 0 where it is not on sale."""

    available: int


class ProductDocument(Document, frozen=True):
    """A product as buyers see it; one that is STOPPED is shown and not sold."""

    product_id: str
    sale_id: str
    name: str
    description: str | None
    category: str
    price: int
    status: Shown
    variants: list[VariantDocument]


class OperatorsVariantDocument(VariantMade, frozen=True):
    """What is bought: how many are left in `quantity`, how many there ever were in `initial_quantity`."""

    quantity: int
    initial_quantity: int


class OperatorsProductDocument(Document, frozen=True):
    """A product in whatever state, as operators see it."""

    product_id: str
    sale_id: str
    name: str
    description: str | None
    category: str
    price: int
    status: Told
    variants: list[OperatorsVariantDocument]
    version: int
    created_at: Time
    updated_at: Time


class RestockMade(OperatorsVariantDocument, frozen=True):
    """The variant as it now stands."""

    restock_id: str
    product_id: str
    sale_id: str


# Buyers ---------------------------------------------------------------------------------------------------------------


@routes.add("GET", "/v1/products", {200: Listed[ProductDocument]})
async def list_products(request: Request, query: ProductPage) -> Answer:
    """What is shown, of all categories or of one, those made last first."""
    found = await _list(request, query, SHOWN)
    return answer(page_of([_product(product) for product in found], _places(found), query))


@routes.add("GET", "/v1/products/{product_id}", {200: ProductDocument})
async def find_product(request: Request, product_id: str) -> Answer:
    """A product and its variants."""
    product = await products.find(request.house.postgres, product_id)
    if product is None or product.status not in SHOWN:
        raise Refused(NotFound())
    return answer(_product(product))


# Operators ------------------------------------------------------------------------------------------------------------


@routes.add(
    "POST",
    "/v1/admin/products",
    {201: (ProductMade, ProductsMade)},
    caller=operator(accounts.CATALOGUE),
    keyed=True,
    refusals=(IdempotencyKeyReused, NotFound),
    body_max=IMPORT_MAX,
    deadline_s=IMPORT_DEADLINE_S,
)
async def create_products(request: Request, query: ImportQuery, body: NewProduct | Table) -> Answer:
    """Make a product with its stock; or, as a table, many at once, all of them or none.

    A product that names no sale belongs to the standing one; a sale that is named must be a drop. As a table, the body
    lists the variants in the columns name, category, description, price, status, size and stock: rows of the same name
    are one product, at most 10,000 rows; the query names the sale, and each error its line and column.
    """
    house = request.house
    # Large tables are read beside the loop, so that nobody else waits for them.
    listed, sale_id, fingerprint = await asyncio.to_thread(_read_new, query, body)
    made = await products.create(
        house.postgres, key_id=request.new_id(), sale_id=sale_id, listed=listed, fingerprint=fingerprint
    )
    if not isinstance(made, tuple):
        raise Refused(made)
    found, repeated = made
    if not await rebuild.ensure_open(house.stores, found[0].sale_id):
        raise Refused(BUSY)
    await _tell(request, found[0].sale_id)
    if isinstance(body, Table):
        items = [NamedProductMade(name=product.name, **_made(product)) for product in found]
        return answer(ProductsMade(items=items), 201, repeated=repeated)
    return answer(ProductMade(**_made(found[0])), 201, repeated=repeated)


def _read_new(query: ImportQuery, body: NewProduct | Table) -> tuple[list[products.NewProduct], str | None, str]:
    """The new products, the sale they name, and what tells the request from another one."""
    if isinstance(body, Table):
        listed = product_tables.read_csv(body)
        sale_id = query.sale_id or None
    else:
        variants = product_tables.read_json(body.name, body.variants, body.price)
        said = {field: getattr(body, field) for field in products.Label.__struct_fields__}
        listed = [products.NewProduct(**said, variants=variants)]
        sale_id = body.sale_id
    form = "table" if isinstance(body, Table) else "product"
    return listed, sale_id, ids.fingerprint(form, sale_id or "", bodies.text_of(listed))


@routes.add(
    "GET",
    "/v1/admin/products",
    {200: Listed[OperatorsProductDocument]},
    caller=operator(accounts.CATALOGUE),
)
async def list_operators_products(request: Request, query: ProductPage) -> Answer:
    """Products in every state, of all categories or of one, those made last first."""
    found = await _list(request, query, STATUSES)
    return answer(page_of([_operators_product(product) for product in found], _places(found), query))


@routes.add(
    "GET",
    "/v1/admin/products/{product_id}",
    {200: OperatorsProductDocument},
    caller=operator(accounts.CATALOGUE),
)
async def find_operators_product(request: Request, product_id: str) -> Answer:
    """A product in whatever state, with what is left and what there ever was of each variant."""
    product = await products.find(request.house.postgres, product_id)
    if product is None:
        raise Refused(NotFound())
    return answer(_operators_product(product), version=product.version)


@routes.add(
    "PATCH",
    "/v1/admin/products/{product_id}",
    {200: OperatorsProductDocument},
    caller=operator(accounts.CATALOGUE),
    edits=True,
    refusals=(LimitReached,),
)
async def edit_product(request: Request, product_id: str, body: EditedProduct) -> Answer:
    """Change what is said of a product: its name, category, description, price or status.

    What was held before keeps the price it was held at.
    """
    edited = await products.edit(
        request.house.postgres, product_id=product_id, version=request.if_match(), changes=changes_of(body)
    )
    if not isinstance(edited, Product):
        raise Refused(edited)
    await _tell(request, edited.sale_id)
    return answer(_operators_product(edited), version=edited.version)


@routes.add(
    "POST",
    "/v1/admin/variants/{variant_id}/restocks",
    {201: RestockMade},
    caller=operator(accounts.CATALOGUE),
    keyed=True,
    refusals=(IdempotencyKeyReused, LimitReached),
)
async def restock(request: Request, variant_id: str, body: NewRestock) -> Answer:
    """Add units to a variant."""
    restock_id = request.new_id()
    restocked = await products.restock(
        request.house.postgres,
        restock_id=restock_id,
        variant_id=variant_id,
        quantity=body.quantity,
        api_key_id=request.caller_id,
    )
    if not isinstance(restocked, tuple):
        raise Refused(restocked)
    variant, repeated = restocked
    await _tell(request, variant.sale_id)
    return answer(_restocked(restock_id, variant), 201, repeated=repeated)


async def _tell(request: Request, sale_id: str) -> None:
    """Tell the store of what changed before the operator hears that it did: whoever orders next sees it."""
    sale = await request.house.book.read(sale_id)
    assert sale is not None  # noqa: S101 - sales are never deleted
    await products.tell(request.house.gate, request.house.postgres, sale)


# Documents ------------------------------------------------------------------------------------------------------------


async def _list(request: Request, query: ProductPage, statuses: tuple[Status, ...]) -> list[Product]:
    return await products.list_products(
        request.house.postgres,
        statuses=statuses,
        category=query.category or None,
        before=moment_of(query.after(Place)),
        most=query.limit + 1,
    )


def _places(found: list[Product]) -> list[Place]:
    return [place_of(product.created_at, product.product_id) for product in found]


def _made(product: Product) -> dict[str, Any]:
    return {
        "product_id": product.product_id,
        "sale_id": product.sale_id,
        "variants": [VariantMade(variant_id=each.variant_id, size=each.size) for each in product.variants],
    }


def _told(product: Product) -> dict[str, Any]:
    return {
        "product_id": product.product_id,
        "sale_id": product.sale_id,
        "name": product.name,
        "description": product.description,
        "category": product.category,
        "price": product.price,
        "status": product.status,
    }


def _product(product: Product) -> ProductDocument:
    is_sold = product.status == "ON_SALE"
    variants = [
        VariantDocument(variant_id=each.variant_id, size=each.size, available=each.quantity if is_sold else 0)
        for each in product.variants
    ]
    return ProductDocument(**_told(product), variants=variants)


def _operators_product(product: Product) -> OperatorsProductDocument:
    return OperatorsProductDocument(
        **_told(product),
        variants=[_variant(each) for each in product.variants],
        version=product.version,
        created_at=rfc3339(product.created_at),
        updated_at=rfc3339(product.updated_at),
    )


def _variant(variant: Variant) -> OperatorsVariantDocument:
    return OperatorsVariantDocument(**msgspec.structs.asdict(variant))


def _restocked(restock_id: str, variant: Restocked) -> RestockMade:
    return RestockMade(restock_id=restock_id, **msgspec.structs.asdict(variant))
