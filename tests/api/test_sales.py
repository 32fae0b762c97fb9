"""The operators' hand on a sale's waiting room."""

from tests.api.calling import Person, Show, problem


async def test_a_room_is_edited_in_the_version_that_was_read_where_one_is_named(operator: Person, show: Show) -> None:
    path = f"/v1/admin/sales/{show.sale_id}/queue"
    read = await operator.get(path)
    assert read.headers["etag"] == f'"{read.json()["version"]}"'
    assert read.json()["state"] == "off"
    first = await operator.patch(path, {"state": "paused"}, version=read.json()["version"])
    assert (first.status_code, first.json()["state"]) == (200, "paused")
    assert first.headers["etag"] == f'"{first.json()["version"]}"'
    late = await operator.patch(path, {"state": "open"}, version=read.json()["version"])
    assert problem(late) == (412, "stale_version")
    assert (await operator.get(path)).json()["state"] == "paused"


async def test_a_room_is_paused_at_once_without_reading_it_first(operator: Person, show: Show) -> None:
    path = f"/v1/admin/sales/{show.sale_id}/queue"
    assert (await operator.patch(path, {"state": "paused"})).status_code == 200
    sent = operator.headers | {"If-Match": "no etag"}
    refused = await operator.http.patch(path, headers=sent, json={"state": "open"})
    assert problem(refused) == (400, "invalid_request")


async def test_the_room_of_no_sale_is_not_found(operator: Person) -> None:
    assert problem(await operator.get(f"/v1/admin/sales/{'0' * 32}/queue")) == (404, "not_found")
