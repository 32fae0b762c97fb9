-- Coupons: sources that hand out so many, and what users have of them.

-- name: add_coupon
-- A new source, whole; a repeat changes nothing. From $3 on what an operator says of it, in its order.
INSERT INTO coupons (
  coupon_id, fingerprint, name, type, discount_amount, discount_rate, max_discount_amount, minimum_spend, usable_from,
  usable_to, initial_quantity, status, issue_from, issue_to, quantity
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $11)
ON CONFLICT (coupon_id) DO NOTHING;

-- name: find_coupon
-- One source, in whatever state.
SELECT *
FROM coupons
WHERE coupon_id = $1;

-- name: list_coupons
-- Sources in these states, newest first, from below a place in that order on; nobody sees deleted ones.
SELECT *
FROM coupons
WHERE deleted_at IS NULL
  AND status = ANY ($1::text[])
  AND ($2::timestamptz IS NULL OR (created_at, coupon_id) < ($2, $3::uuid))
ORDER BY created_at DESC, coupon_id DESC
LIMIT $4;

-- name: lock_coupon
-- A source, for a change that depends on what is left of it.
SELECT *
FROM coupons
WHERE coupon_id = $1
FOR NO KEY UPDATE;

-- name: edit_coupon
-- What an operator says of a source, one version on. Coupons that are added or taken away are so in what is left, too.
UPDATE coupons
SET
  name = $2,
  type = $3,
  discount_amount = $4,
  discount_rate = $5,
  max_discount_amount = $6,
  minimum_spend = $7,
  usable_from = $8,
  usable_to = $9,
  quantity = quantity + $10 - initial_quantity,
  initial_quantity = $10,
  status = $11,
  issue_from = $12,
  issue_to = $13,
  version = version + 1,
  updated_at = now()
WHERE coupon_id = $1;

-- name: remove_coupon
-- Nothing is issued any more, and nobody sees it. No row: that was so already.
UPDATE coupons
SET
  deleted_at = now(),
  version = version + 1,
  updated_at = now()
WHERE coupon_id = $1
  AND deleted_at IS NULL;

-- name: edit_shard
-- Its row among the sales is one version on, too: the owner of its streams sees by that what Redis was not told.
UPDATE sales
SET
  name = $2,
  version = version + 1,
  updated_at = now()
WHERE sale_id = $1;

-- name: list_owners
-- Which of these users have a coupon of this source.
SELECT user_id
FROM user_coupons
WHERE coupon_id = $1
  AND user_id = ANY ($2::uuid[]);

-- name: add_user_coupons
-- What was issued, with its terms.
INSERT INTO user_coupons (
  coupon_id, user_coupon_id, user_id, created_at, name, type, discount_amount, discount_rate, max_discount_amount,
  minimum_spend, usable_from, usable_to
)
SELECT $1, issued.*
FROM unnest(
  $2::uuid[], $3::uuid[], $4::timestamptz[], $5::text[], $6::text[], $7::bigint[], $8::integer[], $9::bigint[],
  $10::bigint[], $11::timestamptz[], $12::timestamptz[]
) AS issued;

-- name: count_down
-- So many fewer are left; the last one sells it out. One that is paused or closed stays so.
UPDATE coupons
SET
  quantity = quantity - $2,
  status = CASE WHEN status = 'ISSUING' AND quantity = $2 THEN 'SOLD_OUT' ELSE status END,
  updated_at = now()
WHERE coupon_id = $1;

-- name: find_user_coupons
-- Coupons of users, by id.
SELECT *
FROM user_coupons
WHERE user_coupon_id = ANY ($1::uuid[]);

-- name: list_user_coupons
-- What a user has, newest first, from below a place in that order on.
SELECT *
FROM user_coupons
WHERE user_id = $1
  AND ($2::timestamptz IS NULL OR (created_at, user_coupon_id) < ($2, $3::uuid))
ORDER BY created_at DESC, user_coupon_id DESC
LIMIT $4;
