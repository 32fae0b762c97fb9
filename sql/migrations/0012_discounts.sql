-- What a coupon takes off what is paid.

ALTER TABLE payments
  ADD COLUMN coupon_reason text,
  ADD CONSTRAINT payments_coupon CHECK (discount_amount = 0 OR user_coupon_id IS NOT NULL);
CREATE INDEX payments_coupon_named ON payments (user_coupon_id) WHERE user_coupon_id IS NOT NULL;

ALTER TABLE reservation_seats
  ADD COLUMN discount_amount bigint NOT NULL DEFAULT 0,
  ADD CONSTRAINT reservation_seats_discount CHECK (discount_amount BETWEEN 0 AND price);

ALTER TABLE orders ADD CONSTRAINT orders_coupon CHECK (discount_amount = 0 OR user_coupon_id IS NOT NULL);

CREATE INDEX user_coupons_payment ON user_coupons (payment_id) WHERE payment_id IS NOT NULL;
