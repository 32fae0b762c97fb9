#!lua
-- Issue a coupon to a user: one each, first come first served, as many as there are.
--
-- USES
--   sale
--   streams
-- KEYS
--   sale            hash    the source's terms and counters
--   issued          hash    user_id -> number of the entry that issued a coupon to them
--   outbox          stream  issued
-- ARGV
--   epoch
--   user_id
-- RETURNS
--   issued                  n repeated
--   coupons_gone
--   not_issuing             reason starts_at_ms
--   not_found
--   busy                    retry_after_ms
--   sale_unknown
--   stale_epoch             epoch
--   sale_rebuilding
--
-- What is left is what there ever was less who has one: no counter can disagree with them. The entry says the terms of
-- this moment. Safe to repeat: a user who has one gets the number of the first, whatever became of the source; 0 where
-- a rebuilt copy no longer knows it.
local issued = KEYS[2]
local outbox = KEYS[3]
local epoch = ARGV[1]
local user_id = ARGV[2]

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local first_n = redis.call("HGET", issued, user_id)
if first_n then
  return { "issued", first_n, 1 }
end
if sale.status == "DRAFT" or sale.status == "DELETED" then
  return { "not_found" }
end
if sale.status == "PAUSED" or sale.status == "CLOSED" then
  return { "not_issuing", sale.status, 0 }
end
if now_ms < term("opens_at_ms") then
  return { "not_issuing", "NOT_STARTED", sale.opens_at_ms }
end
if term("closes_at_ms") > 0 and now_ms >= term("closes_at_ms") then
  return { "not_issuing", "ENDED", 0 }
end
if redis.call("HLEN", issued) >= term("quantity") then
  return { "coupons_gone" }
end
if backlogged() then
  return { "busy", 1000 }
end

-- Change.
local n = next_number("outbox")
redis.call("HSET", issued, user_id, n)
append(outbox, n, "issued", "user_id", user_id, "terms", sale.terms, "at_ms", now_ms)
return { "issued", n, 0 }
