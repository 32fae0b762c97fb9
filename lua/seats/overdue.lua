#!lua flags=no-writes
-- The payments that are past their deadline, for whoever finds out what became of them.
--
-- USES
--   sale
--   streams
--   holds
-- KEYS
--   sale            hash    the sale's terms and counters
--   seats           hash    seat_no -> state hold_id fence
--   holds           hash    hold_id -> record
--   deadlines       zset    hold_id of what is HELD, scored by the millisecond its seats are free
--   paying          zset    hold_id of what is PAYING, scored by its pay deadline
--   ended           zset    hold_id of what ended or was sold, scored by the millisecond it did
--   buyers          hash    buyer_id -> sold ended hold_id,hold_id…
-- ARGV
--   epoch
--   most
-- RETURNS
--   overdue                 payments...
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- A payment is "hold_id fence payment_id". Nothing here ends one: its row in Postgres decides by which door it leaves.
local epoch = ARGV[1]
local most = ARGV[2]

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local hold_ids = redis.call("ZRANGEBYSCORE", paying, "-inf", now_ms, "LIMIT", 0, most)
local found = find_holds(hold_ids)
local payments = {}
for _, hold_id in ipairs(hold_ids) do
  payments[#payments + 1] = hold_id .. " " .. found[hold_id].fence .. " " .. found[hold_id].payment_id
end
return { "overdue", unpack(payments) }
