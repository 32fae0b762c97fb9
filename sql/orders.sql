-- Orders: rows that the journal, a payment or an ending writes; a row that has ended is never revived.
--
-- Locks are taken in one order everywhere: watermark, balances, payments, orders, restores, variants, lines, each by id.

-- name: add_orders
-- PENDING rows of these holds, in id order; those that are there already stay as they are.
INSERT INTO orders (
  order_id, sale_id, user_id, epoch, fence, queue_no, fingerprint, status, original_amount, total_amount, expires_at,
  created_at
)
SELECT
  held.order_id, held.sale_id, held.user_id, held.epoch, held.fence, nullif(held.queue_no, 0), held.fingerprint,
  'PENDING', held.amount, held.amount, to_timestamp(held.expires_at_ms / 1000.0),
  to_timestamp(held.created_at_ms / 1000.0)
FROM unnest(
  $1::uuid[], $2::uuid[], $3::uuid[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[], $8::bigint[], $9::bigint[],
  $10::bigint[]
) AS held (
  order_id, sale_id, user_id, epoch, fence, queue_no, fingerprint, amount, expires_at_ms, created_at_ms
)
ORDER BY held.order_id
ON CONFLICT (order_id) DO NOTHING
RETURNING order_id;

-- name: add_items
-- The lines of rows that were just added.
INSERT INTO order_items (order_id, variant_id, sale_id, quantity, unit_price, total_price, status)
SELECT line.order_id, line.variant_id, line.sale_id, line.quantity, line.unit_price, line.quantity * line.unit_price, 'HELD'
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::bigint[], $5::bigint[])
  AS line (order_id, variant_id, sale_id, quantity, unit_price)
ORDER BY line.order_id, line.variant_id;

-- name: lock_orders
-- These rows, locked in id order. What belongs to them is read after it: a statement that waited for a lock still sees
-- what was before its wait.
SELECT order_id, user_id, status, fence
FROM orders
WHERE order_id = ANY ($1::uuid[])
ORDER BY order_id
FOR NO KEY UPDATE;

-- name: find_beside
-- What stands beside each of these payments: whether it has a row, and the lines and the live payment of its order.
SELECT
  asked.payment_id,
  asked.order_id,
  (SELECT payments.payment_id FROM payments WHERE payments.payment_id = asked.payment_id) IS NOT NULL AS is_known,
  (
    SELECT payments.payment_id
    FROM payments
    WHERE payments.hold_id = asked.order_id
      AND payments.is_live AND payments.status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT', 'SUCCESS')
  ) AS live_payment_id,
  (
    SELECT coalesce(jsonb_object_agg(replace(variant_id::text, '-', ''), quantity), '{}')
    FROM order_items AS lines
    WHERE lines.order_id = asked.order_id AND lines.status <> 'ENDED'
  ) AS lines
FROM unnest($1::uuid[], $2::uuid[]) AS asked (payment_id, order_id);

-- name: find_items
-- The lines that these rows hold or have bought.
SELECT order_id, variant_id, quantity
FROM order_items
WHERE order_id = ANY ($1::uuid[]) AND status <> 'ENDED'
ORDER BY order_id, variant_id;

-- name: lock_variants
-- What is left of these variants, locked in id order.
SELECT variant_id, quantity
FROM product_variants
WHERE variant_id = ANY ($1::uuid[])
ORDER BY variant_id
FOR NO KEY UPDATE;

-- name: extend_orders
-- New deadlines of rows that still wait.
UPDATE orders
SET expires_at = to_timestamp(extended.expires_at_ms / 1000.0), version = version + 1, updated_at = now()
FROM unnest($1::uuid[], $2::bigint[]) AS extended (order_id, expires_at_ms)
WHERE orders.order_id = extended.order_id AND orders.status = 'PENDING';

-- name: lower_items
-- So many units are left of lines that gave some back. What is left only ever shrinks, so that whoever says it later and
-- knows less changes nothing.
UPDATE order_items AS lines
SET quantity = left_of.quantity, total_price = left_of.quantity * lines.unit_price, updated_at = now()
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS left_of (order_id, variant_id, quantity)
WHERE lines.order_id = left_of.order_id
  AND lines.variant_id = left_of.variant_id
  AND lines.quantity > left_of.quantity
  AND lines.status = 'HELD';

-- name: remove_items
-- Lines of which nothing is left, given as what is left of these orders.
DELETE FROM order_items AS lines
USING unnest($1::uuid[]) AS lowered (order_id)
WHERE lines.order_id = lowered.order_id
  AND lines.status = 'HELD'
  AND NOT EXISTS (
    SELECT FROM unnest($2::uuid[], $3::uuid[]) AS left_of (order_id, variant_id)
    WHERE left_of.order_id = lines.order_id AND left_of.variant_id = lines.variant_id
  );

-- name: sum_items
-- What orders cost whose lines changed before they were paid.
UPDATE orders
SET original_amount = lines.amount, total_amount = lines.amount, version = version + 1, updated_at = now()
FROM (
  SELECT order_id, sum(total_price)::bigint AS amount
  FROM order_items
  WHERE order_id = ANY ($1::uuid[])
  GROUP BY order_id
) AS lines
WHERE orders.order_id = lines.order_id AND orders.status = 'PENDING';

-- name: end_orders
-- Rows that end, each with its reason; one that has ended or is paid stays as it is.
UPDATE orders
SET
  status = CASE ending.reason WHEN 'EXPIRED' THEN 'EXPIRED' ELSE 'CANCELLED' END,
  reason = ending.reason, ended_at = now(), version = version + 1, updated_at = now()
FROM unnest($1::uuid[], $2::text[]) AS ending (order_id, reason)
WHERE orders.order_id = ending.order_id AND orders.status = 'PENDING'
RETURNING orders.order_id;

-- name: end_items
-- The lines of rows that ended.
UPDATE order_items
SET status = 'ENDED', updated_at = now()
WHERE order_id = ANY ($1::uuid[]) AND status = 'HELD';

-- name: sell_units
-- The sale itself: units leave what is left of their variant (below nothing this statement fails), and each is its
-- buyer's. One row a variant is written however many orders a batch has.
WITH sold AS (
  UPDATE order_items
  SET status = 'SOLD', counted = quantity, updated_at = now()
  WHERE order_id = ANY ($1::uuid[]) AND status = 'HELD'
  RETURNING order_id, variant_id, quantity
), counted AS (
  UPDATE product_variants
  SET quantity = product_variants.quantity - of_variant.units, updated_at = now()
  FROM (SELECT variant_id, sum(quantity)::bigint AS units FROM sold GROUP BY variant_id) AS of_variant
  WHERE product_variants.variant_id = of_variant.variant_id
)
INSERT INTO user_items (user_id, order_id, variant_id, product_id)
SELECT bought.user_id, sold.order_id, sold.variant_id, variants.product_id
FROM sold
JOIN unnest($1::uuid[], $2::uuid[]) AS bought (order_id, user_id) USING (order_id)
JOIN product_variants AS variants USING (variant_id)
CROSS JOIN LATERAL generate_series(1, sold.quantity)
ORDER BY sold.order_id, sold.variant_id;

-- name: find_sold_items
-- What each line of these orders costs, in an order that is always the same.
SELECT order_id, variant_id, quantity * unit_price AS price
FROM order_items
WHERE order_id = ANY ($1::uuid[]) AND status = 'SOLD'
ORDER BY order_id, variant_id;

-- name: discount_items
-- Each line's share of what a coupon takes off.
UPDATE order_items AS lines
SET
  discount_amount = shared.share, total_price = lines.quantity * lines.unit_price - shared.share, updated_at = now()
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS shared (order_id, variant_id, share)
WHERE lines.order_id = shared.order_id AND lines.variant_id = shared.variant_id;

-- name: pay_orders
-- Orders whose sale stands, each with the discount of its payment; and the payments, whose money is taken now. They come
-- in pairs, so that each is looked up by its id, whatever is known of the tables.
WITH paid AS (
  UPDATE orders
  SET
    status = 'PAID', paid_at = now(), discount_amount = bought.discount_amount,
    total_amount = orders.original_amount - bought.discount_amount, user_coupon_id = bought.user_coupon_id,
    version = orders.version + 1, updated_at = now()
  FROM unnest($1::uuid[], $2::uuid[]) AS sold (order_id, payment_id)
  JOIN payments AS bought USING (payment_id)
  WHERE orders.order_id = sold.order_id AND orders.status = 'PENDING'
)
UPDATE payments
SET status = 'SUCCESS', paid_at = now(), version = version + 1, updated_at = now()
FROM unnest($2::uuid[]) AS taken (payment_id)
WHERE payments.payment_id = taken.payment_id AND payments.status = 'AUTHORISED';

-- name: keep_counted
-- What Redis counts for these lines since it gave some of them back.
UPDATE order_items AS lines
SET counted = restored.counted, updated_at = now()
FROM unnest($1::uuid[], $2::uuid[], $3::bigint[]) AS restored (order_id, variant_id, counted)
WHERE lines.order_id = restored.order_id AND lines.variant_id = restored.variant_id AND lines.status = 'SOLD';

-- name: lock_sold_items
-- Every variant that these orders have bought; their lines are locked in id order.
SELECT order_id, variant_id
FROM order_items
WHERE order_id = ANY ($1::uuid[]) AND status = 'SOLD'
ORDER BY order_id, variant_id
FOR NO KEY UPDATE;

-- name: list_forgotten
-- PENDING rows long past their deadline that no live payment keeps: something ended them and was not heard.
SELECT order_id
FROM orders
WHERE sale_id = $1
  AND is_pending
  AND expires_at < now() - make_interval(secs => $2)
  AND (
    SELECT payment_id
    FROM payments
    WHERE payments.hold_id = orders.order_id
      AND payments.is_live AND payments.status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT', 'SUCCESS')
  ) IS NULL
ORDER BY expires_at
LIMIT $3;

-- name: lock_restores
-- Orders of a sale whose units are still to be given back, oldest first, and that nobody else gives back this moment.
SELECT
  restores.hold_id, restores.fence, restores.token_goes_next, orders.user_id,
  coalesce(
    orders.reason,
    (
      SELECT reason
      FROM cancellations
      WHERE cancellations.order_id = orders.order_id
      ORDER BY cancellations.created_at DESC
      LIMIT 1
    )
  ) AS reason
FROM restores
JOIN orders ON orders.order_id = restores.hold_id
WHERE restores.sale_id = $1 AND restores.done_at IS NULL
ORDER BY restores.created_at
LIMIT $2
FOR UPDATE OF restores SKIP LOCKED;

-- name: lock_items
-- All lines of these orders: what Redis counts for each and what is bought; they stay so until this transaction ends.
SELECT
  order_id, variant_id, counted,
  CASE status WHEN 'SOLD' THEN quantity - refunded_quantity ELSE 0 END AS bought
FROM order_items
WHERE order_id = ANY ($1::uuid[])
ORDER BY order_id, variant_id
FOR SHARE;

-- name: find_wanted
-- What is left of what a payment was for.
SELECT variant_id, quantity, unit_price
FROM payments
JOIN order_items USING (order_id)
WHERE payment_id = $1
ORDER BY variant_id;

-- name: find_reason
-- Why a user's order is over, or SOLD.
SELECT
  CASE status
    WHEN 'REFUNDED' THEN (
      SELECT reason
      FROM cancellations
      WHERE cancellations.order_id = orders.order_id
      ORDER BY cancellations.created_at DESC
      LIMIT 1
    )
    ELSE coalesce(reason, 'SOLD')
  END
FROM orders
WHERE order_id = $1 AND user_id = $2;

-- name: find_order
-- One row with its lines and its latest payment.
SELECT
  orders.*,
  now() AS server_time,
  (
    SELECT coalesce(
      jsonb_agg(
        jsonb_build_object(
          'variant_id', replace(lines.variant_id::text, '-', ''),
          'product_id', replace(variants.product_id::text, '-', ''),
          'name', products.name, 'size', variants.size, 'quantity', lines.quantity,
          'unit_price', lines.unit_price, 'discount_amount', lines.discount_amount, 'total_price', lines.total_price,
          'status', lines.status, 'refunded_quantity', lines.refunded_quantity
        ) ORDER BY products.name, variants.listed_no, lines.variant_id
      ), '[]'
    )
    FROM order_items AS lines
    JOIN product_variants AS variants USING (variant_id)
    JOIN products USING (product_id)
    WHERE lines.order_id = orders.order_id
  ) AS lines,
  -- Each of the two has an index of its own (payments_live, payments_ended).
  coalesce(
    (
      SELECT payment_id
      FROM payments
      WHERE payments.hold_id = orders.order_id AND payments.is_live
    ),
    (
      SELECT payment_id
      FROM payments
      WHERE payments.hold_id = orders.order_id AND NOT payments.is_live
      ORDER BY created_at DESC
      LIMIT 1
    )
  ) AS payment_id,
  EXISTS (
    SELECT FROM payments
    WHERE payments.hold_id = orders.order_id
      AND is_live AND status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT', 'SUCCESS')
  ) AS payment_live
FROM orders
WHERE order_id = $1 AND user_id = $2;

-- name: list_orders
-- A user's rows with their lines, newest first, after a cursor.
SELECT
  orders.*,
  now() AS server_time,
  (
    SELECT coalesce(
      jsonb_agg(
        jsonb_build_object(
          'variant_id', replace(lines.variant_id::text, '-', ''),
          'product_id', replace(variants.product_id::text, '-', ''),
          'name', products.name, 'size', variants.size, 'quantity', lines.quantity,
          'unit_price', lines.unit_price, 'discount_amount', lines.discount_amount, 'total_price', lines.total_price,
          'status', lines.status, 'refunded_quantity', lines.refunded_quantity
        ) ORDER BY products.name, variants.listed_no, lines.variant_id
      ), '[]'
    )
    FROM order_items AS lines
    JOIN product_variants AS variants USING (variant_id)
    JOIN products USING (product_id)
    WHERE lines.order_id = orders.order_id
  ) AS lines,
  coalesce(
    (
      SELECT payment_id
      FROM payments
      WHERE payments.hold_id = orders.order_id AND payments.is_live
    ),
    (
      SELECT payment_id
      FROM payments
      WHERE payments.hold_id = orders.order_id AND NOT payments.is_live
      ORDER BY created_at DESC
      LIMIT 1
    )
  ) AS payment_id,
  EXISTS (
    SELECT FROM payments
    WHERE payments.hold_id = orders.order_id
      AND is_live AND status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT', 'SUCCESS')
  ) AS payment_live
FROM orders
WHERE user_id = $1 AND (created_at, order_id) < ($2::timestamptz, $3::uuid)
ORDER BY created_at DESC, order_id DESC
LIMIT $4;

-- name: list_items
-- What a user owns, one row a unit, newest first, after a cursor.
SELECT
  items.item_id, items.order_id, items.product_id, items.variant_id, products.name, variants.size, items.returned_at,
  items.created_at
FROM user_items AS items
JOIN product_variants AS variants USING (variant_id)
JOIN products ON products.product_id = items.product_id
WHERE items.user_id = $1 AND items.item_id < $2
ORDER BY items.item_id DESC
LIMIT $3;
