-- Store a frame, unless a tombstone that its look-up did not see lies in its place.
--
-- KEYS[1]   the entry's key; KEYS[2..] the keys of its tags' tokens (all in one slot)
-- ARGV[1]   the frame
-- ARGV[2]   its time to live, ms
-- ARGV[3]   token of the tombstone that the look-up saw; empty if it saw none
-- returns   1 stored, 0 refused
--
-- The first 12 bytes of every frame: magic A1 CA, version, kind (2: tombstone), token (8).
-- GETRANGE fails on a value of another type: it is no tombstone, and SET replaces it.
local head = redis.pcall('GETRANGE', KEYS[1], 0, 11)
if type(head) == 'string' and #head == 12 and string.sub(head, 1, 2) == '\161\202'
    and string.byte(head, 4) == 2 and string.sub(head, 5, 12) ~= ARGV[3] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local ttl = tonumber(ARGV[2])
for i = 2, #KEYS do
  local left = redis.call('PTTL', KEYS[i])
  if left >= 0 and left < ttl then
    redis.call('PEXPIRE', KEYS[i], ARGV[2])
  end
end
return 1
