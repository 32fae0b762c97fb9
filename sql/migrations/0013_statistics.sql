-- What was sold of each product by days and by intervals, and what was given back of orders.

CREATE TABLE order_item_refunds (
  cancellation_id uuid NOT NULL,
  order_id uuid NOT NULL,
  variant_id uuid NOT NULL,
  quantity bigint NOT NULL CHECK (quantity > 0),
  amount bigint NOT NULL CHECK (amount >= 0),
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (cancellation_id, order_id, variant_id),
  FOREIGN KEY (order_id, variant_id) REFERENCES order_items
);
CREATE INDEX order_item_refunds_order ON order_item_refunds (order_id, variant_id);

CREATE TABLE product_daily_sales (
  product_id uuid NOT NULL REFERENCES products,
  day date NOT NULL,
  sold_quantity bigint NOT NULL DEFAULT 0 CHECK (sold_quantity >= 0),
  orders bigint NOT NULL DEFAULT 0,
  amount bigint NOT NULL DEFAULT 0 CHECK (amount >= 0),
  refunded_quantity bigint NOT NULL DEFAULT 0 CHECK (refunded_quantity >= 0),
  refunded_amount bigint NOT NULL DEFAULT 0 CHECK (refunded_amount >= 0),
  aggregated_at timestamptz NOT NULL DEFAULT now(),
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (product_id, day),
  CONSTRAINT product_daily_sales_orders
    CHECK (orders BETWEEN 0 AND sold_quantity AND (orders = 0) = (sold_quantity = 0))
);
CREATE INDEX product_daily_sales_day ON product_daily_sales (day, product_id);

CREATE TABLE unaggregated_sales (
  unaggregated_sale_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  product_id uuid NOT NULL,
  day date NOT NULL,
  sold_quantity bigint NOT NULL CHECK (sold_quantity <> 0),
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE product_interval_sales (
  product_id uuid NOT NULL REFERENCES products,
  day date NOT NULL,
  aggregated_from timestamptz NOT NULL,
  aggregated_to timestamptz NOT NULL,
  sold_quantity bigint NOT NULL CHECK (sold_quantity <> 0),
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (product_id, day, aggregated_from),
  CONSTRAINT product_interval_sales_interval CHECK (aggregated_from < aggregated_to)
);
CREATE INDEX product_interval_sales_newest ON product_interval_sales (aggregated_from, product_id, day);

CREATE TABLE sales_aggregation (
  only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
  aggregated_to timestamptz NOT NULL DEFAULT now(),
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO sales_aggregation DEFAULT VALUES;

-- What the setting says takes its place at the next start: nothing was counted yet.
INSERT INTO installation (name, value)
VALUES ('time_zone', 'UTC')
ON CONFLICT (name) DO NOTHING;
