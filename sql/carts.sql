-- Carts: what people mean to buy. A cart holds nothing, and what stands in it costs what it costs today.

-- name: list_items
-- A user's cart in the order it was filled; what is not on sale any more stays, with nothing available.
SELECT variant_id, product_id, products.sale_id, name, size, items.quantity, price AS unit_price,
  CASE status WHEN 'ON_SALE' THEN variants.quantity ELSE 0 END AS available
FROM cart_items AS items
JOIN product_variants AS variants USING (variant_id)
JOIN products USING (product_id)
WHERE items.user_id = $1
ORDER BY items.created_at, variant_id;

-- name: find_price
-- What a variant costs today. No row: there is none of a product that the public sees.
SELECT price
FROM product_variants
JOIN products USING (product_id)
WHERE variant_id = $1
  AND status IN ('ON_SALE', 'STOPPED');

-- name: lock_user
-- Whoever's cart this is, unless they were wiped: their cart changes one request after the other.
SELECT user_id
FROM users
WHERE user_id = $1
  AND wiped_at IS NULL
FOR NO KEY UPDATE;

-- name: put_item
-- So many of a variant from now on; a line that is there keeps its place.
INSERT INTO cart_items (user_id, variant_id, quantity)
VALUES ($1, $2, $3)
ON CONFLICT (user_id, variant_id)
DO UPDATE SET quantity = excluded.quantity, updated_at = now();

-- name: remove_item
-- Nothing of a variant any more.
DELETE FROM cart_items
WHERE user_id = $1
  AND variant_id = $2;

-- name: empty
-- Nothing at all any more.
DELETE FROM cart_items
WHERE user_id = $1;

-- name: find_checkout
-- What an earlier request with this key took from the cart.
SELECT checkout_id, order_id, fingerprint, variant_ids, quantities
FROM checkouts
WHERE checkout_id = $1;

-- name: add_checkout
-- What is taken from the cart under a key; whoever adds it has locked the cart, and looked for an earlier one.
INSERT INTO checkouts (checkout_id, user_id, order_id, fingerprint, variant_ids, quantities)
VALUES ($1, $2, $3, $4, $5, $6);

-- name: remove_checkout
-- Nothing was ordered: the same key may try again, with the cart as it is then.
DELETE FROM checkouts
WHERE checkout_id = $1
  AND done_at IS NULL;

-- name: finish_checkouts
-- What these orders were made of leaves the carts, once; what was put in since stays.
WITH finished AS (
  UPDATE checkouts
  SET done_at = now()
  WHERE order_id = ANY ($1::uuid[])
    AND done_at IS NULL
  RETURNING user_id, variant_ids, quantities
), ordered AS (
  SELECT finished.user_id, line.variant_id, line.quantity
  FROM finished
  CROSS JOIN LATERAL unnest(variant_ids, quantities) AS line (variant_id, quantity)
), lowered AS (
  UPDATE cart_items AS items
  SET quantity = items.quantity - ordered.quantity, updated_at = now()
  FROM ordered
  WHERE items.user_id = ordered.user_id
    AND items.variant_id = ordered.variant_id
    AND items.quantity > ordered.quantity
)
DELETE FROM cart_items AS items
USING ordered
WHERE items.user_id = ordered.user_id
  AND items.variant_id = ordered.variant_id
  AND items.quantity <= ordered.quantity;

-- name: find_sale_of
-- Which sale sells a variant.
SELECT sale_id
FROM product_variants
WHERE variant_id = $1;

-- name: count_taken
-- What other checkouts of a user are taking from the cart at this moment; one that is older took what it took.
SELECT line.variant_id, sum(line.quantity)::bigint AS quantity
FROM checkouts
CROSS JOIN LATERAL unnest(variant_ids, quantities) AS line (variant_id, quantity)
WHERE user_id = $1
  AND is_open
  AND created_at > now() - make_interval(secs => $2)
GROUP BY line.variant_id;
