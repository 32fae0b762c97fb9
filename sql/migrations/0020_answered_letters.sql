-- An entry that could not be applied, and that no payment's doubt hangs on, ends with the copy in Redis that wrote it.

ALTER TABLE dead_letters
  DROP CONSTRAINT dead_letters_resolution_check,
  ADD CONSTRAINT dead_letters_resolution_check CHECK (resolution IN ('AUTHORISED', 'FAILED', 'REBUILT'));
