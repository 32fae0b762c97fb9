-- Cards beside the balance; what is given back, to whom and why; and everything that a gateway must still be told.

-- The leg that a card pays, and what the gateway said of it. Never a card number: the method's id is the gateway's.
ALTER TABLE payments
  ADD COLUMN card_amount bigint NOT NULL DEFAULT 0 CHECK (card_amount >= 0),
  ADD COLUMN captured_amount bigint NOT NULL DEFAULT 0 CHECK (captured_amount >= 0),
  ADD COLUMN payment_method_id text,
  ADD COLUMN return_url text,
  ADD COLUMN gateway_ref text UNIQUE,
  ADD COLUMN action_url text,
  ADD COLUMN decline_code text,
  ADD CONSTRAINT payments_legs CHECK (balance_amount + card_amount = final_amount),
  ADD CONSTRAINT payments_captured CHECK (captured_amount <= card_amount),
  ADD CONSTRAINT payments_method CHECK (
    CASE method WHEN 'BALANCE' THEN card_amount = 0 WHEN 'CARD' THEN balance_amount = 0 ELSE true END
  );

-- One that was refunded or never collected stays the one payment of its reservation, and is found as fast.
DROP INDEX payments_live;
CREATE UNIQUE INDEX payments_live ON payments (reservation_id) WHERE status NOT IN ('FAILED', 'VOIDED');

CREATE TABLE cancellations (
  cancellation_id uuid PRIMARY KEY,
  reservation_id uuid NOT NULL REFERENCES reservations,
  user_id uuid NOT NULL REFERENCES users,
  seat_nos text[] NOT NULL CHECK (cardinality(seat_nos) > 0),
  reason text NOT NULL CHECK (reason IN ('USER', 'ADMIN', 'EVENT_CANCELLED')),
  -- What was paid for these seats is given back or kept.
  refund_amount bigint NOT NULL CHECK (refund_amount >= 0),
  kept_amount bigint NOT NULL CHECK (kept_amount >= 0),
  refund_to text NOT NULL CHECK (refund_to IN ('SOURCE', 'BALANCE')),
  fingerprint text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX cancellations_reservation ON cancellations (reservation_id, created_at);

CREATE TABLE refunds (
  refund_id uuid PRIMARY KEY,
  payment_id uuid NOT NULL REFERENCES payments,
  cancellation_id uuid REFERENCES cancellations,
  user_id uuid NOT NULL REFERENCES users,
  amount bigint NOT NULL CHECK (amount > 0),
  refund_to text NOT NULL CHECK (refund_to IN ('BALANCE', 'CARD')),
  status text NOT NULL CHECK (status IN ('PENDING', 'DONE', 'FAILED')),
  reason text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  done_at timestamptz,
  CONSTRAINT refunds_done CHECK ((status = 'DONE') = (done_at IS NOT NULL))
);
CREATE INDEX refunds_payment ON refunds (payment_id);
CREATE INDEX refunds_cancellation ON refunds (cancellation_id);
CREATE INDEX refunds_mine ON refunds (user_id, created_at DESC, refund_id DESC);

-- What a gateway must be told: written by the transaction that decides it, sent under its own key until the answer is
-- known. A refund waits until the capture before it is known.
CREATE TABLE gateway_operations (
  operation_id uuid PRIMARY KEY,
  payment_id uuid NOT NULL REFERENCES payments,
  kind text NOT NULL CHECK (kind IN ('CAPTURE', 'VOID', 'REFUND')),
  refund_id uuid UNIQUE REFERENCES refunds,
  amount bigint NOT NULL CHECK (amount >= 0),
  status text NOT NULL DEFAULT 'PENDING' CHECK (status IN ('PENDING', 'DONE', 'REFUSED')),
  attempts integer NOT NULL DEFAULT 0,
  due_at timestamptz NOT NULL DEFAULT now(),
  -- The gateway's name for a refund that it has begun and not finished.
  answer_ref text,
  error text,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  done_at timestamptz,
  CONSTRAINT gateway_operations_refund CHECK ((kind = 'REFUND') = (refund_id IS NOT NULL))
);
CREATE INDEX gateway_operations_due ON gateway_operations (due_at) WHERE status = 'PENDING';
CREATE UNIQUE INDEX gateway_operations_once ON gateway_operations (payment_id, kind) WHERE kind <> 'REFUND';

-- An operator's word on a payment in doubt, and why.
CREATE TABLE payment_resolutions (
  resolution_id uuid PRIMARY KEY,
  payment_id uuid NOT NULL REFERENCES payments,
  resolution text NOT NULL CHECK (resolution IN ('AUTHORISED', 'FAILED')),
  note text NOT NULL,
  -- The operator's key.
  api_key_id uuid NOT NULL REFERENCES api_keys,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX payment_resolutions_payment ON payment_resolutions (payment_id);

-- What a gateway told us, each once: written by the transaction that applies it.
CREATE TABLE webhook_events (
  event_id text PRIMARY KEY,
  type text NOT NULL,
  gateway_ref text,
  created_at timestamptz NOT NULL DEFAULT now()
);

-- An event that is off: everybody is refunded, a few at a time, and a crash goes on where it stopped.
CREATE TABLE schedule_cancellations (
  schedule_id uuid PRIMARY KEY REFERENCES schedules,
  sale_id uuid NOT NULL REFERENCES sales,
  total integer NOT NULL CHECK (total >= 0),
  done integer NOT NULL DEFAULT 0,
  fingerprint text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  finished_at timestamptz
);

-- Money that a user adds to their balance by card: the balance grows when the gateway has taken it.

CREATE TABLE card_charges (
  charge_id uuid PRIMARY KEY,
  user_id uuid NOT NULL REFERENCES balances,
  amount bigint NOT NULL CHECK (amount > 0),
  status text NOT NULL DEFAULT 'PENDING' CHECK (status IN ('PENDING', 'AUTHORISED', 'SUCCESS', 'FAILED')),
  payment_method_id text NOT NULL,
  return_url text,
  gateway_ref text UNIQUE,
  action_url text,
  decline_code text,
  fingerprint text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  done_at timestamptz,
  CONSTRAINT card_charges_done CHECK ((status IN ('SUCCESS', 'FAILED')) = (done_at IS NOT NULL))
);
CREATE INDEX card_charges_open ON card_charges (updated_at) WHERE status IN ('PENDING', 'AUTHORISED');
