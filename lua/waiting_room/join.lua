#!lua
-- Give an owner a place at the back of the line, or the place it already has.
--
-- USES
--   sale
--   streams
--   room
--   line
-- KEYS
--   sale             hash    the sale's terms and counters
--   waiting          zset    owner -> queue number
--   alive            zset    queue number, scored by when its promised poll is overdue
--   tokens           hash    owner -> called token
--   active           zset    owner of each ACTIVE token
--   skipped          zset    owner of each skipped token
--   returned         zset    owner -> queue number of skipped people who came back
--   ended_tokens     hash    queue_no -> how it ended
--   ended_tokens_at  zset    queue_no, scored by the millisecond it ended
--   gone             zset    queue numbers that left the line
--   ties             hash    visitor owner -> user owner
--   journal          stream  joined; ended where a lapsed token gives way to the new one
-- ARGV
--   epoch
--   owner
-- RETURNS
--   joined                   queue_no created status
--   admitted_without_number
--   queue_closed
--   busy                     retry_after_ms
--   sale_unknown
--   stale_epoch              epoch
--   sale_rebuilding
--
-- Safe to repeat: whoever is in line gets the same place again. After PROCESSED, EXPIRED or LEFT it is a new one.
local waiting = KEYS[2]
local journal = KEYS[12]
local epoch = ARGV[1]
local owner = ARGV[2]

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
if not room_is_on() then
  return { "admitted_without_number" }
end
local token = standing_token(owner)
if token then
  return { "joined", token.queue_no, 0, public_status(token) }
end
if sale.room == "closed" or (sale.room == "draining" and term("queue_no") >= term("draining_no")) then
  return { "queue_closed" }
end
if backlogged() or term("queue_no") >= term("queue_no_ceiling") then
  return { "busy", 1000 }
end

-- Change.
local n = next_number("journal", "queue_no")
redis.call("ZADD", waiting, sale.queue_no, owner)
append(journal, n, "joined", "queue_no", sale.queue_no, "owner", owner, "at_ms", now_ms)
return { "joined", sale.queue_no, 1, "WAITING" }
