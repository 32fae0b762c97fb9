#!lua
-- Write how many units each buyer has bought, into a sale of stock that is being rebuilt.
--
-- USES
--   sale
--   rebuild
--   streams
--   holds
-- KEYS
--   sale            hash    the sale's terms and counters
--   seats           hash    nothing: it has none
--   holds           hash    hold_id -> record
--   deadlines       zset    hold_id of what is HELD, scored by the millisecond its units are free
--   paying          zset    hold_id of what is PAYING, scored by its pay deadline
--   ended           zset    hold_id of what ended or was sold, scored by the millisecond it did
--   buyers          hash    buyer_id -> sold ended hold_id,hold_id…
-- ARGV
--   epoch
--   rows...
-- RETURNS
--   loaded                  count
--   sale_open
--   sale_unknown
--   stale_epoch             epoch
--
-- A row is buyer_id and units, those of all that was ever sold. Safe to repeat, before or after the holds.
local epoch = ARGV[1]

local refusal = not_rebuilding(epoch)
if refusal then return refusal end

-- Change.
for at = 2, #ARGV, 2 do
  local buyer = find_buyer(ARGV[at])
  buyer.sold = tonumber(ARGV[at + 1])
  keep_buyer(ARGV[at], buyer)
end
return { "loaded", (#ARGV - 1) / 2 }
