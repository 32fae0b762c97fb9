-- The schema, for reading. `sql/migrations/` is what runs; a test proves the two equal.
--
-- Ids that a client's key makes are uuid; others are identity. Money is bigint of the smallest unit. `created_at`
-- stands everywhere, `updated_at` where a row changes. Postgres decides finally: what must never happen is a
-- constraint here, whatever Redis said before.

-- People -------------------------------------------------------------------------------------------------------------

CREATE TABLE users (
  user_id uuid PRIMARY KEY,
  -- Who vouches for this person: ourselves, or an outside issuer and its own name for them.
  issuer text NOT NULL DEFAULT 'lastseat',
  subject text NOT NULL,
  -- Null once the account is wiped; the sales stay.
  email text,
  password_hash text,
  name text,
  -- What the key that made the row asked for, so that a repeat is told from a reuse.
  fingerprint text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  wiped_at timestamptz,
  CONSTRAINT users_issuer_subject UNIQUE (issuer, subject)
);
CREATE UNIQUE INDEX users_email ON users (lower(email)) WHERE email IS NOT NULL;
CREATE INDEX users_wiped ON users (wiped_at) WHERE wiped_at IS NOT NULL;

CREATE TABLE api_keys (
  api_key_id uuid PRIMARY KEY,
  -- SHA-256 of the key: a random key of 256 bits needs no slow hash.
  key_hash bytea NOT NULL UNIQUE,
  name text NOT NULL,
  scopes text[] NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  revoked_at timestamptz
);

-- What every process of one installation shares: the secret, the keys of passes and of tickets, the currency, and the
-- time zone whose days the statistics count.
CREATE TABLE installation (
  name text PRIMARY KEY,
  value text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now()
);

-- Money --------------------------------------------------------------------------------------------------------------

CREATE TABLE balances (
  user_id uuid PRIMARY KEY REFERENCES users,
  amount bigint NOT NULL DEFAULT 0 CHECK (amount >= 0),
  -- Funds of payments that are authorised and not yet captured or voided.
  set_aside bigint NOT NULL DEFAULT 0,
  version bigint NOT NULL DEFAULT 0,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT balances_set_aside CHECK (set_aside >= 0 AND set_aside <= amount)
);

-- Immutable: the balance is the sum of its history, and the last row says what it was after.
CREATE TABLE balance_history (
  balance_history_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  user_id uuid NOT NULL REFERENCES balances,
  type text NOT NULL CHECK (type IN ('CHARGE', 'USE', 'REFUND')),
  amount bigint NOT NULL CHECK (amount > 0),
  balance_after bigint NOT NULL CHECK (balance_after >= 0),
  -- The balance's version after this change: one row a version, the highest is the last.
  version bigint NOT NULL,
  reason text,
  -- The operation's own id: a charge, a payment, a refund. One operation, one row of a type.
  ref_type text NOT NULL CHECK (ref_type IN ('charge', 'payment', 'refund')),
  ref_id uuid NOT NULL,
  payment_id uuid,
  -- What the charge's key asked for; null where no client's key is behind the row.
  fingerprint text,
  created_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT balance_history_once UNIQUE (ref_type, ref_id, type),
  CONSTRAINT balance_history_version UNIQUE (user_id, version)
);

-- Money that is added by card: the balance grows when the gateway has taken it.
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
  -- Here and in what follows: a column that only an index asks for, of rows that are unfinished. As a condition on the
  -- status, any lookup by id that looks at the status too may be planned over that index while it is empty, and then
  -- reads all of it in a rush (docs/decisions/0023).
  is_open boolean GENERATED ALWAYS AS (status IN ('PENDING', 'AUTHORISED')) STORED NOT NULL,
  CONSTRAINT card_charges_done CHECK ((status IN ('SUCCESS', 'FAILED')) = (done_at IS NOT NULL))
);
CREATE INDEX card_charges_open ON card_charges (updated_at) WHERE is_open;

-- What is on offer ---------------------------------------------------------------------------------------------------

CREATE TABLE sales (
  sale_id uuid PRIMARY KEY,
  -- A source of coupons has its streams, its epoch and its owner as a sale has, and nothing else of one.
  kind text NOT NULL CHECK (kind IN ('seats', 'stock', 'coupon')),
  name text NOT NULL,
  opens_at timestamptz,
  closes_at timestamptz,
  per_buyer_max integer CHECK (per_buyer_max > 0),
  hold_s integer NOT NULL DEFAULT 300 CHECK (hold_s > 0),
  hold_max_s integer NOT NULL DEFAULT 900,
  extensions_max integer NOT NULL DEFAULT 2 CHECK (extensions_max >= 0),
  pay_s integer NOT NULL DEFAULT 600 CHECK (pay_s > 0),
  refund_policy jsonb NOT NULL DEFAULT '[]',
  -- Which copy of the sale in Redis counts. Raised by a rebuild; nothing of an older epoch is accepted after it.
  epoch bigint NOT NULL DEFAULT 0,
  -- new: not yet written to Redis. frozen: the stream and Postgres disagree, waiting to be rebuilt.
  store_state text NOT NULL DEFAULT 'new' CHECK (store_state IN ('new', 'open', 'frozen', 'rebuilding')),
  frozen_reason text,
  -- The waiting room.
  room text NOT NULL DEFAULT 'off'
    CHECK (room IN ('off', 'prequeue', 'open', 'paused', 'draining', 'closed', 'bypass')),
  active_max integer NOT NULL DEFAULT 1000 CHECK (active_max > 0),
  admitted_per_minute_max integer NOT NULL DEFAULT 6000 CHECK (admitted_per_minute_max > 0),
  entry_s integer NOT NULL DEFAULT 120 CHECK (entry_s > 0),
  session_s integer NOT NULL DEFAULT 600 CHECK (session_s > 0),
  recall_s integer NOT NULL DEFAULT 300 CHECK (recall_s > 0),
  draining_no bigint,
  -- A seat of a lapsed hold is free again up to so many seconds after the deadline, so that no robot knows when.
  release_jitter_s integer NOT NULL DEFAULT 0 CHECK (release_jitter_s BETWEEN 0 AND 3600),
  -- Somebody waits for seats that come back: what is freed is kept for the waiting list, and offered for so long.
  waiting_list boolean NOT NULL DEFAULT false,
  offer_s integer NOT NULL DEFAULT 900 CHECK (offer_s BETWEEN 1 AND 86400),
  -- Numbers are given out up to here; a counter that was lost goes on from here.
  queue_no_ceiling bigint NOT NULL DEFAULT 0,
  -- The last checkpoint of the highest place ever admitted.
  serving bigint NOT NULL DEFAULT 0,
  fingerprint text,
  version bigint NOT NULL DEFAULT 1,
  -- Counts the changes of its products, each of which Redis is told of.
  product_changes bigint NOT NULL DEFAULT 0,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT sales_hold_max CHECK (hold_max_s >= hold_s)
);
CREATE INDEX sales_newest ON sales (created_at DESC, sale_id DESC);

CREATE TABLE concerts (
  concert_id uuid PRIMARY KEY,
  title text NOT NULL,
  description text,
  artist text,
  venue text,
  poster_image_url text,
  fingerprint text NOT NULL,
  version bigint NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX concerts_newest ON concerts (created_at DESC, concert_id DESC);

CREATE TABLE schedules (
  schedule_id uuid PRIMARY KEY,
  concert_id uuid NOT NULL REFERENCES concerts,
  sale_id uuid NOT NULL UNIQUE REFERENCES sales,
  start_at timestamptz NOT NULL,
  seats_total integer NOT NULL CHECK (seats_total >= 0),
  -- Kept by the worker in the transaction that confirms: what is not sold and not blocked.
  seats_available integer NOT NULL CHECK (seats_available >= 0),
  fingerprint text NOT NULL,
  version bigint NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX schedules_concert ON schedules (concert_id, start_at);

-- Seats kept from the public: only who gives the code, or comes through the channel, within the times may hold them.
CREATE TABLE blocks (
  sale_id uuid NOT NULL REFERENCES sales,
  block text NOT NULL,
  -- Its place in the operator's list, by which Redis knows it.
  block_no integer NOT NULL CHECK (block_no >= 1),
  access_code text,
  channel text,
  -- Null: as soon as the sale opens, until it closes.
  opens_at timestamptz,
  closes_at timestamptz,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (sale_id, block),
  CONSTRAINT blocks_no UNIQUE (sale_id, block_no),
  CONSTRAINT blocks_for CHECK (num_nonnulls(access_code, channel) = 1),
  CONSTRAINT blocks_window CHECK (opens_at < closes_at)
);

-- General admission: so many places, of which a buyer gets any. Each is a row of seats, `area-GA-number`.
CREATE TABLE areas (
  sale_id uuid NOT NULL REFERENCES sales,
  area text NOT NULL,
  area_no integer NOT NULL CHECK (area_no >= 1),
  category text NOT NULL,
  price bigint NOT NULL CHECK (price BETWEEN 0 AND 1000000000000),
  quantity integer NOT NULL CHECK (quantity BETWEEN 1 AND 100000),
  -- The block that keeps all of it, if one does.
  block text,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (sale_id, area),
  CONSTRAINT areas_no UNIQUE (sale_id, area_no),
  FOREIGN KEY (sale_id, block) REFERENCES blocks
);

-- Another price for seats of a category, for adults or children say; all tiers share the seats.
CREATE TABLE tiers (
  sale_id uuid NOT NULL REFERENCES sales,
  tier text NOT NULL,
  category text NOT NULL,
  tier_no integer NOT NULL CHECK (tier_no >= 1),
  price bigint NOT NULL CHECK (price BETWEEN 0 AND 1000000000000),
  -- So many of it may be held, being paid and sold at once; null: no cap of its own.
  max integer CHECK (max >= 0),
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (sale_id, tier, category),
  CONSTRAINT tiers_no UNIQUE (sale_id, tier_no)
);

-- Half of a page is left for what a seat becomes: sold, or blocked. An update beside its row leaves the indexes alone.
CREATE TABLE seats (
  sale_id uuid NOT NULL REFERENCES sales,
  seat_no text NOT NULL CHECK (length(seat_no) BETWEEN 5 AND 20),
  section text NOT NULL,
  row_name text NOT NULL,
  number integer NOT NULL CHECK (number >= 1),
  category text NOT NULL,
  price bigint NOT NULL CHECK (price BETWEEN 0 AND 1000000000000),
  accessible boolean NOT NULL DEFAULT false,
  blocked boolean NOT NULL DEFAULT false,
  -- Set with the claim, in the same transaction; the audit compares the two.
  sold boolean NOT NULL DEFAULT false,
  -- The area whose place this is, for a place without a number of its own.
  area text,
  block text,
  -- Its place in the operator's list: the best seats are listed first.
  listed_no integer NOT NULL DEFAULT 0 CHECK (listed_no >= 0),
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (sale_id, seat_no),
  CONSTRAINT seats_place CHECK (area IS NULL OR (section = area AND row_name = 'GA' AND NOT accessible)),
  FOREIGN KEY (sale_id, area) REFERENCES areas,
  FOREIGN KEY (sale_id, block) REFERENCES blocks
) WITH (fillfactor = 50);
-- What is left of an area is counted. `sold` stands in no index: each sale changes it, and would then change the index.
CREATE INDEX seats_places ON seats (sale_id, area) WHERE area IS NOT NULL;

-- Seats that an operator takes off a running sale, and puts on it again: a row is what is to be done in both stores.
CREATE TABLE seat_blocks (
  seat_block_id uuid PRIMARY KEY,
  -- The order in which Redis has them: a late copy of an earlier one changes nothing there.
  seat_block_no bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
  sale_id uuid NOT NULL REFERENCES sales,
  seat_nos text[] NOT NULL,
  blocked boolean NOT NULL,
  fingerprint text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  -- Null until both stores have it; one that Redis refused is removed.
  done_at timestamptz
);
-- One at a time: the next begins when this one is done.
CREATE UNIQUE INDEX seat_blocks_unfinished ON seat_blocks (sale_id) WHERE done_at IS NULL;

-- Goods --------------------------------------------------------------------------------------------------------------

CREATE TABLE products (
  product_id uuid PRIMARY KEY,
  -- The sale that sells it: the standing one, or a drop.
  sale_id uuid NOT NULL REFERENCES sales,
  name text NOT NULL,
  category text NOT NULL,
  description text,
  price bigint NOT NULL CHECK (price BETWEEN 0 AND 1000000000000),
  -- DRAFT and HIDDEN are the operators' alone; STOPPED is shown and not sold.
  status text NOT NULL CHECK (status IN ('DRAFT', 'ON_SALE', 'STOPPED', 'HIDDEN')),
  -- Of the whole request: a table makes many products under one key.
  fingerprint text NOT NULL,
  version bigint NOT NULL DEFAULT 1,
  -- Which of all changes of its sale's products was the last of this one.
  change_no bigint NOT NULL DEFAULT 0,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  -- What a variant refers to, so that it is sold where its product is.
  CONSTRAINT products_sale UNIQUE (product_id, sale_id)
);
CREATE INDEX products_newest ON products (created_at DESC, product_id DESC);
CREATE INDEX products_changes ON products (sale_id, change_no);
CREATE INDEX products_category ON products (category, created_at DESC, product_id DESC);

-- What is bought: a product in one of its sizes, or in the only one that there is.
CREATE TABLE product_variants (
  variant_id uuid PRIMARY KEY,
  product_id uuid NOT NULL,
  sale_id uuid NOT NULL,
  size text,
  -- What is left, kept by the worker in the transaction that confirms.
  quantity bigint NOT NULL,
  -- All that there ever was: the first stock and every restock.
  initial_quantity bigint NOT NULL,
  -- Its place in the operator's list.
  listed_no integer NOT NULL CHECK (listed_no >= 1),
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT product_variants_quantity CHECK (quantity BETWEEN 0 AND initial_quantity),
  CONSTRAINT product_variants_size UNIQUE NULLS NOT DISTINCT (product_id, size),
  CONSTRAINT product_variants_no UNIQUE (product_id, listed_no),
  FOREIGN KEY (product_id, sale_id) REFERENCES products (product_id, sale_id)
);
CREATE INDEX product_variants_sale ON product_variants (sale_id, variant_id);

-- Units that came later, and who said so.
CREATE TABLE restocks (
  restock_id uuid PRIMARY KEY,
  variant_id uuid NOT NULL REFERENCES product_variants,
  quantity bigint NOT NULL CHECK (quantity > 0),
  fingerprint text NOT NULL,
  -- The operator's key.
  api_key_id uuid NOT NULL REFERENCES api_keys,
  created_at timestamptz NOT NULL DEFAULT now()
);

-- What somebody means to buy. It holds nothing and freezes no price.
CREATE TABLE cart_items (
  user_id uuid NOT NULL REFERENCES users,
  -- No reference: variants are never deleted, and to lock the row of a wanted one for each who wants it would hold up
  -- the worker that counts it down.
  variant_id uuid NOT NULL,
  quantity integer NOT NULL CHECK (quantity BETWEEN 1 AND 1000),
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (user_id, variant_id)
);

-- An order that is made of a cart: what was in it when its key first came, so that a second click orders the same.
CREATE TABLE checkouts (
  checkout_id uuid PRIMARY KEY,
  user_id uuid NOT NULL REFERENCES users,
  order_id uuid NOT NULL UNIQUE,
  fingerprint text NOT NULL,
  variant_ids uuid[] NOT NULL,
  quantities integer[] NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  -- When what was ordered left the cart: once. A checkout that holds nothing is removed.
  done_at timestamptz,
  is_open boolean GENERATED ALWAYS AS (done_at IS NULL) STORED NOT NULL,
  CONSTRAINT checkouts_lines CHECK (cardinality(variant_ids) = cardinality(quantities))
);
CREATE INDEX checkouts_open ON checkouts (user_id) WHERE is_open;

-- Coupons ------------------------------------------------------------------------------------------------------------

-- A source: so many are handed out, first come first served, one a user.
CREATE TABLE coupons (
  -- It is a shard like a sale, and has its row there.
  coupon_id uuid PRIMARY KEY REFERENCES sales,
  name text NOT NULL,
  type text NOT NULL CHECK (type IN ('FIXED', 'RATE')),
  discount_amount bigint CHECK (discount_amount BETWEEN 1 AND 1000000000000),
  discount_rate integer CHECK (discount_rate BETWEEN 1 AND 100),
  max_discount_amount bigint CHECK (max_discount_amount BETWEEN 1 AND 1000000000000),
  -- Null: there is no such bound.
  minimum_spend bigint CHECK (minimum_spend BETWEEN 1 AND 1000000000000),
  usable_from timestamptz NOT NULL,
  usable_to timestamptz NOT NULL,
  -- What is left to issue, kept by the worker in the transaction that has the issues.
  quantity bigint NOT NULL,
  -- All that there ever were.
  initial_quantity bigint NOT NULL CHECK (initial_quantity > 0),
  -- SOLD_OUT is written by the worker when nothing is left, all others by operators.
  status text NOT NULL CHECK (status IN ('DRAFT', 'ISSUING', 'PAUSED', 'SOLD_OUT', 'CLOSED')),
  issue_from timestamptz,
  issue_to timestamptz,
  fingerprint text NOT NULL,
  version bigint NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  -- Nothing is issued any more, and nobody sees it; what was issued stays usable.
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

-- What a user owns: the terms are those of the moment of its issue, whatever becomes of the source.
CREATE TABLE user_coupons (
  -- Made from coupon and user: one a user, whatever the key.
  user_coupon_id uuid PRIMARY KEY,
  -- No reference: to lock the one row of a source for each that it issues would cost more than the issue itself.
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
  -- Of the payment that it is reserved for, or that used it. No reference: a payment names its coupon before it has a row.
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
CREATE INDEX user_coupons_payment ON user_coupons (payment_id) WHERE payment_id IS NOT NULL;

-- What people took ---------------------------------------------------------------------------------------------------

CREATE TABLE reservations (
  -- The hold's id: one id from hold to end.
  reservation_id uuid PRIMARY KEY,
  -- No reference to the sale or its schedule, here and in what follows: these are never deleted, and to lock the one
  -- row of a sale for each of its buyers would cost more than all else that a batch does.
  sale_id uuid NOT NULL,
  schedule_id uuid NOT NULL,
  user_id uuid NOT NULL REFERENCES users,
  epoch bigint NOT NULL,
  fence bigint NOT NULL,
  -- The queue number the hold was made with; null where the room asked for none.
  queue_no bigint,
  fingerprint text NOT NULL,
  status text NOT NULL CHECK (status IN ('PENDING', 'CONFIRMED', 'CANCELLED')),
  reason text
    CHECK (reason IN ('EXPIRED', 'USER', 'DECLINED', 'LATE_UNFULFILLABLE', 'ADMIN', 'EVENT_CANCELLED')),
  amount bigint NOT NULL CHECK (amount >= 0),
  expires_at timestamptz NOT NULL,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now(),
  confirmed_at timestamptz,
  ended_at timestamptz,
  version bigint NOT NULL DEFAULT 1,
  is_pending boolean GENERATED ALWAYS AS (status = 'PENDING') STORED NOT NULL,
  CONSTRAINT reservations_ending CHECK ((status = 'CANCELLED') = (reason IS NOT NULL)),
  CONSTRAINT reservations_confirmed CHECK (status <> 'CONFIRMED' OR confirmed_at IS NOT NULL)
);
CREATE INDEX reservations_mine ON reservations (user_id, created_at DESC, reservation_id DESC);
CREATE INDEX reservations_pending ON reservations (sale_id, expires_at) WHERE is_pending;
CREATE INDEX reservations_ended ON reservations (sale_id, ended_at) WHERE status = 'CANCELLED';

-- The lines of a reservation. CLAIMED is the sale itself: at most one live claim a seat, whatever Redis said.
CREATE TABLE reservation_seats (
  reservation_id uuid NOT NULL REFERENCES reservations,
  seat_no text NOT NULL,
  sale_id uuid NOT NULL,
  price bigint NOT NULL CHECK (price >= 0),
  -- The tier that the price is of; null: the seat's own price.
  tier text,
  -- This seat's share of what a coupon took off when it was bought.
  discount_amount bigint NOT NULL DEFAULT 0,
  status text NOT NULL CHECK (status IN ('HELD', 'CLAIMED', 'ENDED')),
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  is_claimed boolean GENERATED ALWAYS AS (status = 'CLAIMED') STORED NOT NULL,
  PRIMARY KEY (reservation_id, seat_no),
  CONSTRAINT reservation_seats_discount CHECK (discount_amount BETWEEN 0 AND price),
  FOREIGN KEY (sale_id, seat_no) REFERENCES seats
);
CREATE UNIQUE INDEX reservation_seats_claim ON reservation_seats (sale_id, seat_no) WHERE is_claimed;

CREATE TABLE tickets (
  ticket_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  reservation_id uuid NOT NULL,
  seat_no text NOT NULL,
  sale_id uuid NOT NULL,
  user_id uuid NOT NULL REFERENCES users,
  status text NOT NULL DEFAULT 'VALID' CHECK (status IN ('VALID', 'REDEEMED', 'CANCELLED')),
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  -- The one time it opened the door: when, by which request, and with whose key.
  redeemed_at timestamptz,
  redemption_id uuid,
  redemption_fingerprint text,
  redeemed_by uuid REFERENCES api_keys,
  CONSTRAINT tickets_once UNIQUE (reservation_id, seat_no),
  CONSTRAINT tickets_redemption
    CHECK (num_nulls(redeemed_at, redemption_id, redemption_fingerprint, redeemed_by) IN (0, 4)),
  -- One that an operator cancelled afterwards keeps it.
  CONSTRAINT tickets_status CHECK (
    CASE status WHEN 'VALID' THEN redeemed_at IS NULL WHEN 'REDEEMED' THEN redeemed_at IS NOT NULL ELSE true END
  ),
  FOREIGN KEY (reservation_id, seat_no) REFERENCES reservation_seats
);
CREATE INDEX tickets_mine ON tickets (user_id, ticket_no DESC);

CREATE TABLE orders (
  -- The hold's id: one id from hold to end. Its sale is no reference, as with reservations.
  order_id uuid PRIMARY KEY,
  sale_id uuid NOT NULL,
  user_id uuid NOT NULL REFERENCES users,
  epoch bigint NOT NULL,
  fence bigint NOT NULL,
  -- The queue number the hold was made with; null where the room asked for none.
  queue_no bigint,
  fingerprint text NOT NULL,
  status text NOT NULL
    CHECK (status IN ('PENDING', 'PAID', 'PARTIALLY_REFUNDED', 'REFUNDED', 'EXPIRED', 'CANCELLED')),
  reason text CHECK (reason IN ('EXPIRED', 'USER', 'DECLINED', 'LATE_UNFULFILLABLE', 'ADMIN')),
  original_amount bigint NOT NULL CHECK (original_amount >= 0),
  -- Of the coupon that its payment named.
  discount_amount bigint NOT NULL DEFAULT 0 CHECK (discount_amount >= 0),
  total_amount bigint NOT NULL CHECK (total_amount >= 0),
  user_coupon_id uuid,
  expires_at timestamptz NOT NULL,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now(),
  -- When the transaction that sold it began: the day on which its units count.
  paid_at timestamptz,
  ended_at timestamptz,
  version bigint NOT NULL DEFAULT 1,
  is_pending boolean GENERATED ALWAYS AS (status = 'PENDING') STORED NOT NULL,
  CONSTRAINT orders_total CHECK (total_amount = original_amount - discount_amount),
  CONSTRAINT orders_coupon CHECK (discount_amount = 0 OR user_coupon_id IS NOT NULL),
  CONSTRAINT orders_ending CHECK ((status IN ('EXPIRED', 'CANCELLED')) = (reason IS NOT NULL)),
  CONSTRAINT orders_expired CHECK ((status = 'EXPIRED') = (reason IS NOT DISTINCT FROM 'EXPIRED')),
  CONSTRAINT orders_paid CHECK ((status IN ('PAID', 'PARTIALLY_REFUNDED', 'REFUNDED')) = (paid_at IS NOT NULL))
);
CREATE INDEX orders_mine ON orders (user_id, created_at DESC, order_id DESC);
CREATE INDEX orders_pending ON orders (sale_id, expires_at) WHERE is_pending;
CREATE INDEX orders_ended ON orders (sale_id, ended_at) WHERE status IN ('EXPIRED', 'CANCELLED');
CREATE INDEX orders_sold ON orders (sale_id, paid_at) WHERE paid_at IS NOT NULL;

-- The lines of an order, each variant once. SOLD is the sale itself: the units are off the variant's `quantity`.
CREATE TABLE order_items (
  order_id uuid NOT NULL REFERENCES orders,
  -- No reference: variants are never deleted, and to lock the one row of a hot one for each order would hold up the
  -- worker that counts it down.
  variant_id uuid NOT NULL,
  sale_id uuid NOT NULL,
  quantity bigint NOT NULL CHECK (quantity > 0),
  unit_price bigint NOT NULL CHECK (unit_price >= 0),
  -- This line's share of the order's discount: what is refunded of a line adds up.
  discount_amount bigint NOT NULL DEFAULT 0 CHECK (discount_amount >= 0),
  total_price bigint NOT NULL,
  status text NOT NULL CHECK (status IN ('HELD', 'SOLD', 'ENDED')),
  -- What was given back after it was sold.
  refunded_quantity bigint NOT NULL DEFAULT 0,
  -- Units that Redis counts for this line as far as Postgres knows: the last `restored` that was applied says it.
  counted bigint NOT NULL DEFAULT 0 CHECK (counted >= 0),
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (order_id, variant_id),
  CONSTRAINT order_items_total CHECK (total_price = quantity * unit_price - discount_amount AND total_price >= 0),
  CONSTRAINT order_items_refunded CHECK (refunded_quantity BETWEEN 0 AND quantity),
  CONSTRAINT order_items_sold CHECK (status = 'SOLD' OR (refunded_quantity = 0 AND counted = 0))
);

-- What a buyer owns: one row a unit.
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

-- What was given back of a line after it was sold, by which cancellation: it counts on the day of `created_at`.
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

CREATE TABLE payments (
  payment_id uuid PRIMARY KEY,
  sale_id uuid NOT NULL,
  reservation_id uuid REFERENCES reservations,
  user_id uuid NOT NULL REFERENCES users,
  epoch bigint NOT NULL,
  fence bigint NOT NULL,
  fingerprint text NOT NULL,
  method text NOT NULL CHECK (method IN ('BALANCE', 'CARD', 'SPLIT')),
  status text NOT NULL CHECK (
    status IN (
      'PENDING', 'AUTHORISED', 'IN_DOUBT', 'SUCCESS', 'FAILED', 'VOIDED', 'UNCOLLECTED', 'PARTIALLY_REFUNDED', 'REFUNDED'
    )
  ),
  -- A problem's word: why a payment is FAILED or VOIDED.
  reason text,
  -- What a refused payment needed and what there was, so that its key always answers the same.
  needed bigint,
  available bigint,
  original_amount bigint NOT NULL CHECK (original_amount >= 0),
  discount_amount bigint NOT NULL DEFAULT 0 CHECK (discount_amount >= 0),
  final_amount bigint NOT NULL CHECK (final_amount >= 0),
  refunded_amount bigint NOT NULL DEFAULT 0 CHECK (refunded_amount >= 0),
  -- The leg that the balance pays; set aside while the payment is PENDING, AUTHORISED or IN_DOUBT.
  balance_amount bigint NOT NULL CHECK (balance_amount >= 0),
  -- The leg that a card pays, and how much of it the gateway has taken.
  card_amount bigint NOT NULL DEFAULT 0 CHECK (card_amount >= 0),
  captured_amount bigint NOT NULL DEFAULT 0 CHECK (captured_amount >= 0),
  -- The gateway's name for the card (never its number), where the buyer comes back to, and what the gateway said.
  payment_method_id text,
  return_url text,
  gateway_ref text UNIQUE,
  action_url text,
  decline_code text,
  pay_deadline timestamptz NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  authorised_at timestamptz,
  paid_at timestamptz,
  version bigint NOT NULL DEFAULT 1,
  order_id uuid REFERENCES orders,
  -- What is paid, whichever of the two it is.
  hold_id uuid GENERATED ALWAYS AS (coalesce(reservation_id, order_id)) STORED NOT NULL,
  -- The coupon that was named, and why it could not be used.
  user_coupon_id uuid,
  coupon_reason text,
  is_unsettled boolean GENERATED ALWAYS AS (status IN ('PENDING', 'AUTHORISED', 'IN_DOUBT')) STORED NOT NULL,
  is_live boolean GENERATED ALWAYS AS (status NOT IN ('FAILED', 'VOIDED')) STORED NOT NULL,
  CONSTRAINT payments_coupon CHECK (discount_amount = 0 OR user_coupon_id IS NOT NULL),
  CONSTRAINT payments_for CHECK (num_nonnulls(reservation_id, order_id) = 1),
  CONSTRAINT payments_final CHECK (final_amount = original_amount - discount_amount),
  CONSTRAINT payments_legs CHECK (balance_amount + card_amount = final_amount),
  CONSTRAINT payments_captured CHECK (captured_amount <= card_amount),
  CONSTRAINT payments_method CHECK (
    CASE method WHEN 'BALANCE' THEN card_amount = 0 WHEN 'CARD' THEN balance_amount = 0 ELSE true END
  ),
  CONSTRAINT payments_refunded CHECK (refunded_amount <= final_amount),
  CONSTRAINT payments_paid CHECK (status <> 'SUCCESS' OR paid_at IS NOT NULL)
);
-- At most one payment a hold that may still buy it, or did.
CREATE UNIQUE INDEX payments_live ON payments (hold_id) WHERE is_live;
-- Those that did not, which a hold without such a one names.
CREATE INDEX payments_ended ON payments (hold_id, created_at DESC) WHERE NOT is_live;
CREATE INDEX payments_coupon_named ON payments (user_coupon_id) WHERE user_coupon_id IS NOT NULL;
CREATE INDEX payments_mine ON payments (user_id, created_at DESC, payment_id DESC);
CREATE INDEX payments_unsettled ON payments (updated_at) WHERE is_unsettled;

-- What was sold ------------------------------------------------------------------------------------------------------

-- A unit counts on the day on which its order was paid, in the zone of the installation; what is given back counts on
-- the day on which it is, in columns of its own. So a day that is over never changes.
CREATE TABLE product_daily_sales (
  product_id uuid NOT NULL REFERENCES products,
  day date NOT NULL,
  sold_quantity bigint NOT NULL DEFAULT 0 CHECK (sold_quantity >= 0),
  -- An order counts once, however many units of the product it has.
  orders bigint NOT NULL DEFAULT 0,
  -- After the discount.
  amount bigint NOT NULL DEFAULT 0 CHECK (amount >= 0),
  refunded_quantity bigint NOT NULL DEFAULT 0 CHECK (refunded_quantity >= 0),
  refunded_amount bigint NOT NULL DEFAULT 0 CHECK (refunded_amount >= 0),
  -- When something was counted last.
  aggregated_at timestamptz NOT NULL DEFAULT now(),
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (product_id, day),
  CONSTRAINT product_daily_sales_orders
    CHECK (orders BETWEEN 0 AND sold_quantity AND (orders = 0) = (sold_quantity = 0))
);
CREATE INDEX product_daily_sales_day ON product_daily_sales (day, product_id);

-- What a day counts and no interval does yet, a row a batch and product. A run takes the rows that it sees and removes
-- them: what commits later is there for the next one, whatever its number or its time.
CREATE TABLE unaggregated_sales (
  unaggregated_sale_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  product_id uuid NOT NULL,
  day date NOT NULL,
  -- Below zero where a day was put right downwards.
  sold_quantity bigint NOT NULL CHECK (sold_quantity <> 0),
  created_at timestamptz NOT NULL DEFAULT now()
);

-- What came to be counted between two runs, before refunds: of each product and day these add up to what the day sold.
CREATE TABLE product_interval_sales (
  product_id uuid NOT NULL REFERENCES products,
  day date NOT NULL,
  -- When the run before was, and this one.
  aggregated_from timestamptz NOT NULL,
  aggregated_to timestamptz NOT NULL,
  sold_quantity bigint NOT NULL CHECK (sold_quantity <> 0),
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (product_id, day, aggregated_from),
  CONSTRAINT product_interval_sales_interval CHECK (aggregated_from < aggregated_to)
);
CREATE INDEX product_interval_sales_newest ON product_interval_sales (aggregated_from, product_id, day);

-- One row, which its migration makes: where the last run ended and the next begins. Locked by whoever runs.
CREATE TABLE sales_aggregation (
  only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
  aggregated_to timestamptz NOT NULL DEFAULT now(),
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now()
);

-- What is given back, and what a gateway must be told ----------------------------------------------------------------

CREATE TABLE cancellations (
  cancellation_id uuid PRIMARY KEY,
  reservation_id uuid REFERENCES reservations,
  order_id uuid REFERENCES orders,
  user_id uuid NOT NULL REFERENCES users,
  seat_nos text[] NOT NULL DEFAULT '{}',
  -- Of an order: how many units of each variant.
  variant_ids uuid[] NOT NULL DEFAULT '{}',
  quantities bigint[] NOT NULL DEFAULT '{}',
  reason text NOT NULL CHECK (reason IN ('USER', 'ADMIN', 'EVENT_CANCELLED')),
  -- What was paid for these seats or units is given back or kept.
  refund_amount bigint NOT NULL CHECK (refund_amount >= 0),
  kept_amount bigint NOT NULL CHECK (kept_amount >= 0),
  refund_to text NOT NULL CHECK (refund_to IN ('SOURCE', 'BALANCE')),
  fingerprint text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT cancellations_of CHECK (num_nonnulls(reservation_id, order_id) = 1),
  CONSTRAINT cancellations_seats CHECK ((reservation_id IS NOT NULL) = (cardinality(seat_nos) > 0)),
  CONSTRAINT cancellations_units CHECK ((order_id IS NOT NULL) = (cardinality(variant_ids) > 0)),
  CONSTRAINT cancellations_quantities CHECK (
    cardinality(variant_ids) = cardinality(quantities) AND 0 < ALL (quantities)
  )
);
CREATE INDEX cancellations_reservation ON cancellations (reservation_id, created_at);
CREATE INDEX cancellations_order ON cancellations (order_id, created_at);

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
  is_pending boolean GENERATED ALWAYS AS (status = 'PENDING') STORED NOT NULL,
  CONSTRAINT gateway_operations_refund CHECK ((kind = 'REFUND') = (refund_id IS NOT NULL))
);
CREATE INDEX gateway_operations_due ON gateway_operations (due_at) WHERE is_pending;
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

-- What operators told everybody who waited for a sale; who comes within the hour is told it, too.
CREATE TABLE messages (
  message_id uuid PRIMARY KEY,
  sale_id uuid NOT NULL REFERENCES sales,
  text text NOT NULL CHECK (char_length(text) BETWEEN 1 AND 500),
  -- The operator's key.
  api_key_id uuid NOT NULL REFERENCES api_keys,
  -- To the millisecond, as it is told.
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX messages_newest ON messages (sale_id, created_at DESC, message_id DESC);

-- What a gateway told us, each once: written by the transaction that applies it.
CREATE TABLE webhook_events (
  event_id text PRIMARY KEY,
  type text NOT NULL,
  gateway_ref text,
  created_at timestamptz NOT NULL DEFAULT now()
);

-- Money that a gateway reported for a payment that had ended: its buyer gets the same seats by a payment of its own, to
-- which the gateway's name moves, or the money goes back.
CREATE TABLE late_payments (
  gateway_ref text PRIMARY KEY,
  -- What had ended.
  payment_id uuid NOT NULL REFERENCES payments,
  sale_id uuid NOT NULL,
  user_id uuid NOT NULL REFERENCES users,
  -- What the gateway has.
  amount bigint NOT NULL CHECK (amount > 0),
  -- Made from the gateway's name, before there is a row of either.
  new_hold_id uuid NOT NULL,
  new_payment_id uuid NOT NULL,
  status text NOT NULL DEFAULT 'PENDING' CHECK (status IN ('PENDING', 'SOLD', 'RETURNED')),
  -- Why the money went back.
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

-- Who waits for what comes back ---------------------------------------------------------------------------------------

CREATE TABLE waiting_list_entries (
  entry_id uuid PRIMARY KEY,
  -- The order of joining: numbers are given out under the lock of the sale's row.
  entry_no bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
  sale_id uuid NOT NULL,
  -- What is waited for: seats of an event, or units of a variant.
  schedule_id uuid,
  variant_id uuid,
  user_id uuid NOT NULL REFERENCES users,
  quantity integer NOT NULL,
  -- Of seats: side by side or not, of one category, of one section, each at most so dear.
  adjacent boolean,
  category text,
  section text,
  price_max bigint CHECK (price_max >= 0),
  accessible integer NOT NULL DEFAULT 0 CHECK (accessible >= 0),
  -- What will be offered is a hold of this id, once: whether it was, and what became of it, its reservation or order says.
  hold_id uuid NOT NULL UNIQUE,
  status text NOT NULL CHECK (status IN ('WAITING', 'OFFERED', 'TAKEN', 'LAPSED', 'LEFT')),
  reason text CHECK (reason IN ('USER', 'EVENT_OVER', 'EVENT_CANCELLED', 'SALE_OVER')),
  fingerprint text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  is_waiting boolean GENERATED ALWAYS AS (status = 'WAITING') STORED NOT NULL,
  CONSTRAINT waiting_list_entries_for CHECK (num_nonnulls(schedule_id, variant_id) = 1),
  CONSTRAINT waiting_list_entries_quantity
    CHECK (quantity BETWEEN 1 AND CASE WHEN variant_id IS NULL THEN 20 ELSE 1000 END),
  CONSTRAINT waiting_list_entries_seats CHECK ((schedule_id IS NOT NULL) = (adjacent IS NOT NULL)),
  CONSTRAINT waiting_list_entries_units
    CHECK (variant_id IS NULL OR (num_nonnulls(category, section, price_max) = 0 AND accessible = 0)),
  CONSTRAINT waiting_list_entries_accessible CHECK (accessible <= quantity),
  CONSTRAINT waiting_list_entries_reason CHECK ((status = 'LEFT') = (reason IS NOT NULL))
);
CREATE INDEX waiting_list_entries_waiting ON waiting_list_entries (sale_id, entry_no) WHERE is_waiting;
CREATE INDEX waiting_list_entries_variant ON waiting_list_entries (variant_id, entry_no)
  WHERE is_waiting AND variant_id IS NOT NULL;
CREATE INDEX waiting_list_entries_offered ON waiting_list_entries (hold_id) WHERE status = 'OFFERED';
CREATE INDEX waiting_list_entries_mine ON waiting_list_entries (user_id, entry_no DESC);

-- The waiting room ---------------------------------------------------------------------------------------------------

-- Half of a page is left: each row is rewritten when its owner is called, and when they are done.
CREATE TABLE queue_tokens (
  sale_id uuid NOT NULL,
  queue_no bigint NOT NULL,
  epoch bigint NOT NULL,
  -- A user's id, or v and the hash of a visitor's secret. The signed token is made from these and is not kept.
  owner text NOT NULL,
  status text NOT NULL CHECK (status IN ('WAITING', 'ACTIVE', 'PROCESSED', 'EXPIRED', 'LEFT')),
  created_at timestamptz NOT NULL,
  admitted_at timestamptz,
  ended_at timestamptz,
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (sale_id, queue_no)
) WITH (fillfactor = 50);
CREATE INDEX queue_tokens_created ON queue_tokens (created_at);

-- The outbox ---------------------------------------------------------------------------------------------------------

-- Who reads a sale's streams. The generation fences an owner that slept: it grows with every take-over.
CREATE TABLE stream_owners (
  sale_id uuid PRIMARY KEY REFERENCES sales,
  owner text NOT NULL,
  generation bigint NOT NULL,
  until timestamptz NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now()
);

-- Who works: each worker says that it lives; sales are shared out among those that do.
CREATE TABLE workers (
  worker text PRIMARY KEY,
  -- Sales whose streams it owns.
  sales integer NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now()
);

-- How far each stream has been applied. An entry is applied only if its n is the next one and names this entry id.
CREATE TABLE stream_watermarks (
  sale_id uuid NOT NULL REFERENCES sales,
  stream text NOT NULL CHECK (stream IN ('outbox', 'journal')),
  epoch bigint NOT NULL,
  generation bigint NOT NULL DEFAULT 0,
  n bigint NOT NULL,
  entry_id text NOT NULL,
  -- The last applied entry that is about a hold: what follows names it, so a loss that is about the room alone is known.
  held_entry_id text NOT NULL DEFAULT '0-0',
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (sale_id, stream)
);

-- One row an applied batch: per sale, stream and epoch the ranges have no gap and no overlap.
CREATE TABLE applied_batches (
  sale_id uuid NOT NULL REFERENCES sales,
  stream text NOT NULL,
  epoch bigint NOT NULL,
  first_n bigint NOT NULL,
  last_n bigint NOT NULL,
  count integer NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (sale_id, stream, epoch, first_n),
  CONSTRAINT applied_batches_count CHECK (count = last_n - first_n + 1)
);

CREATE TABLE dead_letters (
  sale_id uuid NOT NULL REFERENCES sales,
  stream text NOT NULL,
  epoch bigint NOT NULL,
  n bigint NOT NULL,
  entry_id text NOT NULL,
  kind text NOT NULL,
  fields jsonb NOT NULL,
  error text NOT NULL,
  payment_id uuid,
  -- An operator's word on the payment it concerns; REBUILT: of no payment in doubt, it ended with its copy in Redis.
  resolution text CHECK (resolution IN ('AUTHORISED', 'FAILED', 'REBUILT')),
  resolved_at timestamptz,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (sale_id, stream, epoch, n)
);

-- Seats or units to give back in Redis: written by the transaction that decided it, driven by the worker until done.
CREATE TABLE restores (
  -- A reservation's id or an order's.
  hold_id uuid PRIMARY KEY,
  sale_id uuid NOT NULL REFERENCES sales,
  fence bigint NOT NULL,
  -- After LATE_UNFULFILLABLE the buyer's place in line goes next.
  token_goes_next boolean NOT NULL,
  attempts integer NOT NULL DEFAULT 0,
  created_at timestamptz NOT NULL DEFAULT now(),
  done_at timestamptz
);
CREATE INDEX restores_due ON restores (created_at) WHERE done_at IS NULL;
