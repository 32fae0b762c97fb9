#!lua flags=no-writes
-- Where the streams stand: the last number given out, and the last entry, of each.
--
-- USES
--   sale
-- KEYS
--   sale     hash    the sale's terms and counters
--   outbox   stream
--   journal  stream
-- RETURNS
--   head     epoch state outbox_counter outbox_n outbox_id journal_counter journal_n journal_id
--   sale_unknown
--
-- The counter and the last entry disagree only where a script failed between them.
if not sale.epoch then
  return { "sale_unknown" }
end

local function last_entry(stream)
  local last = redis.call("XREVRANGE", stream, "+", "-", "COUNT", 1)[1]
  if not last then
    return "0", "0-0"
  end
  for at = 1, #last[2], 2 do
    if last[2][at] == "n" then
      return last[2][at + 1], last[1]
    end
  end
  return "-1", last[1] -- an entry that no script of ours wrote
end

local outbox_n, outbox_id = last_entry(KEYS[2])
local journal_n, journal_id = last_entry(KEYS[3])
return {
  "head", sale.epoch, sale.state, term("outbox_n"), outbox_n, outbox_id, term("journal_n"), journal_n, journal_id,
}
