#!lua
-- Give a buyer more time for what is held, within the budget and the absolute lifetime of a hold.
--
-- USES
--   sale
--   streams
--   room
--   holds
-- KEYS
--   sale            hash    the sale's terms and counters
--   seats           hash    seat_no -> state hold_id fence
--   holds           hash    hold_id -> record
--   deadlines       zset    hold_id of what is HELD, scored by the millisecond its seats are free
--   paying          zset    hold_id of what is PAYING, scored by its pay deadline
--   ended           zset    hold_id of what ended or was sold, scored by the millisecond it did
--   buyers          hash    buyer_id -> sold ended hold_id,hold_id…
--   journal         stream  extended
--   tokens          hash    owner -> called token
--   active          zset    owner of each ACTIVE token
-- ARGV
--   epoch
--   hold_id
--   buyer_id
--   extension_id
--   fingerprint
-- RETURNS
--   extended                expires_at_ms repeated
--   extension_spent
--   hold_ended              reason
--   payment_running         payment_id
--   idempotency_key_reused
--   not_found
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- Safe to repeat: the hold remembers its extensions, and the same one again only learns the deadline.
local journal = KEYS[8]
local tokens = KEYS[9]
local active = KEYS[10]
local epoch = ARGV[1]
local hold_id = ARGV[2]
local buyer_id = ARGV[3]
local extension_id = ARGV[4]
local fingerprint = ARGV[5]

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local hold = own_hold(hold_id, buyer_id)
if not hold then
  return { "not_found" }
end
local verdict = judge_repeat(hold.extensions, extension_id, fingerprint)
if verdict == "reused" then
  return { "idempotency_key_reused" }
end
local state, reason = state_of(hold)
if state == "ENDED" then
  return { "hold_ended", reason }
end
if verdict == "repeated" then
  return { "extended", hold.expires_at_ms, 1 }
end
if state ~= "HELD" then
  return { "payment_running", hold.payment_id }
end
local expires_at_ms =
  math.min(hold.expires_at_ms + term("hold_ms"), hold.created_at_ms + term("hold_max_ms"))
if #split(hold.extensions) >= term("extensions_max") or expires_at_ms <= tonumber(hold.expires_at_ms) then
  return { "extension_spent" }
end

-- Change.
local n = next_number("journal")
hold.expires_at_ms = expires_at_ms
hold.extensions = with(hold.extensions, extension_id .. ":" .. fingerprint)
keep_hold(hold_id, hold)
redis.call("ZADD", deadlines, free_at_ms(hold_id, hold), hold_id)
if hold.queue_no ~= "0" then
  enter_or_renew(tokens, active, buyer_id, hold.queue_no)
end
append(journal, n, "extended", "hold_id", hold_id, "fence", hold.fence, "expires_at_ms", expires_at_ms)
return { "extended", expires_at_ms, 0 }
