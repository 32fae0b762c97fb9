-- What became of money that a gateway reported for a payment that had ended; and how a reservation finds its payment.

CREATE TABLE late_payments (
  gateway_ref text PRIMARY KEY,
  payment_id uuid NOT NULL REFERENCES payments,
  sale_id uuid NOT NULL,
  user_id uuid NOT NULL REFERENCES users,
  amount bigint NOT NULL CHECK (amount > 0),
  new_reservation_id uuid NOT NULL,
  new_payment_id uuid NOT NULL,
  status text NOT NULL DEFAULT 'PENDING' CHECK (status IN ('PENDING', 'SOLD', 'RETURNED')),
  reason text,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  done_at timestamptz,
  CONSTRAINT late_payments_done CHECK ((status = 'PENDING') = (done_at IS NULL)),
  CONSTRAINT late_payments_reason CHECK ((status = 'RETURNED') = (reason IS NOT NULL))
);
CREATE INDEX late_payments_payment ON late_payments (payment_id);
CREATE INDEX late_payments_newest ON late_payments (created_at DESC, new_payment_id DESC);
CREATE INDEX late_payments_due ON late_payments (sale_id) WHERE status = 'PENDING';

CREATE INDEX payments_ended ON payments (reservation_id, created_at DESC) WHERE status IN ('FAILED', 'VOIDED');
