-- Orders of goods, what their buyers own, and payments of either kind of hold.

CREATE TABLE orders (
  order_id uuid PRIMARY KEY,
  sale_id uuid NOT NULL,
  user_id uuid NOT NULL REFERENCES users,
  epoch bigint NOT NULL,
  fence bigint NOT NULL,
  queue_no bigint,
  fingerprint text NOT NULL,
  status text NOT NULL
    CHECK (status IN ('PENDING', 'PAID', 'PARTIALLY_REFUNDED', 'REFUNDED', 'EXPIRED', 'CANCELLED')),
  reason text CHECK (reason IN ('EXPIRED', 'USER', 'DECLINED', 'LATE_UNFULFILLABLE', 'ADMIN')),
  original_amount bigint NOT NULL CHECK (original_amount >= 0),
  discount_amount bigint NOT NULL DEFAULT 0 CHECK (discount_amount >= 0),
  total_amount bigint NOT NULL CHECK (total_amount >= 0),
  user_coupon_id uuid,
  expires_at timestamptz NOT NULL,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now(),
  paid_at timestamptz,
  ended_at timestamptz,
  version bigint NOT NULL DEFAULT 1,
  CONSTRAINT orders_total CHECK (total_amount = original_amount - discount_amount),
  CONSTRAINT orders_ending CHECK ((status IN ('EXPIRED', 'CANCELLED')) = (reason IS NOT NULL)),
  CONSTRAINT orders_expired CHECK ((status = 'EXPIRED') = (reason IS NOT DISTINCT FROM 'EXPIRED')),
  CONSTRAINT orders_paid CHECK ((status IN ('PAID', 'PARTIALLY_REFUNDED', 'REFUNDED')) = (paid_at IS NOT NULL))
);
CREATE INDEX orders_mine ON orders (user_id, created_at DESC, order_id DESC);
CREATE INDEX orders_pending ON orders (sale_id, expires_at) WHERE status = 'PENDING';
CREATE INDEX orders_ended ON orders (sale_id, ended_at) WHERE status IN ('EXPIRED', 'CANCELLED');
CREATE INDEX orders_sold ON orders (sale_id, paid_at) WHERE paid_at IS NOT NULL;

CREATE TABLE order_items (
  order_id uuid NOT NULL REFERENCES orders,
  variant_id uuid NOT NULL,
  sale_id uuid NOT NULL,
  quantity bigint NOT NULL CHECK (quantity > 0),
  unit_price bigint NOT NULL CHECK (unit_price >= 0),
  discount_amount bigint NOT NULL DEFAULT 0 CHECK (discount_amount >= 0),
  total_price bigint NOT NULL,
  status text NOT NULL CHECK (status IN ('HELD', 'SOLD', 'ENDED')),
  refunded_quantity bigint NOT NULL DEFAULT 0,
  counted bigint NOT NULL DEFAULT 0 CHECK (counted >= 0),
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (order_id, variant_id),
  CONSTRAINT order_items_total CHECK (total_price = quantity * unit_price - discount_amount AND total_price >= 0),
  CONSTRAINT order_items_refunded CHECK (refunded_quantity BETWEEN 0 AND quantity),
  CONSTRAINT order_items_sold CHECK (status = 'SOLD' OR (refunded_quantity = 0 AND counted = 0))
);

CREATE TABLE user_items (
  item_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  user_id uuid NOT NULL REFERENCES users,
  order_id uuid NOT NULL,
  variant_id uuid NOT NULL,
  product_id uuid NOT NULL,
  returned_at timestamptz,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  FOREIGN KEY (order_id, variant_id) REFERENCES order_items
);
CREATE INDEX user_items_mine ON user_items (user_id, item_id DESC);
CREATE INDEX user_items_order ON user_items (order_id, variant_id);

CREATE TABLE checkouts (
  checkout_id uuid PRIMARY KEY,
  user_id uuid NOT NULL REFERENCES users,
  order_id uuid NOT NULL UNIQUE,
  fingerprint text NOT NULL,
  variant_ids uuid[] NOT NULL,
  quantities integer[] NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  done_at timestamptz,
  CONSTRAINT checkouts_lines CHECK (cardinality(variant_ids) = cardinality(quantities))
);
CREATE INDEX checkouts_open ON checkouts (user_id) WHERE done_at IS NULL;

ALTER TABLE payments
  ADD COLUMN order_id uuid REFERENCES orders,
  ADD COLUMN hold_id uuid GENERATED ALWAYS AS (coalesce(reservation_id, order_id)) STORED NOT NULL,
  ADD COLUMN user_coupon_id uuid,
  ADD CONSTRAINT payments_for CHECK (num_nonnulls(reservation_id, order_id) = 1);
DROP INDEX payments_live;
DROP INDEX payments_ended;
CREATE UNIQUE INDEX payments_live ON payments (hold_id) WHERE status NOT IN ('FAILED', 'VOIDED');
CREATE INDEX payments_ended ON payments (hold_id, created_at DESC) WHERE status IN ('FAILED', 'VOIDED');

-- By a column of its own, because the name of a constraint that came with a column does not follow it.
ALTER TABLE restores ADD COLUMN hold_id uuid;
UPDATE restores SET hold_id = reservation_id;
ALTER TABLE restores DROP COLUMN reservation_id, ADD PRIMARY KEY (hold_id);
