-- Rows that are written once and rewritten a little later find room beside themselves, and their indexes are left alone.

ALTER TABLE seats SET (fillfactor = 50);
ALTER TABLE queue_tokens SET (fillfactor = 50);
