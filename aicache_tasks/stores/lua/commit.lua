-- Write records and take the entries that they count from the inbox: all of it or nothing.
--
-- KEYS[1]   the inbox, a list            KEYS[2] its state, a hash: turn, bytes, since_ms
-- KEYS[3]   numbers by process, a hash   KEYS[4] processes by when they may be forgotten, a sorted set
-- KEYS[5]   entries set aside, a list    KEYS[6..] hashes of records (all in one slot)
-- ARGV[1]   the turn that was read before the entries, empty if there was none
-- ARGV[2]   the next turn
-- ARGV[3]   since when the rest has waited, ms; empty: leave it
-- ARGV[4]   how many entries go          ARGV[5] their length in bytes
-- ARGV[6]   how many entries are kept aside
-- ARGV[7]   how many entries to set aside follow; ARGV[8] how many processes follow
-- ARGV[9]   SHA-1 in hex of the last entry that goes; empty if none does
-- ARGV[10]  how many of the lost samples in the state are counted by this
-- ARGV[11..] entry to set aside, ...; process, number, ...; its end (epoch s), process, ...;
--           for each of KEYS[6..]: how many words follow, field, value, ...
-- returns   1 applied, 0 refused; or the role of a key that is of another type, and nothing was written
--
-- A script that fails half way leaves its first writes in place. So types are compared before the first write, and each
-- command that an ACL may forbid is called once where it counts nothing: without effect, or on the turn or what is set
-- aside. The first write is one that a full server takes: after it, a server at its memory limit takes the others too,
-- and the commit makes room.

-- Give a command *count* words of ARGV from *at* on; return where the rest begins. A hundred words at once: one call for
-- each takes the server twice as long, and one call for thousands more than Lua's stack.
local function put(command, key, at, count)
  local last = at + count - 1
  for first = at, last, 100 do
    redis.call(command, key, unpack(ARGV, first, math.min(first + 99, last)))
  end
  return last + 1
end

local wanted = {'list', 'hash', 'hash', 'zset', 'list'}
local roles = {'inbox', 'state', 'seen', 'ends', 'aside'}
for i = 1, #KEYS do
  local kind = redis.call('TYPE', KEYS[i]).ok
  if kind ~= 'none' and kind ~= (wanted[i] or 'hash') then
    return roles[i] or 'records'
  end
end
local inbox, state, seen, ends, aside = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local gone = tonumber(ARGV[4])
local waiting = redis.call('LLEN', inbox) - gone
if (redis.call('HGET', state, 'turn') or '') ~= ARGV[1] or waiting < 0 then
  return 0
end
-- The turn may be right and the entries others: a replica took over that had not heard of the newest ones.
if gone > 0 and redis.sha1hex(redis.call('LINDEX', inbox, gone - 1)) ~= ARGV[9] then
  return 0
end
local held = tonumber(redis.call('HGET', state, 'bytes') or 0) or 0

redis.call('LTRIM', inbox, 0, -1)
redis.call('HDEL', state, '')
redis.call('ZADD', ends, 'XX', 0, '')
redis.call('HSET', state, 'turn', ARGV[2])

local at = put('RPUSH', aside, 11, tonumber(ARGV[7]))
redis.call('LTRIM', aside, -ARGV[6], -1)

at = put('HSET', seen, at, 2 * ARGV[8])
at = put('ZADD', ends, at, 2 * ARGV[8])
for i = 6, #KEYS do
  at = put('HSET', KEYS[i], at + 1, tonumber(ARGV[at]))
end
redis.call('LTRIM', inbox, gone, -1)
local lost = (tonumber(redis.call('HGET', state, 'lost') or 0) or 0) - ARGV[10]
redis.call('HSET', state, 'lost', string.format('%.0f', math.max(lost, 0)))
redis.call('HSET', state, 'bytes', waiting == 0 and '0' or string.format('%.0f', math.max(held - ARGV[5], 0)))
if waiting == 0 then
  redis.call('HDEL', state, 'since_ms')
elseif ARGV[3] ~= '' then
  redis.call('HSET', state, 'since_ms', ARGV[3])
end
return 1
