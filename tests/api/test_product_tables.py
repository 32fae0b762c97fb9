"""A table of products says the same as lists in JSON, and whatever else comes as a table is refused."""

import csv
import io
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from api import product_tables
from api.operations import Table
from api.problems import InvalidRequest, Misfit, Refused
from api.product_tables import ListedVariant, NewVariant
from api.tables import MISFITS_MAX
from engine import products

COLUMNS = ListedVariant.__struct_fields__

words = st.text(st.sampled_from("AbÜ,\"' 9席"), min_size=1, max_size=5).filter(lambda word: word == word.strip())
labels = st.fixed_dictionaries(
    {
        "name": words,
        "category": words,
        "price": st.integers(0, 10**6),
        "description": words,
        "status": st.sampled_from(products.STATUSES),
    }
)
variants = st.lists(
    st.fixed_dictionaries({"size": st.none() | words, "stock": st.integers(0, 10**9)}),
    min_size=1,
    max_size=4,
    unique_by=lambda variant: variant["size"],
)
shops = st.lists(st.tuples(labels, variants), min_size=1, max_size=5, unique_by=lambda product: product[0]["name"])


def table_of(rows: list[dict[str, Any]], columns: list[str]) -> Table:
    written = io.StringIO()
    table = csv.DictWriter(written, columns)
    table.writeheader()
    table.writerows(rows)
    return Table(written.getvalue().encode())


@given(shops, st.permutations(COLUMNS))
def test_a_table_says_what_json_says(
    shop: list[tuple[dict[str, Any], list[dict[str, Any]]]], columns: list[str]
) -> None:
    rows = [{**label, **variant, "size": variant["size"] or ""} for label, sizes in shop for variant in sizes]
    by_json = [
        products.NewProduct(
            **label,
            variants=product_tables.read_json(label["name"], msgspec.convert(sizes, list[NewVariant]), label["price"]),
        )
        for label, sizes in shop
    ]
    assert product_tables.read_csv(table_of(rows, columns)) == by_json


@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(st.sampled_from('A1,-"\n\r\0 é\ufeff'), max_size=200).map(
            lambda rows: b"name,category,price,stock,size\n" + rows.encode()
        ),
    )
)
def test_what_is_no_table_is_refused_line_by_line(content: bytes) -> None:
    errors = errors_in(Table(content))
    assert len(errors) <= MISFITS_MAX
    lines = content.count(b"\n") + content.count(b"\r") + 1
    assert all(isinstance(error.line, int) and 0 <= error.line <= lines for error in errors)


def errors_in(table: Table) -> list[Misfit]:
    """What is wrong with a table; of one that is right, that it lists something."""
    try:
        listed = product_tables.read_csv(table)
    except Refused as refused:
        if isinstance(refused.refusal, InvalidRequest):
            return refused.refusal.errors
        raise
    assert listed
    assert all(product.variants for product in listed)
    return []


def test_an_empty_cell_says_nothing_and_contradicts_nothing() -> None:
    table = b"name,category,price,stock,size,description,status\nA,B,1,2,M,,\nA,B,1,3,L,Long,DRAFT\nA,B,1,4,,,\n"
    [listed] = product_tables.read_csv(Table(table))
    assert (listed.description, listed.status) == ("Long", "DRAFT")
    assert [(each.size, each.stock) for each in listed.variants] == [("M", 2), ("L", 3), (None, 4)]


def test_a_size_may_be_called_like_what_is_nothing_elsewhere() -> None:
    [listed] = product_tables.read_csv(Table(b"name,category,price,stock,size\nA,B,1,2,null\nA,B,1,3,0\n"))
    assert [each.size for each in listed.variants] == ["null", "0"]
