-- What a door did with a ticket, and who may do that.

ALTER TABLE tickets
  ADD COLUMN redeemed_at timestamptz,
  ADD COLUMN redemption_id uuid,
  ADD COLUMN redemption_fingerprint text,
  ADD COLUMN redeemed_by uuid REFERENCES api_keys,
  ADD CONSTRAINT tickets_redemption
    CHECK (num_nulls(redeemed_at, redemption_id, redemption_fingerprint, redeemed_by) IN (0, 4)),
  ADD CONSTRAINT tickets_status CHECK (
    CASE status WHEN 'VALID' THEN redeemed_at IS NULL WHEN 'REDEEMED' THEN redeemed_at IS NOT NULL ELSE true END
  );

-- Keys that may do everything go on to.
UPDATE api_keys
SET scopes = scopes || '{tickets}'
WHERE scopes @> '{accounts,audit,balances,catalogue,payments,sales}'
  AND NOT 'tickets' = ANY (scopes);
