-- Copies of sales of stock: what is left of each variant and which orders stand, read from Postgres alone.

-- name: list_left
-- Units of each variant that nobody has bought.
SELECT
  variants.variant_id,
  variants.initial_quantity - coalesce(sold.units, 0) AS units
FROM product_variants AS variants
LEFT JOIN (
  SELECT variant_id, sum(quantity - refunded_quantity)::bigint AS units
  FROM order_items
  WHERE sale_id = $1
    AND status = 'SOLD'
  GROUP BY variant_id
) AS sold USING (variant_id)
WHERE variants.sale_id = $1;

-- name: list_live_payments
-- Payments that may still buy something, the first authorised first, each with the units it is for.
SELECT
  payments.payment_id,
  payments.hold_id,
  array_agg(lines.variant_id) AS variant_ids,
  array_agg(lines.quantity) AS quantities
FROM payments
JOIN orders USING (order_id)
JOIN order_items AS lines USING (order_id)
WHERE payments.sale_id = $1
  AND payments.is_unsettled
  AND orders.status = 'PENDING'
  AND lines.status = 'HELD'
GROUP BY payments.payment_id, payments.hold_id
ORDER BY payments.authorised_at NULLS LAST, payments.created_at, payments.payment_id;

-- name: list_unpaid
-- Orders that nobody is paying, the oldest first, and whether their time is over.
SELECT
  orders.order_id AS hold_id,
  orders.expires_at <= now() AS lapsed,
  array_agg(lines.variant_id) AS variant_ids,
  array_agg(lines.quantity) AS quantities
FROM orders
JOIN order_items AS lines USING (order_id)
WHERE orders.sale_id = $1
  AND orders.is_pending
  AND lines.status = 'HELD'
  AND NOT EXISTS (
    SELECT FROM payments
    WHERE payments.hold_id = orders.order_id
      AND payments.is_live AND payments.status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')
  )
GROUP BY orders.order_id
ORDER BY orders.created_at, orders.order_id;

-- name: keep_counted
-- In a new copy the store counts what Postgres says is bought, and owes nothing of what was given back before.
UPDATE order_items
SET counted = quantity - refunded_quantity,
    updated_at = now()
WHERE sale_id = $1
  AND status = 'SOLD'
  AND counted <> quantity - refunded_quantity;

-- name: list_variants
-- What each variant costs, and what is left of it beside all that the store is to count as bought.
SELECT
  variants.variant_id,
  products.price,
  products.status,
  variants.initial_quantity,
  variants.initial_quantity - coalesce(sold.units, 0) AS units
FROM product_variants AS variants
JOIN products USING (product_id)
LEFT JOIN (
  SELECT variant_id, sum(counted)::bigint AS units
  FROM order_items
  WHERE sale_id = $1
    AND status = 'SOLD'
  GROUP BY variant_id
) AS sold USING (variant_id)
WHERE variants.sale_id = $1
ORDER BY variants.variant_id;

-- name: list_buyers
-- How many units each buyer has of all that was ever bought in a sale.
SELECT orders.user_id, sum(lines.counted)::bigint AS bought
FROM orders
JOIN order_items AS lines USING (order_id)
WHERE orders.sale_id = $1
  AND orders.paid_at IS NOT NULL
  AND lines.counted > 0
GROUP BY orders.user_id
ORDER BY orders.user_id;

-- name: list_holds
-- Everything that is held or being paid, and what was bought or ended within the last $2 seconds, as records of a hold.
-- What is bought is what the store counts: of units given back this moment it hears after the copy is open.
WITH wanted AS (
  SELECT order_id
  FROM orders
  WHERE sale_id = $1
    AND is_pending
  UNION ALL
  SELECT order_id
  FROM orders
  WHERE sale_id = $1
    AND status IN ('EXPIRED', 'CANCELLED')
    AND ended_at > now() - make_interval(secs => $2)
  UNION ALL
  SELECT order_id
  FROM orders
  WHERE sale_id = $1
    AND paid_at > now() - make_interval(secs => $2)
)
SELECT
  orders.order_id AS hold_id,
  CASE
    WHEN bought.is_bought THEN 'SOLD'
    WHEN orders.status <> 'PENDING' THEN 'ENDED'
    WHEN live.payment_id IS NULL THEN 'HELD'
    ELSE 'PAYING'
  END AS state,
  orders.user_id AS buyer_id,
  orders.fence,
  coalesce(orders.queue_no, 0) AS queue_no,
  orders.fingerprint,
  floor(extract(epoch FROM orders.created_at) * 1000)::bigint AS created_at_ms,
  floor(extract(epoch FROM orders.expires_at) * 1000)::bigint AS expires_at_ms,
  live.payment_id,
  floor(extract(epoch FROM live.pay_deadline) * 1000)::bigint AS pay_deadline_ms,
  -- One that was given back whole has no reason of its own.
  CASE WHEN bought.is_bought OR orders.status = 'PENDING' THEN '' ELSE coalesce(orders.reason, 'USER') END AS reason,
  lines.amount,
  lines.variant_ids,
  lines.quantities,
  lines.prices,
  coalesce(over.payment_ids, '{}') AS ended_payment_ids,
  floor(extract(epoch FROM coalesce(orders.ended_at, orders.paid_at)) * 1000)::bigint AS ended_at_ms
FROM wanted
JOIN orders USING (order_id)
LEFT JOIN payments AS live
  ON live.hold_id = orders.order_id
  AND live.is_live
CROSS JOIN LATERAL (
  SELECT coalesce(sum(counted), 0) > 0 AS is_bought
  FROM order_items
  WHERE order_items.order_id = orders.order_id
) AS bought
CROSS JOIN LATERAL (
  SELECT
    array_agg(variant_id ORDER BY variant_id) AS variant_ids,
    array_agg(units ORDER BY variant_id) AS quantities,
    array_agg(unit_price ORDER BY variant_id) AS prices,
    coalesce(sum(units * unit_price), 0)::bigint AS amount
  FROM (
    SELECT variant_id, unit_price, CASE WHEN bought.is_bought THEN counted ELSE quantity END AS units
    FROM order_items
    WHERE order_items.order_id = orders.order_id
  ) AS standing
  WHERE units > 0
) AS lines
LEFT JOIN LATERAL (
  SELECT array_agg(payment_id) AS payment_ids
  FROM payments AS over
  WHERE over.hold_id = orders.order_id
    AND NOT over.is_live
) AS over ON true
ORDER BY orders.created_at, orders.order_id;
