-- Coupons: sources that hand out so many, and what users have of them.

ALTER TABLE sales
  DROP CONSTRAINT sales_kind_check,
  ADD CONSTRAINT sales_kind_check CHECK (kind IN ('seats', 'stock', 'coupon'));

CREATE TABLE coupons (
  coupon_id uuid PRIMARY KEY REFERENCES sales,
  name text NOT NULL,
  type text NOT NULL CHECK (type IN ('FIXED', 'RATE')),
  discount_amount bigint CHECK (discount_amount BETWEEN 1 AND 1000000000000),
  discount_rate integer CHECK (discount_rate BETWEEN 1 AND 100),
  max_discount_amount bigint CHECK (max_discount_amount BETWEEN 1 AND 1000000000000),
  minimum_spend bigint CHECK (minimum_spend BETWEEN 1 AND 1000000000000),
  usable_from timestamptz NOT NULL,
  usable_to timestamptz NOT NULL,
  quantity bigint NOT NULL,
  initial_quantity bigint NOT NULL CHECK (initial_quantity > 0),
  status text NOT NULL CHECK (status IN ('DRAFT', 'ISSUING', 'PAUSED', 'SOLD_OUT', 'CLOSED')),
  issue_from timestamptz,
  issue_to timestamptz,
  fingerprint text NOT NULL,
  version bigint NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  deleted_at timestamptz,
  CONSTRAINT coupons_quantity CHECK (quantity BETWEEN 0 AND initial_quantity),
  CONSTRAINT coupons_discount CHECK (
    CASE type
      WHEN 'FIXED' THEN discount_amount IS NOT NULL AND num_nonnulls(discount_rate, max_discount_amount) = 0
      ELSE discount_rate IS NOT NULL AND discount_amount IS NULL
    END
  ),
  CONSTRAINT coupons_usable CHECK (usable_from < usable_to),
  CONSTRAINT coupons_issue CHECK (issue_from < issue_to),
  CONSTRAINT coupons_sold_out CHECK (status <> 'SOLD_OUT' OR quantity = 0)
);
CREATE INDEX coupons_newest ON coupons (created_at DESC, coupon_id DESC) WHERE deleted_at IS NULL;

CREATE TABLE user_coupons (
  user_coupon_id uuid PRIMARY KEY,
  coupon_id uuid NOT NULL,
  user_id uuid NOT NULL REFERENCES users,
  name text NOT NULL,
  type text NOT NULL CHECK (type IN ('FIXED', 'RATE')),
  discount_amount bigint,
  discount_rate integer CHECK (discount_rate BETWEEN 1 AND 100),
  max_discount_amount bigint,
  minimum_spend bigint,
  usable_from timestamptz NOT NULL,
  usable_to timestamptz NOT NULL,
  status text NOT NULL DEFAULT 'AVAILABLE' CHECK (status IN ('AVAILABLE', 'RESERVED', 'USED')),
  payment_id uuid,
  order_id uuid,
  reservation_id uuid,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now(),
  used_at timestamptz,
  CONSTRAINT user_coupons_once UNIQUE (coupon_id, user_id),
  CONSTRAINT user_coupons_discount CHECK (
    CASE type
      WHEN 'FIXED' THEN discount_amount IS NOT NULL AND num_nonnulls(discount_rate, max_discount_amount) = 0
      ELSE discount_rate IS NOT NULL AND discount_amount IS NULL
    END
  ),
  CONSTRAINT user_coupons_payment CHECK ((status = 'AVAILABLE') = (payment_id IS NULL)),
  CONSTRAINT user_coupons_used CHECK ((status = 'USED') = (used_at IS NOT NULL)),
  CONSTRAINT user_coupons_for CHECK (num_nonnulls(order_id, reservation_id) <= 1)
);
CREATE INDEX user_coupons_mine ON user_coupons (user_id, created_at DESC, user_coupon_id DESC);
