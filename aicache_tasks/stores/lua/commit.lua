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
-- ARGV[7]   how many processes follow    ARGV[8] how many entries to set aside follow
-- ARGV[9..] process, number, end (epoch s), ...; entry, ...; place of a hash in KEYS, field, value, ...
-- returns   1 applied, 0 refused; or the role of a key that is of another type, and nothing was written
--
-- A script that fails half way leaves its first writes in place. So types are compared before the first write, and each
-- command that an ACL may forbid is called once where it changes nothing. The first of them is one that a full server
-- takes: after it, a server at its memory limit takes the others too, and the commit makes room.
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
local held = tonumber(redis.call('HGET', state, 'bytes') or 0) or 0

redis.call('LTRIM', inbox, 0, -1)
redis.call('HDEL', state, '')
redis.call('ZADD', ends, 'XX', 0, '')
redis.call('HSET', state, 'turn', ARGV[2])
local at = 9 + 3 * ARGV[7]
for i = at, at + ARGV[8] - 1 do
  redis.call('RPUSH', aside, ARGV[i])
end
redis.call('LTRIM', aside, -ARGV[6], -1)

for i = 9, at - 1, 3 do
  redis.call('HSET', seen, ARGV[i], ARGV[i + 1])
  redis.call('ZADD', ends, ARGV[i + 2], ARGV[i])
end
for i = at + ARGV[8], #ARGV, 3 do
  redis.call('HSET', KEYS[tonumber(ARGV[i])], ARGV[i + 1], ARGV[i + 2])
end
redis.call('LTRIM', inbox, gone, -1)
redis.call('HSET', state, 'bytes', waiting == 0 and '0' or string.format('%.0f', math.max(held - ARGV[5], 0)))
if waiting == 0 then
  redis.call('HDEL', state, 'since_ms')
elseif ARGV[3] ~= '' then
  redis.call('HSET', state, 'since_ms', ARGV[3])
end
return 1
