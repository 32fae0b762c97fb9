-- What operators tell everybody who waits for a sale.

CREATE TABLE messages (
  message_id uuid PRIMARY KEY,
  sale_id uuid NOT NULL REFERENCES sales,
  text text NOT NULL CHECK (char_length(text) BETWEEN 1 AND 500),
  api_key_id uuid NOT NULL REFERENCES api_keys,
  created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX messages_newest ON messages (sale_id, created_at DESC, message_id DESC);
