#!lua flags=no-writes
-- Where the streams stand: the last number given out, and the last entry, of each.
--
-- USES
--   sale
--   heads
-- KEYS
--   sale     hash    the sale's terms and counters
--   outbox   stream
--   journal  stream
-- RETURNS
--   head     outbox_counter outbox_n outbox_id journal_counter journal_n journal_id epoch state
--   sale_unknown
--
-- The counter and the last entry disagree only where a script failed between them.
if not sale.epoch then
  return { "sale_unknown" }
end

local outbox_n, outbox_id = head_of(KEYS[2])
local journal_n, journal_id = head_of(KEYS[3])
return {
  "head", term("outbox_n"), outbox_n, outbox_id, term("journal_n"), journal_n, journal_id, sale.epoch, sale.state,
}
