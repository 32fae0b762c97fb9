#!lua
-- Tie a visitor's token to the user who signed in with it: from then on it is that user's.
--
-- A user with a token of their own keeps the ACTIVE one, else the lower number; the other gives way and leads there.
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
--   active           zset    owner of each ACTIVE token, scored by when its entry or session lapses
--   skipped          zset    owner of each skipped token, scored by when its recall lapses
--   returned         zset    owner -> queue number of skipped people who came back
--   ended_tokens     hash    queue_no -> how it ended
--   ended_tokens_at  zset    queue_no, scored by the millisecond it ended
--   gone             zset    queue numbers above serving that left the line, scored by the order in which they did
--   ties             hash    visitor owner -> user owner
--   journal          stream  tied; ended for the number that gave way
-- ARGV
--   epoch
--   visitor
--   user
--   queue_no
-- RETURNS
--   tied             queue_no status
--   not_found
--   sale_unknown
--   stale_epoch      epoch
--   sale_rebuilding
--
-- Safe to repeat: the tie stands until the token ends, and answers what it stands for. Another user is refused.
local epoch = ARGV[1]
local visitor = ARGV[2]
local user = ARGV[3]
local queue_no = tonumber(ARGV[4])

local refusal = unavailable(epoch)
if refusal then return refusal end

-- Check.
local found = follow(visitor, queue_no)
if not found or (found.owner ~= visitor and found.owner ~= user) then
  return { "not_found" }
end
if found.ended then
  return { "tied", found.queue_no, found.ended }
end
local token = found.token
if found.owner == user then
  return { "tied", token.queue_no, public_status(token) }
end

-- Change.
token = tie_token(user, visitor, token)
return { "tied", token.queue_no, public_status(token) }
