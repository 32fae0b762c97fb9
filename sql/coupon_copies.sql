-- A source of coupons for a new copy of it in Redis.

-- name: list_users
-- Who after this one has a coupon of a source.
SELECT user_id
FROM user_coupons
WHERE coupon_id = $1
  AND user_id > $2
ORDER BY user_id
LIMIT $3;
