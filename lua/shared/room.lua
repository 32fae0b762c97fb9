-- Called tokens, as every script of the sale sees them: whether one admits its owner, and how one ends. It stands on
-- sale, and `return_token` on streams as well.
--
-- RECORDS
--   tokens         owner -> status|queue_no|entered|admitted_at_ms
--                    status ACTIVE, SKIPPED or RETURNED (the last two are WAITING to the public); entered 0 | 1
--   active         owner, scored by the millisecond at which the entry (not entered) or the session (entered) lapses
--   ended_tokens   queue_no -> status|owner
--                    status PROCESSED, EXPIRED or LEFT; or MOVED|owner|queue_no: that number of this owner stands for it
--   ended_tokens_at  queue_no, scored by the millisecond it ended
--
-- A token is valid while now < its deadline: what has lapsed admits nobody, tick or not.

-- Whether holding asks for a token at all.
local function room_is_on()
  local room = sale.room or "off"
  return room ~= "off" and room ~= "bypass"
end

-- The called token of this owner, or nil.
local function called_token(tokens, owner)
  local record = redis.call("HGET", tokens, owner)
  if not record then
    return nil
  end
  local status, queue_no, entered, admitted_at_ms = string.match(record, "^(%u+)|(%d+)|([01])|(%d+)$")
  return {
    status = status,
    queue_no = tonumber(queue_no),
    entered = entered == "1",
    admitted_at_ms = tonumber(admitted_at_ms),
  }
end

local function keep_called(tokens, owner, status, queue_no, entered, admitted_at_ms)
  redis.call(
    "HSET", tokens, owner,
    string.format("%s|%d|%d|%d", status, queue_no, entered and 1 or 0, admitted_at_ms)
  )
end

-- The ACTIVE token of this owner under this number, and its deadline; nil when there is none or it has lapsed.
local function active_token(tokens, active, owner, queue_no)
  local token = called_token(tokens, owner)
  if not token or token.status ~= "ACTIVE" or token.queue_no ~= tonumber(queue_no) then
    return nil
  end
  local deadline_ms = tonumber(redis.call("ZSCORE", active, owner) or "0")
  if deadline_ms <= now_ms then
    return nil
  end
  return token, deadline_ms
end

-- A write of the sale by the owner of this ACTIVE token: the first one enters it, each renews its session. The session
-- lasts at least to `until_ms` (a payment's deadline; nil where there is none). Answers the new deadline.
local function renew_token(tokens, active, owner, token, deadline_ms, until_ms)
  local renewed_ms = math.max(now_ms + term("session_ms"), until_ms or 0)
  if token.entered then
    renewed_ms = math.max(renewed_ms, deadline_ms)
  else
    keep_called(tokens, owner, "ACTIVE", token.queue_no, true, token.admitted_at_ms)
  end
  redis.call("ZADD", active, renewed_ms, owner)
  return renewed_ms
end

-- The same for whoever knows the number only: 0, and nothing changes, when no ACTIVE token of it admits this owner.
local function enter_or_renew(tokens, active, owner, queue_no, until_ms)
  local token, deadline_ms = active_token(tokens, active, owner, queue_no)
  return token and renew_token(tokens, active, owner, token, deadline_ms, until_ms) or 0
end

-- Ends this number if it is still its owner's ACTIVE token, lapsed or not, and says whether it did. It appends no
-- entry: PROCESSED comes to Postgres with `confirmed`.
local function end_token(tokens, active, ended_tokens, ended_tokens_at, owner, queue_no, status)
  local token = called_token(tokens, owner)
  if not token or token.status ~= "ACTIVE" or token.queue_no ~= tonumber(queue_no) then
    return false
  end
  redis.call("HDEL", tokens, owner)
  redis.call("ZREM", active, owner)
  write_last("HSET", ended_tokens, token.queue_no, status .. "|" .. owner)
  write_last("ZADD", ended_tokens_at, token.queue_no, now_ms)
  return true
end

-- After a sale that could not stand, its buyer's number goes next: it lives again, RETURNED, before the whole line.
-- Nothing happens, and the answer is false, when it is still live, when its owner has joined anew, or left.
local function return_token(waiting, tokens, returned, ended_tokens, ended_tokens_at, journal, owner, queue_no)
  queue_no = tonumber(queue_no)
  if queue_no == 0 or called_token(tokens, owner) or redis.call("ZSCORE", waiting, owner) then
    return false
  end
  -- The record may have been trimmed: then the caller's word is what is known.
  local ended = redis.call("HGET", ended_tokens, queue_no)
  if ended and ended ~= "PROCESSED|" .. owner and ended ~= "EXPIRED|" .. owner then
    return false
  end
  local n = next_number("journal")
  redis.call("HDEL", ended_tokens, queue_no)
  redis.call("ZREM", ended_tokens_at, queue_no)
  keep_called(tokens, owner, "RETURNED", queue_no, false, 0)
  redis.call("ZADD", returned, queue_no, owner)
  append(journal, n, "returned", "queue_no", queue_no)
  return true
end
