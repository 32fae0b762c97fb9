#!lua
-- Use a token in person: the first use of an ACTIVE one starts its session, a skipped one is back in line.
--
-- This is what a poll at or below serving runs, what the entry route runs, and what tells how a token stands.
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
--   active           zset    owner of each ACTIVE token, scored by when its session lapses
--   skipped          zset    owner of each skipped token, scored by when its recall lapses
--   returned         zset    owner -> queue number of skipped people who came back
--   ended_tokens     hash    queue_no -> how it ended
--   ended_tokens_at  zset    queue_no, scored by the millisecond it ended
--   gone             zset    queue numbers that left the line
--   ties             hash    visitor owner -> user owner
--   journal          stream  ended where the token has lapsed
-- ARGV
--   epoch
--   owner
--   queue_no
--   overdue_in_ms    when the next poll, promised with this answer, is overdue
-- RETURNS
--   token                    status queue_no ahead expires_at_ms
--   admitted_without_number
--   not_found
--   sale_unknown
--   stale_epoch              epoch
--   sale_rebuilding
--
-- Safe to repeat: a session is started once, and only writes of the sale renew it.
local waiting = KEYS[2]
local alive = KEYS[3]
local tokens = KEYS[4]
local active = KEYS[5]
local skipped = KEYS[6]
local returned = KEYS[7]
local epoch = ARGV[1]
local owner = ARGV[2]
local queue_no = tonumber(ARGV[3])
local overdue_in_ms = tonumber(ARGV[4])

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
if not room_is_on() then
  return { "admitted_without_number" }
end
local found = follow(owner, queue_no)
if not found then
  return { "not_found" }
end
if found.ended then
  return { "token", found.ended, found.queue_no, 0, 0 }
end
local token, holder = found.token, found.owner

-- Change.
if token.status == "ACTIVE" then
  local expires_at_ms = token.deadline_ms
  if not token.entered then
    expires_at_ms = enter_or_renew(tokens, active, holder, token.queue_no)
  end
  return { "token", "ACTIVE", token.queue_no, 0, expires_at_ms }
end
if token.status == "SKIPPED" then
  redis.call("ZREM", skipped, holder)
  redis.call("ZADD", returned, token.queue_no, holder)
  keep_called(tokens, holder, "RETURNED", token.queue_no, false, token.admitted_at_ms)
  token.status = "RETURNED"
end
-- A sign of life is worth a write only within reach of admission; from further back, signs come in batches.
if token.queue_no <= term("serving") then
  redis.call("ZADD", alive, now_ms + overdue_in_ms, token.queue_no)
end
local ahead
if token.status == "RETURNED" then
  ahead = redis.call("ZRANK", returned, holder)
else
  ahead = redis.call("ZCARD", returned) + redis.call("ZRANK", waiting, holder)
end
return { "token", "WAITING", token.queue_no, ahead, 0 }
