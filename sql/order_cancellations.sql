-- Units of an order are given back; locks are taken in the order that sql/cancellations.sql says.

-- name: find_terms
-- Whose an order is, how it stands, and the terms under which it is given back, by the database's clock.
SELECT orders.user_id, orders.sale_id, orders.status, sales.closes_at, sales.refund_policy, now() AS now
FROM orders
JOIN sales USING (sale_id)
WHERE order_id = $1;

-- name: lock_orders
-- These rows, locked in id order.
SELECT order_id AS hold_id, user_id, sale_id, fence, status
FROM orders
WHERE order_id = ANY ($1::uuid[])
ORDER BY order_id
FOR NO KEY UPDATE;

-- name: find_items
-- What these orders have bought and what of it went back; it changes under the lock of its order alone.
SELECT order_id, variant_id, quantity, total_price, refunded_quantity
FROM order_items
WHERE order_id = ANY ($1::uuid[]) AND status = 'SOLD';

-- name: add_left
-- So many units of these variants are left again, by variant.
UPDATE product_variants AS variants
SET quantity = variants.quantity + given_back.quantity, updated_at = now()
FROM unnest($1::uuid[], $2::bigint[]) AS given_back (variant_id, quantity)
WHERE variants.variant_id = given_back.variant_id;

-- name: lower_items
-- So many units of these lines are not their buyer's any more.
UPDATE order_items AS lines
SET refunded_quantity = lines.refunded_quantity + given_back.quantity, updated_at = now()
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS given_back (order_id, variant_id, quantity)
WHERE lines.order_id = given_back.order_id AND lines.variant_id = given_back.variant_id;

-- name: return_user_items
-- The units themselves: of each line the last ones that its buyer still has.
UPDATE user_items
SET returned_at = now(), updated_at = now()
FROM (
  SELECT
    item_id, given_back.quantity,
    row_number() OVER (PARTITION BY order_id, variant_id ORDER BY item_id DESC) AS place
  FROM unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS given_back (order_id, variant_id, quantity)
  JOIN user_items USING (order_id, variant_id)
  WHERE returned_at IS NULL
) AS owned
WHERE user_items.item_id = owned.item_id AND place <= owned.quantity;

-- name: refund_orders
-- Orders that gave units back, all that were left of them or a part.
UPDATE orders
SET
  status = CASE WHEN given_back.is_whole THEN 'REFUNDED' ELSE 'PARTIALLY_REFUNDED' END,
  ended_at = CASE WHEN given_back.is_whole THEN now() END,
  version = version + 1,
  updated_at = now()
FROM unnest($1::uuid[], $2::boolean[]) AS given_back (order_id, is_whole)
WHERE orders.order_id = given_back.order_id AND orders.status IN ('PAID', 'PARTIALLY_REFUNDED');

-- name: add_cancellations
-- What was cancelled, and what it came to.
INSERT INTO cancellations (
  cancellation_id, order_id, user_id, variant_ids, quantities, reason, refund_amount, kept_amount, refund_to, fingerprint
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);
