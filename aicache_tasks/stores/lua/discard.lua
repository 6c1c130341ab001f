-- Remove a key if it still holds the value that was read from it.
--
-- KEYS[1]   the key
-- ARGV[1]   the value, or its SHA-1 in hex
-- ARGV[2]   length of the value, bytes
-- ARGV[3]   'value' or 'sha1': what ARGV[1] is
-- returns   1 removed, 0 not
--
-- SHA-1 spares sending a large value again; a made collision could remove an entry early and nothing worse.
local held = redis.pcall('GET', KEYS[1])
if type(held) ~= 'string' or #held ~= tonumber(ARGV[2]) then
  return 0
end
if ARGV[3] == 'sha1' then
  held = redis.sha1hex(held)
end
if held ~= ARGV[1] then
  return 0
end
return redis.call('UNLINK', KEYS[1])
