-- Changes of products are numbered within their sale, so that Redis is told of each.

ALTER TABLE sales ADD COLUMN product_changes bigint NOT NULL DEFAULT 0;
ALTER TABLE products ADD COLUMN change_no bigint NOT NULL DEFAULT 0;
CREATE INDEX products_changes ON products (sale_id, change_no);

-- Copies that were written before do not say how many units they have heard of: they are written anew.
UPDATE sales
SET store_state = 'rebuilding',
    updated_at = now()
WHERE kind = 'stock'
  AND store_state = 'open';
