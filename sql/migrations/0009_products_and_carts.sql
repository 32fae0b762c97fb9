-- Products with variants, restocks, carts.

CREATE TABLE products (
  product_id uuid PRIMARY KEY,
  sale_id uuid NOT NULL REFERENCES sales,
  name text NOT NULL,
  category text NOT NULL,
  description text,
  price bigint NOT NULL CHECK (price BETWEEN 0 AND 1000000000000),
  status text NOT NULL CHECK (status IN ('DRAFT', 'ON_SALE', 'STOPPED', 'HIDDEN')),
  fingerprint text NOT NULL,
  version bigint NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT products_sale UNIQUE (product_id, sale_id)
);
CREATE INDEX products_newest ON products (created_at DESC, product_id DESC);
CREATE INDEX products_category ON products (category, created_at DESC, product_id DESC);

CREATE TABLE product_variants (
  variant_id uuid PRIMARY KEY,
  product_id uuid NOT NULL,
  sale_id uuid NOT NULL,
  size text,
  quantity bigint NOT NULL,
  initial_quantity bigint NOT NULL,
  listed_no integer NOT NULL CHECK (listed_no >= 1),
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  CONSTRAINT product_variants_quantity CHECK (quantity BETWEEN 0 AND initial_quantity),
  CONSTRAINT product_variants_size UNIQUE NULLS NOT DISTINCT (product_id, size),
  CONSTRAINT product_variants_no UNIQUE (product_id, listed_no),
  FOREIGN KEY (product_id, sale_id) REFERENCES products (product_id, sale_id)
);
CREATE INDEX product_variants_sale ON product_variants (sale_id, variant_id);

CREATE TABLE restocks (
  restock_id uuid PRIMARY KEY,
  variant_id uuid NOT NULL REFERENCES product_variants,
  quantity bigint NOT NULL CHECK (quantity > 0),
  fingerprint text NOT NULL,
  api_key_id uuid NOT NULL REFERENCES api_keys,
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE cart_items (
  user_id uuid NOT NULL REFERENCES users,
  variant_id uuid NOT NULL,
  quantity integer NOT NULL CHECK (quantity BETWEEN 1 AND 1000),
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (user_id, variant_id)
);
