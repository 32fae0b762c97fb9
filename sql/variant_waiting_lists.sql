-- Who waits for units of variants.

-- name: find_sale
-- Which sale sells a variant. No row: there is none of a product that the public sees.
SELECT products.sale_id
FROM product_variants
JOIN products USING (product_id)
WHERE variant_id = $1
  AND status IN ('ON_SALE', 'STOPPED');

-- name: count_bought
-- How many units of a sale a user has bought.
SELECT coalesce(sum(lines.quantity - lines.refunded_quantity), 0)::bigint
FROM orders
JOIN order_items AS lines USING (order_id)
WHERE orders.user_id = $2 AND orders.sale_id = $1 AND lines.status = 'SOLD';

-- name: add_entry
-- One more who waits.
INSERT INTO waiting_list_entries (entry_id, sale_id, variant_id, user_id, quantity, hold_id, status, fingerprint)
VALUES ($1, $2, $3, $4, $5, $6, 'WAITING', $7);

-- name: list_waiting
-- Whose wish so many units of these variants fill, in order of joining, after an entry. Of one whose order is there nobody
-- could note that it was offered something.
SELECT
  entry_id, entry_no, user_id, entries.variant_id, entries.quantity, hold_id,
  (SELECT order_id FROM orders WHERE order_id = entries.hold_id) IS NOT NULL AS is_offered
FROM unnest($1::uuid[], $2::bigint[]) AS freed (variant_id, quantity)
JOIN waiting_list_entries AS entries
  ON entries.variant_id = freed.variant_id AND entries.quantity <= freed.quantity
WHERE is_waiting
  AND entry_no > $3
ORDER BY entry_no
LIMIT $4;

-- name: list_awaited
-- For which of these variants anybody waits.
SELECT variant_id
FROM unnest($1::uuid[]) AS freed (variant_id)
WHERE (
  SELECT true
  FROM waiting_list_entries AS entries
  WHERE entries.variant_id = freed.variant_id AND is_waiting
  LIMIT 1
);
