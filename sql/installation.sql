-- The installation: what all its processes share.

-- name: lock_installation
-- One process at a time makes what is made once.
LOCK TABLE installation IN SHARE ROW EXCLUSIVE MODE;

-- name: list_installation
-- All that is kept, by name.
SELECT name, value
FROM installation;

-- name: keep_in_installation
-- Keep a value; what was there under this name is replaced.
INSERT INTO installation (name, value)
VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE
SET
  value = excluded.value,
  updated_at = now()
WHERE installation.value <> excluded.value;

-- name: count_api_keys
-- How many keys operators have.
SELECT count(*)
FROM api_keys;

-- name: check_time_zone
-- What time it is in a zone; one that Postgres does not know is refused.
SELECT now() AT TIME ZONE $1;

-- name: has_counted_days
-- Whether anything was counted on any day yet.
SELECT EXISTS (SELECT FROM product_daily_sales);
