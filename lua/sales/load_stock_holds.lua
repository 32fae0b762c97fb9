#!lua
-- Write holds of a sale of stock that is being rebuilt as Postgres knows them: their records, deadlines and buyers' counts.
--
-- Their units were never written as left, and what was sold is counted for its buyer already. So only those are written
-- that are remembered: what is HELD or PAYING, and what was sold or ended within the repeat window.
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
-- A row is hold_id, the millisecond it ended at, then the fields of a record up to `prices` without sold_n, then `payments`.
-- Safe to repeat: a hold is written once.
local epoch = ARGV[1]

local refusal = not_rebuilding(epoch)
if refusal then return refusal end

local COLUMNS = {
  "state", "buyer_id", "fence", "queue_no", "fingerprint", "created_at_ms", "expires_at_ms", "payment_id",
  "pay_deadline_ms", "reason", "amount", "seats", "prices", "payments",
}

local function write(hold_id, hold, ended_at_ms)
  local buyer = find_buyer(hold.buyer_id)
  if hold.state == "HELD" then
    redis.call("ZADD", deadlines, free_at_ms(hold_id, hold), hold_id)
  elseif hold.state == "PAYING" then
    redis.call("ZADD", paying, hold.pay_deadline_ms, hold_id)
  else
    redis.call("ZADD", ended, ended_at_ms, hold_id)
  end
  if hold.state == "ENDED" then
    buyer.ended = buyer.ended + 1
  elseif hold.state ~= "SOLD" then
    buyer.open = with(buyer.open, hold_id)
  end
  keep_hold(hold_id, hold) -- without sold_n: the entry of what was sold was of another epoch
  keep_buyer(hold.buyer_id, buyer)
end

-- Change.
local width = 2 + #COLUMNS
for at = 2, #ARGV, width do
  if redis.call("HEXISTS", holds, ARGV[at]) == 0 then
    local hold = {}
    for column, field in ipairs(COLUMNS) do
      hold[field] = ARGV[at + 1 + column]
    end
    write(ARGV[at], hold, ARGV[at + 1])
  end
end
return { "loaded", (#ARGV - 1) / width }
