-- Products: what the shop and its drops sell, in variants with a stock each; and what came later.

-- name: lock_sale
-- What a sale sells, seats or stock; its products change one after the other.
SELECT kind
FROM sales
WHERE sale_id = $1
FOR NO KEY UPDATE;

-- name: number_changes
-- These products of a sale were changed, in this order. The sale stays locked until the change is there, so that whoever
-- reads a number reads all that are lower, and a rebuild reads the count and the products of one moment.
WITH counted AS (
  UPDATE sales
  SET product_changes = product_changes + cardinality($2::uuid[]),
      updated_at = now()
  WHERE sale_id = $1
  RETURNING product_changes - cardinality($2::uuid[]) AS before
)
UPDATE products
SET change_no = counted.before + changed.place
FROM counted,
  unnest($2::uuid[]) WITH ORDINALITY AS changed (product_id, place)
WHERE products.product_id = changed.product_id;

-- name: list_changed
-- Variants of the products of a sale that were changed after a change, in the order of the last change of each: about $3
-- of them, and of no product a part.
SELECT products.change_no, products.price, products.status, variants.variant_id, variants.initial_quantity
FROM products
JOIN product_variants AS variants USING (product_id)
WHERE products.sale_id = $1
  AND products.change_no > $2
ORDER BY products.change_no
FETCH FIRST $3 ROWS WITH TIES;

-- name: add_products
-- New products of one sale, in the operator's order after the first $3; a repeat changes nothing. Each is a microsecond
-- older than the one before it: a list of the newest then shows them in that order.
INSERT INTO products (product_id, sale_id, fingerprint, name, category, description, price, status, created_at)
SELECT product_id, $1, $2, name, category, description, price, status,
  now() - ($3::integer + listed_no - 1) * interval '1 microsecond'
FROM unnest($4::uuid[], $5::text[], $6::text[], $7::text[], $8::bigint[], $9::text[])
  WITH ORDINALITY
  AS listed (product_id, name, category, description, price, status, listed_no)
ON CONFLICT (product_id) DO NOTHING;

-- name: add_variants
-- The variants of new products, each with its whole stock.
INSERT INTO product_variants (variant_id, product_id, sale_id, size, quantity, initial_quantity, listed_no)
SELECT variant_id, product_id, $1, size, stock, stock, listed_no
FROM unnest($2::uuid[], $3::uuid[], $4::text[], $5::bigint[], $6::integer[])
  AS listed (variant_id, product_id, size, stock, listed_no);

-- name: find_products
-- Products by id.
SELECT product_id, sale_id, name, category, description, price, status, fingerprint, version, created_at, updated_at
FROM products
WHERE product_id = ANY ($1::uuid[]);

-- name: list_products
-- Newest first, from below a place in that order on: in one of these states and, where one is named, of a category.
SELECT product_id, sale_id, name, category, description, price, status, fingerprint, version, created_at, updated_at
FROM products
WHERE status = ANY ($1::text[])
  AND ($2::text IS NULL OR category = $2)
  AND ($3::timestamptz IS NULL OR (created_at, product_id) < ($3, $4::uuid))
ORDER BY created_at DESC, product_id DESC
LIMIT $5;

-- name: list_variants
-- The variants of these products, in the operator's order.
SELECT product_id, variant_id, size, quantity, initial_quantity
FROM product_variants
WHERE product_id = ANY ($1::uuid[])
ORDER BY product_id, listed_no;

-- name: lock_product
-- A product, for a change that depends on what it says and on how many units there ever were of it.
SELECT product_id
FROM products
WHERE product_id = $1
FOR NO KEY UPDATE;

-- name: edit_product
-- What is said of a product, one version on.
UPDATE products
SET
  name = $2,
  category = $3,
  description = $4,
  price = $5,
  status = $6,
  version = version + 1,
  updated_at = now()
WHERE product_id = $1;

-- name: find_variant
-- One variant.
SELECT product_id, sale_id, variant_id, size, quantity, initial_quantity
FROM product_variants
WHERE variant_id = $1;

-- name: find_restock
-- What an earlier request with this key asked for.
SELECT fingerprint
FROM restocks
WHERE restock_id = $1;

-- name: add_restock
-- Units that came later; whoever adds them has locked the product, and looked for an earlier request.
INSERT INTO restocks (restock_id, variant_id, quantity, fingerprint, api_key_id)
VALUES ($1, $2, $3, $4, $5);

-- name: restock
-- There are so many more to sell, and so many more that there ever were.
UPDATE product_variants
SET
  quantity = quantity + $2,
  initial_quantity = initial_quantity + $2,
  updated_at = now()
WHERE variant_id = $1;

-- name: find_labels
-- What variants are called, and what else their products come in.
SELECT
  variants.variant_id, variants.sale_id, variants.product_id, products.name, variants.size,
  array_agg(siblings.variant_id ORDER BY siblings.listed_no) AS sibling_ids,
  array_agg(siblings.size ORDER BY siblings.listed_no) AS sibling_sizes
FROM product_variants AS variants
JOIN products USING (product_id)
JOIN product_variants AS siblings ON siblings.product_id = variants.product_id
WHERE variants.variant_id = ANY ($1::uuid[])
GROUP BY variants.variant_id, products.product_id;
