-- Put a tombstone in an entry's place.
--
-- KEYS[1]   the entry's key; KEYS[2..] keys of tokens to read in the same step (all in one slot)
-- ARGV[1]   the tombstone
-- ARGV[2]   how long it stays at least, ms; longer if the entry had longer left, for ever if the entry had no end
-- ARGV[3]   how many bytes of the former value to return
-- returns   {start of the former value or nil, token or nil, ...}
local head = redis.pcall('GETRANGE', KEYS[1], 0, ARGV[3] - 1)
local left = redis.call('PTTL', KEYS[1])
if left == -2 or type(head) ~= 'string' then
  head = false
end
if left == -1 then
  redis.call('SET', KEYS[1], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', math.max(left, tonumber(ARGV[2])))
end
local found = {head}
for i = 2, #KEYS do
  local token = redis.pcall('GET', KEYS[i])
  found[i] = type(token) == 'string' and token
end
return found
